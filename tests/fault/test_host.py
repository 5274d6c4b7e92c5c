"""A host that fails under a node: disks that are full or read-only, clocks that jump.

One node each, on a simulated disk whose files fail one by one, with everything else real.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import traceback
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from skerry.audit.disk import Disk
from skerry.audit.writer import AuditTrail
from skerry.deaths import DEATHS
from skerry.errors import AuditUnavailable, Denied
from skerry.machine.simulator.disk import SimulatedDisk
from skerry.node.opening import Opened, World, open_node
from skerry.policy.source import NewPolicy
from skerry.supervisor.client import SupervisorClient
from skerry.system.model import System
from skerry.xsm.explain import Refused
from tests.fault.inside import in_process
from tests.fault.laws import Laws
from tests.fault.oracle import Fact, Ledger, policy_text, system_text
from tests.fault.outside import KeptMachines, NoIdentities, Outside, Store
from tests.support.trail import Broken

RETRY_S = 0.6
"""After that the writers have tried again, in seconds."""


class PartlyFailingDisk:
    """A simulated disk on which the operations of one file fail."""

    def __init__(self) -> None:
        self.whole = SimulatedDisk()
        self.failing = ""
        self.error = errno.ENOSPC
        self.operations: tuple[str, ...] = WRITING
        self._names: dict[int, str] = {}

    def open(self, path: Path) -> int:
        """Open, and remember which file it is."""
        fd = self.whole.open(path)
        self._names[fd] = path.name
        return fd

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self.whole, name)

        def checked(first: int | Path, *more: Any) -> Any:
            file = self._names.get(first, "") if isinstance(first, int) else first.name
            if self.failing and file.startswith(self.failing) and name in self.operations:
                raise OSError(self.error, "the disk fails")
            return operation(first, *more)

        return checked


WRITING = ("append", "sync", "allocate", "truncate", "rename", "remove", "sync_folder")
GROWING = ("append", "allocate")
"""What fails on a disk that is only full."""


class Scene:
    """A node with `d1` and `d3` and a channel between them, which may be started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outside = Outside()
        self.disk = PartlyFailingDisk()
        self.ledger = Ledger()
        self.outside.moment = self.ledger.moment
        self.laws = Laws(self.outside, self.disk.whole, folder)
        self.now = 0.0
        self.opened: Opened
        self.channel = 0

    async def begin(self) -> None:
        """Open the node, fresh or after a kill."""

        def machines(system: System, store: SupervisorClient, ids: Any) -> KeptMachines:
            return KeptMachines(self.outside, system, store, ids)

        def trail(path: Path, disk: Disk) -> AuditTrail:
            return AuditTrail.open(path, disk, wall=lambda: self.wall)

        disk: Any = self.disk
        world = World(disk, self.clock, lambda *_: NoIdentities(), machines, trail, in_process)
        exits = contextlib.AsyncExitStack()
        path = self.folder / "system.toml"
        self.opened = await open_node(path, Store(self.outside), lambda _: None, exits, world)
        if self.opened.recovery is not None:
            await self.opened.recovery.adopt()

    wall = 1_700_000_000_000_000_000

    def clock(self) -> float:
        """Return the monotonic clock of this world."""
        return asyncio.get_running_loop().time() + self.now

    async def fill(self) -> None:
        """Start two domains and bind."""
        node = self.opened.node
        for name in ("d1", "d3"):
            await self.do("start", node.start(node.setup.owner, name), name=name)
        fact = self.ledger.ask("connect", ends=("d1", "d3"))
        self.channel = (await node.monitor.bind("d1", "d3")).number
        self.ledger.answer(fact, (self.channel, None))

    async def do(self, kind: str, work: Awaitable[Any], **about: Any) -> Any:
        """Run a command that succeeds."""
        fact: Fact = self.ledger.ask(kind, **about)
        done = await work
        self.ledger.answer(fact, {} if kind == "start" else None)
        return done

    def kill(self) -> None:
        """End the node as a kill does: nothing of it acts any more, and the disk crashes."""
        self.disk.failing = ""
        self.disk.whole.crash()
        self.outside.release()

    async def live(self) -> set[int]:
        """Return the channels that are live."""
        return {channel.number for channel in self.opened.node.monitor.channels}


def play(folder: Path, scene: Callable[[Scene], Awaitable[None]]) -> None:
    """Run a scene in a process of its own: what a killed node held is never closed."""
    (folder / "system.toml").write_text(system_text())
    (folder / "wide.toml").write_text(policy_text("wide"))
    said = folder / "said"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.environ["SKERRY_HOME"] = str(folder)
            asyncio.run(_play(folder, scene))
            code = 0
        except BaseException:
            said.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0, said.read_text()


async def _play(folder: Path, scene: Callable[[Scene], Awaitable[None]]) -> None:
    world = Scene(folder)
    async with asyncio.timeout(30):
        await world.begin()
        await world.fill()
        await scene(world)
    os._exit(0)  # the threads of killed nodes do not end


