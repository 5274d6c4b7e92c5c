"""What machines run on: made ready for another system, and used for it once it is in force."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from skerry.cli.image_sign import add_signature
from skerry.errors import LayerMissing, MachineError
from skerry.image import store
from skerry.image.minimal import build_minimal
from skerry.node.images import ImageUnsigned
from skerry.node.machines import Machines
from skerry.node.paths import image_cache
from skerry.policy.signature import new_key, public_key
from skerry.system.load import parse_system
from tests.support.kernel_package import Debian

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


KEYS = [new_key() for _ in range(2)]
SIGNED = [msgspec.structs.replace(SYSTEM, image_signer=public_key(k[1], "")) for k in KEYS]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with a small image, signed with the first key; its cache."""
    Debian(tmp_path / "debian", monkeypatch)
    monkeypatch.setenv("SKERRY_SHARE", str(tmp_path / "share"))
    image = build_minimal(image_cache())
    (tmp_path / "key").write_bytes(KEYS[0][0])
    add_signature(image_cache(), image, str(tmp_path / "key"), add=False)
    return image_cache()


def test_a_node_loads_only_images_that_its_key_has_signed(host: Path) -> None:
    """The failure is one that ends `up`; without a key every unaltered image is loaded."""
    for system, loaded in ((SYSTEM, True), (SIGNED[0], True), (SIGNED[1], False)):
        made = Machines(system, cast(Any, None), cast(Any, None))
        failures = made.load_images()
        assert [type(failure) for failure in failures] == [] if loaded else [ImageUnsigned]
        assert bool(made.measures()) is loaded


def test_another_image_key_is_asked_about_what_is_loaded_already(host: Path) -> None:
    """Before the system comes into force; the key that signed it is the control."""

    class Loaded(Tried):
        def load_images(self) -> list[Any]:
            return Machines.load_images(self)

    made = Loaded(ACCEPTING, cast(Any, None), cast(Any, None))
    assert made.load_images() == []
    accepting = [msgspec.structs.replace(s, accept_missing=("uid",)) for s in SIGNED]
    assert asyncio.run(prepare(made, accepting[0]))
    with pytest.raises(ImageUnsigned, match="the image minimal"):
        asyncio.run(prepare(made, accepting[1]))


def test_a_start_is_measured_by_its_image(host: Path) -> None:
    """By the digest of the image that was verified; a simulated domain has none."""
    made = Machines(SIGNED[0], cast(Any, None), cast(Any, None))
    made.load_images()
    digest = store.load(host, "minimal").digest
    measured = {"name": "minimal", "digest": digest, "signed": True}
    assert made.measures() == [measured]
    assert made.measured(SYSTEM.domains["a"]) == {"image": measured}
    assert made.measured(BARE.domains["a"]) == {}
