"""What can be taken away after a restart, while a machine does not answer its new node."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from skerry.channel.stream import StreamBridge, StreamBridges
from skerry.errors import NotFound, StateError
from skerry.machine.qemu.launch import KEPT
from skerry.monitor.domain import State
from skerry.node import recover
from skerry.node.journal import SIDES, NodeJournal, twin_name
from skerry.node.recover import Recovery, end_unknown
from skerry.node.standing import ChannelEntry, DomainEntry, Footprint, Standing
from skerry.supervisor.client import Inherited, Process
from tests.support.monitor import ToyMachine, World, label

NAMES = ("frozen", "awake", "other")
BETWEEN = {1: ("frozen", "awake"), 2: ("awake", "other"), 3: ("frozen", "other")}


class Store:
    """A supervisor that takes everything."""

    async def keep(self, fds: Mapping[str, int]) -> None:
        """Do nothing."""

    async def drop(self, *names: str) -> None:
        """Do nothing."""


class Held(Process):
    """A process that the supervisor holds; it notes that it was killed, and may then end."""

    def __init__(self, *, mortal: bool = True) -> None:
        super().__init__(0, -1)
        self.killed = False
        self.mortal = mortal

    def kill(self) -> None:
        """End."""
        self.killed = True
        if self.mortal and not self.exited.done():
            self.exited.set_result(-9)


class Left(ToyMachine):
    """A machine of an earlier node; it answers when `thawed` is set."""

    def __init__(self, thawed: asyncio.Event) -> None:
        super().__init__()
        self.thawed = thawed
        self.running = True
        self.attached: frozenset[int] = frozenset()

    async def adopt(self) -> None:
        """Wait."""
        await self.thawed.wait()


def incarnation(name: str) -> str:
    """Return the one that each domain has here."""
    return f"d/{name}/1"


class Scene:
    """Three machines of an earlier node with a channel between each two; one does not answer."""

    def __init__(self) -> None:
        self.thaw = asyncio.Event()
        self.left: dict[str, Left] = {}
        self.bridges = StreamBridges()
        self.minted: list[StreamBridge] = []
        self.journal: NodeJournal
        self.world: World
        self.recovery: Recovery

    async def begin(self, folder: Path, *, over: int = 0) -> None:
        """Restart; the time of channel `over` is over."""
        kept: dict[str, int] = {}
        standing = Standing()
        awake = asyncio.Event()
        awake.set()
        for name in NAMES:
            entry = DomainEntry(name, label(name), 0.0, Footprint(incarnation(name), "toy"))
            standing.domains[incarnation(name)] = entry
            machine = self.left[name] = Left(self.thaw if name == "frozen" else awake)
            machine.attached = frozenset(n for n, ends in BETWEEN.items() if name in ends)
            kept |= {f"{incarnation(name)}.{part}": os.dup(0) for part in KEPT}
        for number, (source, sink) in BETWEEN.items():
            bridge = self.bridges.mint()
            self.minted.append(bridge)
            twins = [os.dup(bridge.twins[side]) for side in SIDES]
            kept |= zip((twin_name(number, side) for side in SIDES), twins, strict=True)
            ends = incarnation(source), incarnation(sink)
            for_s = -1.0 if number == over else None
            standing.channels[number] = ChannelEntry(
                number, "stream", *ends, f"ch{number}", False, 1, 1, 0.0, for_s
            )
        self.journal = await NodeJournal.open(folder / "journal.log", Store(), standing)
        self.world = World(self.journal)
        self.world.allow(*BETWEEN.values())
        processes = {incarnation(name): Held() for name in NAMES}

        def heir(entry: DomainEntry, _: Process, kept: Mapping[str, int]) -> Left:
            for descriptor in kept.values():
                os.close(descriptor)
            return self.left[entry.name]

        inherited = Inherited(processes, kept)
        monitor = self.world.monitor
        self.recovery = Recovery(
            monitor, self.journal, inherited, heir, lambda _: None, lambda number, relay: None
        )
        await self.recovery.run(lambda: self.world.decider)

    def state(self, name: str) -> State:
        """Return the state of a domain."""
        return self.world.monitor.domain(name).state

    def live(self) -> set[int]:
        """Return the channels in the table."""
        return {channel.number for channel in self.world.monitor.channels}

    async def end(self) -> None:
        """Cut and close what is left."""
        for number in self.live():
            self.world.monitor.cut(number)
        for bridge in self.minted:
            bridge.cut()
        self.bridges.close()
        await self.world.monitor.settle()
        await self.journal.close()


def test_a_machine_that_does_not_answer_keeps_nothing_from_being_taken_away(
    tmp_path: Path,
) -> None:
    """Before any machine was adopted channels are cut and a domain is killed; others go on."""

    async def main() -> None:
        scene = Scene()
        await scene.begin(tmp_path)
        monitor = scene.world.monitor
        assert scene.live() == {1, 2, 3}
        assert monitor.running() == tuple(sorted(label(name) for name in NAMES))
        with pytest.raises(StateError, match="starting"):
            await monitor.bind("frozen", "awake")
        monitor.cut(1)
        with pytest.raises(NotFound):
            monitor.cut(1)
        adopting = asyncio.ensure_future(scene.recovery.adopt())
        await asyncio.sleep(0.05)
        assert (scene.state("awake"), scene.state("frozen")) == (State.RUNNING, State.STARTING)
        assert scene.live() == {2, 3}
        assert "detach" in scene.left["awake"].calls
        monitor.kill("frozen")
        await monitor.domain("frozen").gone.wait()
        assert scene.live() == {2}
        assert not adopting.done()
        scene.thaw.set()
        await adopting
        found = scene.recovery.found
        assert (set(found.domains), set(found.ended)) == ({"awake", "other"}, {"frozen"})
        assert (found.channels, set(found.cut)) == ([2], {1, 3})
        await scene.end()

    asyncio.run(main())


def test_a_grant_whose_time_is_over_ends_before_any_machine_answers(tmp_path: Path) -> None:
    """The channel is cut though one of its machines is frozen; the others stay."""

    async def main() -> None:
        scene = Scene()
        await scene.begin(tmp_path, over=3)
        await asyncio.sleep(0.05)
        assert scene.live() == {1, 2}
        scene.thaw.set()
        await scene.recovery.adopt()
        assert {scene.state(name) for name in NAMES} == {State.RUNNING}
        await scene.end()

    asyncio.run(main())


def test_a_machine_that_never_answers_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time it and its channels go, and the report says so; the rest goes on."""

    async def main() -> None:
        monkeypatch.setattr(recover, "ADOPT_S", 0.05)
        scene = Scene()
        await scene.begin(tmp_path)
        await scene.recovery.adopt()
        assert "does not answer" in scene.recovery.found.ended["frozen"]
        assert set(scene.recovery.found.cut) == {1, 3}
        assert scene.live() == {2}
        await scene.world.monitor.domain("frozen").gone.wait()
        await scene.end()

    asyncio.run(main())


def test_what_nobody_adopts_is_ended_together_and_waited_for_briefly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half-started machines and helpers are killed before a uid is given out; what stands is not.

    One that does not end holds up nobody for long.
    """

    async def main() -> None:
        monkeypatch.setattr(recover, "END_S", 0.1)
        standing = Standing()
        standing.domains["d/a/1"] = DomainEntry("a", label("a"), 0.0, Footprint("d/a/1", "toy"))
        names = ("d/a/1", "d/b/1", "policy-manager", "d/c/1", "d/d/1")
        processes = {name: Held(mortal=name != "d/c/1") for name in names}
        began = asyncio.get_running_loop().time()
        await end_unknown(Inherited(processes, {}), standing)
        assert asyncio.get_running_loop().time() - began < 1
        assert {name for name, process in processes.items() if process.killed} == set(names[1:])

    asyncio.run(main())
