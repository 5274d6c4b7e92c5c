"""A node of simulated domains whose guests call it, and a loop on which time is an argument."""

from __future__ import annotations

import asyncio
import itertools
import random
import selectors
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from skerry.machine.simulator.machine import SimulatedMachine
from skerry.monitor.mediate import Parties
from skerry.node.hypercalls import Hypercalls
from skerry.xsm.request import Verdict
from tests.unit.control.test_calls import Host

POLICY = """
[policy]
name = "services"
version = "1.0"
bootstrap = "op"
[simple-type-enforcement]
types = ["books", "mail", "far"]
[chinese-wall]
types = ["north", "south"]
[[chinese-wall.conflicts]]
name = "rivals"
types = ["north", "south"]
history = true
[labels.op]
ste = ["books", "mail", "far"]
[labels.ledger]
ste = ["books"]
[labels.bank]
ste = ["books", "mail"]
[labels.stranger]
ste = ["far"]
[labels.north]
ste = ["mail"]
cw = ["north"]
[labels.south]
ste = ["mail"]
cw = ["south"]
"""
"""`bank` may be bound to `ledger`, `north` and `south` (but of those only to one side of the wall);
`stranger` to nobody."""

SYSTEM = """
name = "services"
policy = "policy.toml"
[domains.ledger]
label = "ledger"
machine = "simulator"
[domains.ledger-2]
label = "ledger"
machine = "simulator"
[domains.bank]
label = "bank"
machine = "simulator"
[domains.stranger]
label = "stranger"
machine = "simulator"
[domains.north]
label = "north"
machine = "simulator"
[domains.south]
label = "south"
machine = "simulator"
autostart = false
[services.ledger]
offered-by = "ledger"
[services.spare]
offered-by = "ledger"
[services.board]
offered-by = "ledger"
public = true
[services.north]
offered-by = "north"
[services.south]
offered-by = "south"
"""

_ids = itertools.count(1)


class Said(NamedTuple):
    """One answer: how it ended, its code, and its fields."""

    end: str
    code: str
    fields: Mapping[str, str]


class Guest:
    """What a program in a simulated guest does with its port."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self.machine = machine
        self.unasked: list[tuple[str, Mapping[str, str]]] = []
        self._said: dict[str, Said] = {}
        self._fields: dict[str, str] = {}
        self._rest = b""

    async def call(self, words: str, seconds: float = 10.0) -> Said:
        """Call and wait for the answer."""
        return await self.answer(self.send(words), seconds)

    def send(self, words: str) -> str:
        """Write a call and return its ID."""
        return self.send_all(words)[0]

    def send_all(self, *calls: str) -> list[str]:
        """Write calls at once and return their IDs."""
        identities = [f"t{next(_ids)}" for _ in calls]
        lines = (
            f"1 {identity} {words}\n" for identity, words in zip(identities, calls, strict=True)
        )
        written = "".join(lines).encode()
        assert self.machine.guest.call(written) == len(written), "the port takes no more"
        return identities

    async def answer(self, identity: str, seconds: float = 10.0) -> Said:
        """Wait for the answer to a call."""
        async with asyncio.timeout(seconds):
            while identity not in self._said:
                self.read()
                await asyncio.sleep(0.001)
        return self._said.pop(identity)

    async def told(self, event: str, seconds: float = 10.0) -> Mapping[str, str]:
        """Wait until the node says something unasked, and take it."""
        async with asyncio.timeout(seconds):
            while True:
                self.read()
                for item in self.unasked:
                    if item[0] == event:
                        self.unasked.remove(item)
                        return item[1]
                await asyncio.sleep(0.001)

    def read(self) -> None:
        """Take what has come."""
        *lines, self._rest = (self._rest + self.machine.guest.answers()).split(b"\n")
        for line in lines:
            self._line(line.decode())

    def _line(self, line: str) -> None:
        if not line:
            return
        version, identity, end, *rest = line.split(" ", 4)
        assert version == "1"
        if end == "is":
            self._fields[rest[0]] = rest[1]
            return
        said = Said(end, rest[0] if rest else "", self._fields)
        self._fields = {}
        if identity.startswith("-"):
            self.unasked.append((identity, said.fields))
        else:
            self._said[identity] = said


class Services(Host):
    """The system above; `quantum_s` is how answers that say nothing are timed."""

    def __init__(
        self, folder: Path, quantum_s: float = 0.01, policy: str = POLICY, system: str = SYSTEM
    ) -> None:
        super().__init__(folder, policy, system)
        node = self.node
        node.hypercalls = Hypercalls(self.monitor, lambda: node.setup, quantum_s=quantum_s)
        self._guests: dict[SimulatedMachine, Guest] = {}

    def guest(self, name: str) -> Guest:
        """Return the guest of a domain, as it is now."""
        machine = self.machines[name]
        return self._guests.setdefault(machine, Guest(machine))

    def open_channels(self) -> dict[int, str]:
        """Return the channels that were asked for by a name."""
        return {channel.number: channel.asked for channel in self.monitor.channels if channel.asked}


def slowly(host: Services) -> None:
    """Let decisions and records take what they take when others decide and write."""
    chance = random.Random(7)
    decider, append = host.monitor.mediator.decider, host.audit.append
    decide: Callable[[str, Parties], object] = decider.decide

    async def slow_decide(hook: str, parties: Parties) -> Verdict:
        await asyncio.sleep(chance.uniform(0.0005, 0.004))
        return await decide(hook, parties)  # type: ignore[misc, no-any-return] # as it was

    async def slow_append(event: str, fields: Mapping[str, object]) -> int:
        number = await append(event, fields)  # whose order is that of the calls
        await asyncio.sleep(chance.uniform(0.0001, 0.001))
        return number

    decider.decide = slow_decide  # type: ignore[method-assign]
    host.audit.append = slow_append  # type: ignore[method-assign]


Scene = Callable[[Services], Awaitable[None]]


def play(folder: Path, scene: Scene, **changes: Any) -> None:
    """Run one scene on a system that is up, and bring it down."""
    asyncio.run(_play(folder, scene, changes))


def play_in_no_time(folder: Path, scene: Scene, **changes: Any) -> None:
    """Run one scene on a loop whose clock jumps to the next timer: its times are exact."""
    with asyncio.Runner(loop_factory=TimelessLoop) as runner:
        runner.run(_play(folder, scene, changes))


async def _play(folder: Path, scene: Scene, changes: Mapping[str, Any]) -> None:
    host = Services(folder, **changes)
    try:
        await host.up()
        assert [event for event in host.events if event["event"] == "refused"] == []
        await scene(host)
    finally:
        await host.node.down(0.1)
        await host.monitor.settle()
        await host.node.hypercalls.close()


class _Selector(selectors.DefaultSelector):
    """Finds what is ready, and lets the time pass that would have been waited."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready now; where nothing is, the wait is over."""
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:  # only another thread or the world can go on
            return super().select(None)
        self.passed += timeout
        return []


class TimelessLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: its clock is moved instead."""

    def __init__(self) -> None:
        self._passing = _Selector()
        super().__init__(self._passing)

    def time(self) -> float:
        """Return the seconds that were waited so far."""
        return self._passing.passed
