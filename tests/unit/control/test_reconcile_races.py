"""What comes in between while a system is changed, and who takes advantage of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from skerry.errors import Denied, SkerryError
from skerry.node.assertions import violations
from skerry.node.kept import SetupKeeper
from skerry.node.setup import make_setup
from skerry.wire import control as wire
from tests.support.reconciling import APART, HELPER, OPERATED, ports, up
from tests.unit.control.test_calls import POLICY, Client, Host, load, play, ticks

Z = '[domains.z]\nlabel = "red"\nmachine = "simulator"\nautostart = false\n'
TWO = OPERATED.replace('[domains.b]\nlabel = "red"', '[domains.b]\nlabel = "blue"')
"""The helper may not see `b`."""

WITH_Z = OPERATED.replace("[operators]", Z + "[operators]")


class SlowKeeper:
    """A keeper that does something else while it writes, once."""

    def __init__(self) -> None:
        self.meanwhile: Callable[[], Awaitable[object]] | None = None

    async def keep(self, *what: Any) -> None:
        """Let the other thing happen."""
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()

    async def settle(self, *what: Any) -> None:
        """Nothing was written."""


def slow(host: Host) -> SlowKeeper:
    """Give a node a keeper that can be interrupted."""
    keeper = SlowKeeper()
    host.node._keeper = cast(SetupKeeper, keeper)
    return keeper


def test_a_domain_started_while_the_file_that_lacks_it_comes_into_force_stays_known(
    tmp_path: Path,
) -> None:
    """It can be seen and ended, and counts in every wall; the same file again ends it."""

    async def scene(host: Host) -> None:
        keeper = slow(host)
        await host.up()
        starting: list[asyncio.Task[object]] = []

        async def start() -> None:
            starting.append(asyncio.create_task(host.handle(wire.Start("z"), Client("op"))))
            await ticks(5)

        keeper.meanwhile = start
        await up(host, OPERATED)
        await starting[0]
        assert "z" in host.monitor.domains
        assert "z" in [row["name"] for row in await host.node.ps(Client("op").operator)]
        await up(host, OPERATED)
        assert host.machines["z"].exited.done()
        assert "z" not in host.node.setup.system.domains

    play(tmp_path, scene, POLICY, WITH_Z)


def test_a_policy_checked_for_one_system_does_not_come_into_force_under_another(
    tmp_path: Path,
) -> None:
    """Of a load and a file with an assertion that it breaks, at once, one comes into force.

    The controls: each alone does.
    """
    asserted = TWO.replace("[operators]", '[[assert]]\nnever = "a -> b"\n[operators]')

    async def both(host: Host) -> list[object]:
        loading = asyncio.create_task(load(host, POLICY))
        await ticks(1)
        changing = asyncio.create_task(up(host, asserted, APART))
        return list(await asyncio.gather(loading, changing, return_exceptions=True))

    async def scene(host: Host) -> None:
        await host.up()
        for _ in range(20):
            await load(host, POLICY)
            await load(host, APART)
            results = await both(host)
            assert violations(host.node.setup) == []
            assert any(isinstance(r, SkerryError) or getattr(r, "refused", None) for r in results)
            await load(host, APART)
            await up(host, TWO, APART)
            assert host.node.setup.system.asserts == ()
        await up(host, asserted, APART)
        assert len(host.node.setup.system.asserts) == 1
        with pytest.raises(Denied, match="does not hold"):
            await load(host, POLICY)

    play(tmp_path, scene, APART, TWO)


def test_what_was_cut_is_bound_again_only_by_who_may_see_both_ends(tmp_path: Path) -> None:
    """An operator who may not see `b` can't bring its channel back with the owner's own file."""

    async def scene(host: Host) -> None:
        await host.up()
        (number,) = ports(host).values()
        await host.handle(wire.Cut(number), Client("op"))
        with pytest.raises(Denied):
            await host.handle(wire.Connect("a", "b"), Client("helper"))
        result = await up(host, TWO, uid=HELPER)
        assert ports(host) == {}
        assert len(result.refused) == 1
        await up(host, TWO)
        assert len(ports(host)) == 1

    play(tmp_path, scene, POLICY, TWO)


def test_a_stopped_domain_is_not_given_another_label_by_who_may_not_load_a_policy(
    tmp_path: Path,
) -> None:
    """A start that is allowed under the new label does not stand for the owner's name."""
    other = OPERATED

    async def scene(host: Host) -> None:
        await host.up()
        await host.handle(wire.Kill("b"), Client("helper"))
        with pytest.raises(Denied):
            await up(host, other, uid=HELPER)
        assert str(host.node.setup.labels["b"]) == "blue"
        await up(host, other)
        assert str(host.node.setup.labels["b"]) == "red"

    play(tmp_path, scene, POLICY, TWO)


def test_a_policy_of_who_may_load_none_is_not_even_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs neither the node nor its manager anything. The control: the owner's is read."""
    read: list[str] = []

    def counting(files: Any) -> Any:
        read.append(files.path)
        return make_setup(files)

    monkeypatch.setattr("skerry.node.reconcile.make_setup", counting)
    newer = POLICY.replace('"1.0"', '"1.1"')

    async def scene(host: Host) -> None:
        await host.up()
        with pytest.raises(Denied):
            await up(host, OPERATED, newer, uid=HELPER, dry_run=True)
        assert read == []
        await up(host, OPERATED, newer, dry_run=True)
        assert len(read) == 1

    play(tmp_path, scene, POLICY, OPERATED)
