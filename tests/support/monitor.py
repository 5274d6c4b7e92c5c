"""Stand-ins for what the monitor needs: small, in memory, and able to fail or wait on command."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from skerry.channel.stream import StreamBridges
from skerry.errors import AuditUnavailable, MachineError, StaleGeneration, UnknownLabel
from skerry.label import Label
from skerry.monitor.journal import Journal
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Exit, Kind
from skerry.xsm.request import Answer, Decision, Request, Verdict
from skerry.xsm.stack import Stack
from tests.support.relays import BareRelays


def label(text: str) -> Label:
    """Make a label with one part."""
    return Label((("toy", text),))


class ToyDecider:
    """Lets the pairs in `allowed` talk and the labels in `conflicts` not run together.

    `gate`, when set to an event, makes every answer wait for it after it was computed: the way
    to put a change of policy between a decision and its effect. With `remembers` it is asked of all
    whom channels join.
    """

    def __init__(self) -> None:
        self.generation = 1
        self.allowed: set[frozenset[str]] = set()
        self.conflicts: set[frozenset[str]] = set()
        self.unknown: set[str] = set()
        self.gate: asyncio.Event | None = None
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.touched: list[tuple[str, ...]] = []
        self.remembers = False

    def candidate(
        self, stack: Stack, sources: Sequence[object] = (), *, loading: bool = False
    ) -> ToyDecider:
        """Return a decider of the next generation, to be given its rules."""
        other = ToyDecider()
        other.generation = self.generation + 1
        return other

    async def remember(self, candidate: ToyDecider) -> None:
        """Do nothing."""

    def install(self, candidate: ToyDecider) -> int:
        """Take over a candidate's rules."""
        if candidate.generation != self.generation + 1:
            raise StaleGeneration("another came first")
        self.allowed, self.conflicts = candidate.allowed, candidate.conflicts
        self.unknown, self.generation = candidate.unknown, candidate.generation
        return self.generation

    def carry(self, label: Label) -> Label:
        """Return the label, unless it is in `unknown`."""
        if str(label) in self.unknown:
            raise UnknownLabel(f"no label {label}")
        return label

    async def foresee(self, channels: Collection[tuple[str, Label, Label]]) -> None:
        """Do nothing."""

    def load(self, allowed: Collection[frozenset[str]]) -> None:
        """Bring other rules into force."""
        self.allowed = set(allowed)
        self.generation += 1

    async def decide(self, hook: str, parties: Mapping[str, Label]) -> Verdict:
        """Answer by `allowed` for channels; operators may do everything."""
        self.asked.append((hook, {role: str(label) for role, label in parties.items()}))
        generation = self.generation
        one, other = parties.get("source"), parties.get("sink")
        yes = one is None or other is None or frozenset({str(one), str(other)}) in self.allowed
        if self.gate is not None:
            await self.gate.wait()
        some = next(iter(parties.values()))
        request = Request(one or some, other or some, "event", ("bind",))
        answer = Answer("toy", yes, "TOY-YES" if yes else "TOY-NO", "the toy says so")
        return Verdict(hook, yes, (Decision(request, yes, (answer,), generation),), (), generation)

    async def admit(self, label: Label, running: tuple[Label, ...]) -> Verdict:
        """Answer by `conflicts`."""
        await asyncio.sleep(0)
        yes = not any(frozenset({str(label), str(other)}) in self.conflicts for other in running)
        answer = Answer("toy", yes, "TOY-YES" if yes else "TOY-WALL", "the toy says so")
        return Verdict("domain_create", yes, (), (answer,), self.generation)

    async def admit_bind(self, *labels: Label) -> Verdict:
        """Always yes."""
        return Verdict("channel_two_way", True, (), (), self.generation)

    async def touch(self, *labels: Label) -> None:
        """Remember the call."""
        self.touched.append(tuple(map(str, labels)))


class ToyAudit:
    """Keeps records in memory; `dead` refuses, `gate` delays what `append` acknowledges."""

    def __init__(self) -> None:
        self.records: list[tuple[str, dict[str, object]]] = []
        self.dead = False
        self.gate: asyncio.Event | None = None

    async def append(self, event: str, fields: Mapping[str, object]) -> int:
        """Record, or refuse if dead."""
        if self.dead:
            raise AuditUnavailable("the audit trail cannot be written")
        if self.gate is not None:
            await self.gate.wait()
        self.records.append((event, dict(fields)))
        return len(self.records)

    def note(self, event: str, fields: Mapping[str, object]) -> None:
        """Record if alive."""
        if not self.dead:
            self.records.append((event, dict(fields)))

    def events(self, name: str) -> list[dict[str, object]]:
        """Return the fields of every record of one event."""
        return [fields for event, fields in self.records if event == name]


