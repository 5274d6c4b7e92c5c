"""The laws under random commands: the real modules and bridges, machines in memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from skerry.channel.stream import StreamBridges
from skerry.errors import SkerryError
from skerry.label import Label
from skerry.monitor.domain import ALIVE, State
from skerry.monitor.monitor import Monitor
from skerry.monitor.table import Phase
from skerry.policy.history import MemoryHistory
from skerry.policy.load import parse_acm
from skerry.policy.manager import PolicyManager
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.stack import Stack
from tests.support.monitor import ToyAudit, ToyMachine

POLICY = b"""
[policy]
name = "laws"
version = "1.0"
bootstrap = "op"
[simple-type-enforcement]
types = ["op", "red", "blue"]
[chinese-wall]
types = ["x", "y"]
[[chinese-wall.conflicts]]
name = "rivals"
types = ["x", "y"]
[labels.op]
ste = ["op", "red", "blue"]
[labels.r]
ste = ["red"]
cw = ["x"]
[labels.b]
ste = ["blue"]
cw = ["y"]
[labels.rb]
ste = ["red", "blue"]
[labels.n]
ste = ["red"]
"""
LABELS = ("r", "b", "rb", "n")
TYPES = {"r": {"red"}, "b": {"blue"}, "rb": {"red", "blue"}, "n": {"red"}}
WALL = {"r": "x", "b": "y"}
NAMES = ("d1", "d2", "d3")

_T = TypeVar("_T")
names = st.sampled_from(NAMES)
labels = st.sampled_from(LABELS)


def label(text: str) -> Label:
    """Make a label of the ACM module."""
    return Label((("acm", text),))


class Laws(RuleBasedStateMachine):
    """Random starts, ends, binds, cuts and relabels, with a trail that fails now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.audit = ToyAudit()
        stack = Stack([AcmModule(parse_acm(POLICY, "laws.toml"))])
        self.monitor = Monitor(
            PolicyManager(stack, MemoryHistory()),
            self.audit,
            {"stream": StreamBridges()},
            lambda: 0.0,
        )
        self.held: dict[int, tuple[int, int]] = {}

    def do(self, work: Coroutine[Any, Any, _T]) -> _T | None:
        """Run one command; a refusal or a wrong state is an answer, anything else a failure."""

        async def run() -> _T | None:
            try:
                return await work
            except SkerryError:
                return None
            finally:
                await self.monitor.settle()

        return self.loop.run_until_complete(run())

    def teardown(self) -> None:
        """End everything and leave no descriptor."""

        async def end() -> None:
            for domain in self.monitor.domains.values():
                if domain.state is not State.ENDED:
                    self.monitor.kill(domain.name)
                    await domain.gone.wait()

        self.loop.run_until_complete(end())
        for pair in self.held.values():
            os.close(pair[0])
            os.close(pair[1])
        self.loop.close()

    @initialize()
    def some_run(self) -> None:
        """Begin where most rules have something to do."""
        self.start("d1", "rb", "")
        self.start("d2", "n", "")
        self.bind("d1", "d2")

    @rule(name=names, text=labels, fails=st.sampled_from(["", "", "", "prepare", "attach"]))
    def start(self, name: str, text: str, fails: str) -> None:
        """Start a domain, whose machine may fail."""

        async def run() -> None:
            await self.monitor.start(
                label("op"), name, label(text), lambda: ToyMachine([fails] if fails else [])
            )
            await self.monitor.resume(label("op"), name)

        self.do(run())

    @rule(name=names)
    def stop(self, name: str) -> None:
        """Stop a domain cleanly."""
        self.do(self.monitor.stop(name, 1))

    @rule(name=names)
    def die(self, name: str) -> None:
        """A machine dies by itself."""

        async def run() -> None:
            domain = self.monitor.domain(name)
            if isinstance(domain.machine, ToyMachine) and domain.state in ALIVE:
                domain.machine.die("died")
                await domain.gone.wait()

        self.do(run())

    @rule(one=names, other=names)
    def bind(self, one: str, other: str) -> None:
        """Bind a channel, leave bytes in both queues, and keep twins of the machines' ends."""

        async def run() -> None:
            channel = await self.monitor.bind(one, other)
            ends = []
            for domain in channel.ends:
                assert isinstance(domain.machine, ToyMachine)
                ends.append(os.dup(domain.machine.ends[channel.number]))
            self.held[channel.number] = (ends[0], ends[1])
            os.write(ends[0], b"queued")
            os.write(ends[1], b"queued")

        self.do(run())

    @rule(pick=st.integers(0, 9))
    def cut(self, pick: int) -> None:
        """Cut some channel."""
        numbers = [channel.number for channel in self.monitor.channels]

        async def run() -> None:
            if numbers:
                self.monitor.cut(numbers[pick % len(numbers)])

        self.do(run())

    @rule(name=names, text=labels)
    def relabel(self, name: str, text: str) -> None:
        """Give a domain another label."""
        self.do(self.monitor.relabel(label("op"), name, label(text)))

    @rule(dead=st.booleans())
    def trail(self, dead: bool) -> None:
        """The audit trail fails or recovers."""
        self.audit.dead = dead

    @invariant()
    def every_live_channel_is_allowed_and_recorded(self) -> None:
        """Laws 2 and 4."""
        allowed = {record.get("channel") for record in self.audit.events("allow")}
        for channel in self.monitor.channels:
            assert channel.phase is Phase.LIVE
            one, other = (str(domain.label) for domain in channel.ends)
            assert TYPES[one] & TYPES[other]
            assert all(domain.state in ALIVE for domain in channel.ends)
            assert channel.number in allowed

    @invariant()
    def no_two_rivals_run(self) -> None:
        """The Chinese Wall holds whatever was started, relabelled or died."""
        walls = {WALL[str(text)] for text in self.monitor.running() if str(text) in WALL}
        assert len(walls) < 2

    @invariant()
    def a_cut_channel_carries_nothing(self) -> None:
        """Law 3, seen from the ends that the machines had: nothing queued, nothing new."""
        live = {channel.number for channel in self.monitor.channels}
        for number in set(self.held) - live:
            ends = self.held.pop(number)
            for end, peer in (ends, ends[::-1]):
                assert os.read(end, 100) == b""
                try:
                    os.write(end, b"late")
                except BrokenPipeError:
                    pass
                else:
                    assert os.read(peer, 100) == b""
            os.close(ends[0])
            os.close(ends[1])


Laws.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLaws = Laws.TestCase
