"""What an earlier node left: its machines and channels, and a recovery that takes them over."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

from skerry.channel.one_way import OneWayBridge
from skerry.channel.stream import StreamBridge, StreamBridges
from skerry.machine.qemu.launch import KEPT
from skerry.monitor.domain import State
from skerry.node.bridges import AllBridges
from skerry.node.journal import NodeJournal, twin_name
from skerry.node.recover import Recovery
from skerry.node.relays import relay_name
from skerry.node.resources import Resources
from skerry.node.standing import ChannelEntry, DomainEntry, Footprint, Standing
from skerry.supervisor.client import Inherited, Process
from skerry.wire.memory import Identity
from tests.support.monitor import ToyMachine, World, label
from tests.support.relays import BareRelays

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

    def expect(self, channel: int, memory: Identity) -> None:
        """It has no memory."""

    async def verify(self) -> None:
        """Nor has it another."""


def incarnation(name: str) -> str:
    """Return the one that each domain has here."""
    return f"d/{name}/1"


class Scene:
    """Three machines of an earlier node with channels between them; one does not answer."""

    def __init__(
        self, between: Mapping[int, tuple[str, str]] = BETWEEN, *, one_way: bool = False
    ) -> None:
        self.between, self.one_way = between, one_way
        self.thaw = asyncio.Event()
        self.left: dict[str, Left] = {}
        self.relays = BareRelays()
        self.bridges = StreamBridges(relay=self.relays.start)
        self.minted: dict[int, StreamBridge | OneWayBridge] = {}
        self.watched: list[int] = []
        self.journal: NodeJournal
        self.world: World
        self.recovery: Recovery

    async def begin(
        self, folder: Path, *, over: int = 0, gone: Collection[str] = (), relayless: int = 0
    ) -> None:
        """Restart: channel `over` is over, domains `gone` are, as is the relay of `relayless`."""
        standing, kept = Standing(), dict[str, int]()
        awake = asyncio.Event()
        awake.set()
        for name in NAMES:
            entry = DomainEntry(name, label(name), 0.0, Footprint(incarnation(name), "toy"))
            standing.domains[incarnation(name)] = entry
            machine = self.left[name] = Left(self.thaw if name == "frozen" else awake)
            machine.attached = frozenset(n for n, ends in self.between.items() if name in ends)
            kept |= {f"{incarnation(name)}.{part}": os.dup(0) for part in KEPT}
        for number, ends in self.between.items():
            kept |= await self._mint(number)
            for_s = -1.0 if number == over else None
            source, sink = (incarnation(end) for end in ends)
            standing.channels[number] = ChannelEntry(
                number, "stream", source, sink, f"ch{number}", self.one_way, 1, 1, 0.0, for_s
            )
        if relayless:
            self.relays.started[relayless].kill()
            await self.relays.started[relayless].exited
        self.journal = await NodeJournal.open(folder / "journal.log", Store(), standing)
        self.world = World(self.journal)
        self.world.allow(*self.between.values())
        processes = {incarnation(name): Held() for name in NAMES if name not in gone}
        relays = {relay_name(n): cast(Held, r) for n, r in self.relays.started.items()}
        inherited = Inherited({**processes, **relays}, kept)
        self.recovery = Recovery(
            self.world.monitor,
            self.journal,
            inherited,
            self._heir,
            lambda _: None,
            self._watch,
            AllBridges(self.bridges, Resources({})).adopt,
        )
        await self.recovery.run(lambda: self.world.decider)

    async def _mint(self, number: int) -> dict[str, int]:
        bridge = self.minted[number] = self.bridges.mint(self.one_way)
        await bridge.open(number)
        return {twin_name(number, side): os.dup(twin) for side, twin in bridge.twins.items()}

    def _heir(self, entry: DomainEntry, _: Process, kept: Mapping[str, int]) -> Left:
        for descriptor in kept.values():
            os.close(descriptor)
        return self.left[entry.name]

    def _watch(self, number: int, _: object) -> None:
        self.watched.append(number)

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
        for bridge in self.minted.values():
            bridge.cut()
        self.bridges.close()
        await self.world.monitor.settle()
        await self.relays.ended()
        await self.journal.close()
