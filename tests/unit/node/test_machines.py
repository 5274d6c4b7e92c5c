"""What machines run on: made ready for another system, and used for it once it is in force."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from skerry.errors import LayerMissing, MachineError
from skerry.node.machines import Machines
from skerry.system.load import parse_system

QEMU = """
name = "m"
policy = "dummy"
[domains.a]
label = "a"
image = "minimal"
"""
SYSTEM = parse_system(QEMU, Path("/m.toml"))
BARE = parse_system(QEMU.replace('image = "minimal"', 'machine = "simulator"'), Path("/m.toml"))
ACCEPTING = msgspec.structs.replace(SYSTEM, accept_missing=("uid",))


OWN = parse_system(
    """
name = "m"
policy = "dummy"
[domains.own]
label = "a"
boot = "bios"
uses = ["disk"]
[resources.disk]
kind = "disk"
label = "a"
file = "d"
""",
    Path("/m.toml"),
)


class Tried(Machines):
    """Machines on a host that lacks the layer `uid`, and has every image."""

    def load_images(self) -> list[Any]:
        """Have them."""
        return []

    async def self_test(self, streams: object) -> dict[str, str]:
        """Miss a layer."""
        if "uid" not in self._system.accept_missing:
            raise LayerMissing("no uid")
        return {}

    async def choose_accel(self, report: object) -> None:
        """Find no KVM."""
        self._kvm["minimal"] = False

    @property
    def accepted(self) -> frozenset[str]:
        """The layers that a start may lack now."""
        assert self._jails is not None
        return self._jails._accepted


def machines(system: Any) -> Tried:
    """Return what makes a system's machines."""
    return Tried(system, cast(Any, None), cast(Any, None))


async def prepare(of: Tried, system: Any) -> Any:
    """Make ready for another system."""
    return await of.prepare(cast(Any, None), system, lambda _: None)


def test_a_missing_layer_is_accepted_once_the_file_is_in_force() -> None:
    """Not while it may still be refused; what was chosen for it waits as well."""

    async def scene() -> None:
        found = machines(SYSTEM)
        taken = await prepare(found, ACCEPTING)
        assert (found.accepted, found._kvm) == (frozenset(), {})
        taken()
        assert (found.accepted, found._kvm) == (frozenset({"uid"}), {"minimal": False})

    asyncio.run(scene())


def test_a_self_test_that_failed_is_not_passed_by_trying_again() -> None:
    """The first system with a jail must pass it, however often it is given."""

    async def scene() -> None:
        found = machines(BARE)
        for _ in range(2):
            with pytest.raises(LayerMissing):
                await prepare(found, SYSTEM)
        (await prepare(found, ACCEPTING))()
        assert found.accepted == {"uid"}

    asyncio.run(scene())


class Openable(Machines):
    """Machines on a host whose KVM can be opened, or not."""

    usable = True

    def _has_kvm(self) -> bool:
        return self.usable


@pytest.mark.parametrize(
    ("accel", "usable", "got"),
    [("auto", True, "tcg"), ("kvm", True, "kvm"), ("tcg", True, "tcg"), ("auto", False, "tcg")],
)
def test_a_disk_of_its_own_gets_kvm_only_at_its_owners_word(
    accel: str, usable: bool, got: str
) -> None:
    """Nobody can try out whether it runs under it; who asks for KVM never gets less."""

    async def scene() -> None:
        domain = msgspec.structs.replace(OWN.domains["own"], accel=accel)
        system = msgspec.structs.replace(OWN, domains={"own": domain})
        found = Openable(system, cast(Any, None), cast(Any, None))
        found.usable = usable
        assert found.load_images() == [], "no image is looked for"
        await found.choose_accel(lambda _: None)
        assert found._accel(domain) == got
        found.usable = False
        if accel == "kvm":
            with pytest.raises(MachineError, match="no /dev/kvm"):
                await found.choose_accel(lambda _: None)

    asyncio.run(scene())