def test_a_node_opens_no_system_whose_assertion_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file may have changed since `up` proved it; without the assertion, all tests here open
    it."""
    (tmp_path / "system.toml").write_text(system_text() + '[[assert]]\nnever = "d1 -> d3"\n')
    (tmp_path / "wide.toml").write_text(policy_text("wide"))
    monkeypatch.setenv("SKERRY_HOME", str(tmp_path))
    world = Scene(tmp_path)
    with pytest.raises(Refused, match="never d1 -> d3 does not hold: d1 -> d3"):
        asyncio.run(world.begin())


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
@pytest.mark.parametrize("file", ["audit.log", "journal.log"])
def test_a_disk_that_fails_denies_and_nothing_is_half_done(
    tmp_path: Path, file: str, error: int
) -> None:
    """Bind, start, load and relabel are denials; a cut works; after a kill all is as answered.

    The control: once the disk is mended, each of them is done.
    """

    async def scene(world: Scene) -> None:
        node = world.opened.node
        owner, monitor = node.setup.owner, node.monitor
        narrow = NewPolicy("narrow.toml", policy_text("narrow").encode())

        def attempts() -> dict[str, Awaitable[Any]]:
            return {
                "bind": monitor.bind("d1", "d3"),
                "start": node.start(owner, "d4"),
                "load": node.load("policy_load", owner, narrow, what="narrow"),
                "relabel": node.relabel(owner, "d3", "n"),
            }

        before = await world.live()
        world.disk.failing, world.disk.error = file, error
        for name, attempt in attempts().items():
            with pytest.raises(Denied):
                await attempt
                pytest.fail(f"{name} was done")
        assert await world.live() == before
        assert str(monitor.domain("d3").label) == "rb"
        assert monitor.mediator.decider.generation == 1
        assert "d4" not in world.outside.all or world.outside.all["d4"].exit is not None
        monitor.cut(world.channel)
        assert await world.live() == set()
        world.disk.failing = ""
        await asyncio.sleep(RETRY_S)
        for attempt in attempts().values():
            await attempt
        assert monitor.mediator.decider.generation == 2
        assert str(monitor.domain("d3").label) == "n"
        world.kill()
        await world.begin()
        assert world.opened.node.monitor.mediator.decider.generation == 2
        recovery = world.opened.recovery
        assert recovery is not None
        assert set(recovery.found.domains) == {"d1", "d3", "d4"}
        assert world.channel not in await world.live()

    play(tmp_path, scene)


@pytest.mark.parametrize("file", ["audit.log", "journal.log"])
def test_a_node_that_comes_back_to_a_full_disk_goes_on_and_denies(
    tmp_path: Path, file: str
) -> None:
    """What stood is adopted and can be taken away; what is new is denied until there is room."""

    async def scene(world: Scene) -> None:
        world.kill()
        world.disk.failing, world.disk.operations = file, GROWING
        await world.begin()
        monitor = world.opened.node.monitor
        assert await world.live() == {world.channel}
        with pytest.raises(Denied):
            await monitor.bind("d1", "d3")
        world.disk.failing = ""
        await asyncio.sleep(RETRY_S)
        second = await monitor.bind("d1", "d3")
        world.disk.failing = file
        monitor.cut(second.number)
        monitor.kill("d3")
        assert await world.live() == set()

    play(tmp_path, scene)


def test_a_node_that_comes_back_to_a_read_only_trail_ends(tmp_path: Path) -> None:
    """It says so; the supervisor then stops everything. The control: mended, all goes on."""

    async def scene(world: Scene) -> None:
        world.kill()
        world.disk.failing, world.disk.error = "audit.log", errno.EROFS
        with pytest.raises(AuditUnavailable, match="cannot be opened"):
            await world.begin()
        world.kill()
        await world.begin()
        assert await world.live() == {world.channel}

    play(tmp_path, scene)


def test_a_grant_ends_at_its_time_though_the_wall_clock_jumps(tmp_path: Path) -> None:
    """A day forwards or back ends nothing and prolongs nothing, also across a restart."""
    day = 86_400 * 10**9

    async def scene(world: Scene) -> None:
        monitor = world.opened.node.monitor
        short = await monitor.bind("d1", "d3", for_s=0.2)
        long = await monitor.bind("d1", "d3", for_s=60.0)
        for jump in (day, -3 * day):
            world.wall += jump
            await monitor.bind("d1", "d3")
            assert {short.number, long.number} <= await world.live()
        await asyncio.sleep(0.25)
        assert short.number not in await world.live()
        assert long.number in await world.live()
        world.kill()
        world.wall += 5 * day
        world.now += 30.0
        await world.begin()
        channel = world.opened.node.monitor.channels.get(long.number)
        assert channel.timer is not None
        left = channel.timer.when() - asyncio.get_running_loop().time()
        assert 25 < left < 30
        world.kill()
        world.now += 31.0
        await world.begin()
        await asyncio.sleep(0.01)
        assert long.number not in await world.live()
        world.laws._records({})  # the chain holds whatever the clock said

    play(tmp_path, scene)


def test_the_laws_of_these_scenes_can_fail(tmp_path: Path) -> None:
    """A whole check finds the scene sound, and one that says otherwise is found."""

    async def scene(world: Scene) -> None:
        await world.laws.check(world.opened, world.ledger, world.clock)
        world.ledger = Ledger()
        fact = world.ledger.ask("cut", number=world.channel)
        world.ledger.answer(fact)
        with pytest.raises(Broken):
            await world.laws.check(world.opened, world.ledger, world.clock)

    play(tmp_path, scene)


def test_what_was_killed_and_is_not_seen_dead_is_recorded(tmp_path: Path) -> None:
    """What a cut could not wait for goes to the trail of the node that cuts."""

    async def scene(world: Scene) -> None:
        noted: list[tuple[str, Mapping[str, object]]] = []
        trail: Any = world.opened.trail
        trail.note = lambda event, fields: noted.append((event, fields))
        reading, writing = os.pipe()
        assert not DEATHS.wait("a helper", pipes=[reading])
        os.close(writing)
        assert DEATHS.wait("a helper", pipes=[reading])
        assert [(event, fields["what"]) for event, fields in noted] == [
            ("not-seen-dead", "a helper")
        ]

    play(tmp_path, scene)