class ToyMachine:
    """A machine that holds duplicates of its ends; fails where `fails` says."""

    kind = "toy"

    def __init__(self, fails: Collection[str] = ()) -> None:
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.fails = set(fails)
        self.ends: dict[int, int] = {}
        self.ports: dict[int, str] = {}
        self.calls: list[str] = []

    async def _step(self, name: str) -> None:
        await asyncio.sleep(0)
        self.calls.append(name)
        if name in self.fails:
            raise MachineError(f"{name} failed")

    async def prepare(self) -> None:
        """Do nothing, or fail."""
        await self._step("prepare")

    async def resume(self) -> None:
        """Do nothing, or fail."""
        await self._step("resume")

    async def pause(self) -> None:
        """Do nothing, or fail."""
        await self._step("pause")

    async def shutdown(self, deadline_s: float) -> None:
        """End, or fail."""
        await self._step("shutdown")
        self.die("shut down")

    def kill(self) -> None:
        """End at once."""
        self.die("killed")

    def die(self, reason: str) -> None:
        """End for a reason; the descriptors go as with a process."""
        if not self.exited.done():
            self.exited.set_result(Exit(0, reason))
            for end in self.ends.values():
                os.close(end)
            self.ends.clear()

    async def attach(self, channel: int, kind: Kind, port: str, *ends: int) -> None:
        """Keep a duplicate."""
        await self._step("attach")
        if self.exited.done():
            raise MachineError("it has ended")
        self.ends[channel] = os.dup(ends[0])
        self.ports[channel] = port

    async def detach(self, channel: int) -> None:
        """Close the duplicate."""
        await self._step("detach")
        if channel in self.ends:
            os.close(self.ends.pop(channel))


class World:
    """A monitor with its stand-ins, and shorthands for tests."""

    def __init__(self, journal: Journal | None = None, **limits: int) -> None:
        self.decider = ToyDecider()
        self.audit = ToyAudit()
        self.now = 0.0
        self.operator = label("operator")
        self.machines: dict[str, ToyMachine] = {}
        self.relays = BareRelays()
        self.monitor = Monitor(
            self.decider,
            self.audit,
            {"stream": StreamBridges(relay=self.relays.start)},
            lambda: self.now,
            journal=journal,
            **limits,
        )

    def maker(self, name: str, fails: Collection[str] = ()) -> Callable[[], ToyMachine]:
        """Return what makes the machine of a domain."""

        def make() -> ToyMachine:
            self.machines[name] = ToyMachine(fails)
            return self.machines[name]

        return make

    async def run(self, *names: str) -> None:
        """Start domains named like their labels and let them run."""
        for name in names:
            await self.monitor.start(self.operator, name, label(name), self.maker(name))
            await self.monitor.resume(self.operator, name)

    def allow(self, *pairs: tuple[str, str]) -> None:
        """Let these pairs talk."""
        self.decider.allowed |= {frozenset(pair) for pair in pairs}

    def end(self, name: str, channel: int) -> int:
        """Return the descriptor that a machine holds of a channel."""
        return self.machines[name].ends[channel]

    def close(self) -> None:
        """End everything, so that no descriptor is left."""
        for machine in self.machines.values():
            machine.kill()
        for channel in self.monitor.channels:
            self.monitor.cut(channel.number)


def play(
    scene: Callable[[World], Awaitable[None]], journal: Journal | None = None, **limits: int
) -> None:
    """Run one scene in a fresh world, and end what it left."""

    async def run() -> None:
        world = World(journal, **limits)
        try:
            await scene(world)
        finally:
            world.close()
            await world.monitor.settle()
            await world.relays.ended()

    asyncio.run(run())


def carries(world: World, channel: int, source: str, sink: str) -> bool:
    """Say whether a byte written at one end arrives at the other now."""
    try:
        os.write(world.end(source, channel), b"x")
        os.set_blocking(world.end(sink, channel), False)
        return os.read(world.end(sink, channel), 10) == b"x"
    except (BlockingIOError, BrokenPipeError, ConnectionResetError, KeyError):
        return False
