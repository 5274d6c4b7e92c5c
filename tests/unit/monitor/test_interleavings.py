"""The monitor when others act between its steps, and when what it relies on breaks its word."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from skerry.errors import (
    DeciderUnavailable,
    Denied,
    LayerMissing,
    LimitReached,
    MachineError,
    StateError,
    TransportError,
)
from skerry.label import Label
from skerry.monitor.domain import State
from skerry.monitor.protocols import Bridge, Kind, Machine, Overflow
from skerry.xsm.explain import Refused
from skerry.xsm.request import Answer, Verdict
from tests.support.monitor import ToyMachine, World, label, play


async def ticks(count: int = 20) -> None:
    """Let the other tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)


def _open() -> int:
    """Count this process's descriptors, without those that earlier tests left to the collector."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


class SlowMachine(ToyMachine):
    """Takes its end only when `gate` opens, as QEMU does while another command runs."""

    def __init__(self, gate: asyncio.Event) -> None:
        super().__init__()
        self.gate = gate

    async def attach(self, channel: int, kind: Kind, port: str, *ends: int) -> None:
        """Wait, then keep a duplicate."""
        await self.gate.wait()
        await super().attach(channel, kind, port, *ends)


async def _slow(world: World, name: str) -> SlowMachine:
    machine = SlowMachine(asyncio.Event())
    world.machines[name] = machine
    await world.monitor.start(world.operator, name, label(name), lambda: machine)
    return machine


def test_a_machine_that_takes_its_end_late_never_gets_that_of_another_channel() -> None:
    """A channel cut while it is attached frees no descriptor number that is still on its way."""

    async def scene(world: World) -> None:
        slow = await _slow(world, "a")
        await world.run("b", "c", "d")
        world.allow(("a", "b"), ("c", "d"))
        binding = asyncio.create_task(world.monitor.bind("a", "b"))
        await ticks()
        world.monitor.cut(next(iter(world.monitor.channels)).number)
        other = await world.monitor.bind("c", "d")
        others = [os.fstat(world.end(name, other.number)).st_ino for name in "cd"]
        taken: list[int] = []

        class Spy(dict[int, int]):
            def __setitem__(self, channel: int, end: int) -> None:
                taken.append(os.fstat(end).st_ino)
                super().__setitem__(channel, end)

        slow.ends = Spy()
        slow.gate.set()
        with pytest.raises(Denied):
            await binding
        assert taken
        assert not set(taken).intersection(others)

    play(scene)


def test_a_channel_cut_while_it_is_attached_leaves_no_port_in_the_machine() -> None:
    """The machine is told to drop its end after it took it, not before."""

    async def scene(world: World) -> None:
        slow = await _slow(world, "a")
        await world.run("b")
        world.allow(("a", "b"))
        before = _open()
        binding = asyncio.create_task(world.monitor.bind("a", "b"))
        await ticks()
        world.monitor.cut(next(iter(world.monitor.channels)).number)
        await world.monitor.settle()
        slow.gate.set()
        with pytest.raises(Denied):
            await binding
        await world.monitor.settle()
        assert not slow.ends
        assert not world.machines["b"].ends
        assert _open() == before

    play(scene)


def test_a_bind_that_is_cancelled_leaves_neither_channel_nor_descriptor() -> None:
    """At whatever step the caller goes away."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        before = _open()
        for steps in range(12):
            binding = asyncio.create_task(world.monitor.bind("a", "b"))
            await ticks(steps)
            binding.cancel()
            results = await asyncio.gather(binding, return_exceptions=True)
            if not isinstance(results[0], BaseException):
                world.monitor.cut(results[0].number)
            await world.monitor.settle()
            assert len(world.monitor.channels) == 0
            assert _open() == before

    play(scene)


def test_starts_that_wait_for_each_other_do_not_pass_the_limit_together() -> None:
    """The limit of domains is compared where the next one is admitted."""

    async def scene(world: World) -> None:
        results = await asyncio.gather(
            *(
                world.monitor.start(world.operator, n, label(n), world.maker(n))
                for n in ("a", "b", "c")
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(r, LimitReached) for r in results) == 2
        assert len(world.audit.events("deny")) == 2

    play(scene, max_domains=1)


def test_a_denial_that_no_module_worded_is_recorded_too() -> None:
    """A wall that closed after the allow was written, a dead decider, a transport, a layer."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))

        async def closed(*labels: Label) -> None:
            raise Denied("the wall closed meanwhile", code="CW-HISTORY-CONFLICT")

        def no_layer() -> Machine:
            raise LayerMissing("no uid")

        class Broken:
            def mint(self, one_way: bool, overflow: Overflow = "block", **_: object) -> Bridge:
                raise TransportError("no pair")

        touch = world.decider.touch
        world.decider.touch = closed  # type: ignore[method-assign] # the toy's own
        with pytest.raises(Denied):
            await world.monitor.bind("a", "b")
        world.decider.touch = touch  # type: ignore[method-assign] # the toy's own
        with pytest.raises(LayerMissing):
            await world.monitor.start(world.operator, "c", label("c"), no_layer)
        bridges = world.monitor._bridges
        assert isinstance(bridges, dict)
        bridges["stream"] = Broken()
        with pytest.raises(TransportError):
            await world.monitor.bind("a", "b")
        codes = [event["why"]["code"] for event in _whys(world)]
        assert codes == ["CW-HISTORY-CONFLICT", "LAYER-MISSING", "TRANSPORT-FAILED"]

    play(scene)


def _whys(world: World) -> list[Mapping[str, Mapping[str, object]]]:
    return world.audit.events("deny")  # type: ignore[return-value] # `why` is a mapping in all


def test_a_decider_or_trail_that_breaks_its_word_is_a_denial() -> None:
    """Law 4: whatever they raise, the caller gets a `Denied` and nothing was made."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))

        async def crash(*_: object) -> object:
            raise ZeroDivisionError("oops")

        parts = (world.decider, "decide"), (world.decider, "touch"), (world.audit, "append")
        for part, name in parts:
            kept = getattr(part, name)
            setattr(part, name, crash)
            with pytest.raises(DeciderUnavailable, match="oops"):
                await world.monitor.bind("a", "b")
            setattr(part, name, kept)
        world.decider.allowed.clear()
        world.audit.append = crash  # type: ignore[method-assign, assignment] # the toy's own
        with pytest.raises(Refused):
            await world.monitor.bind("a", "b")
        assert len(world.monitor.channels) == 0

    play(scene)


def test_a_kind_of_channel_that_this_node_cannot_make_is_refused_by_name() -> None:
    """Nothing is asked or recorded as allowed for it."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        with pytest.raises(StateError, match="link"):
            await world.monitor.bind("a", "b", kind="link")
        assert not [e for e in world.audit.events("allow") if e["hook"] == "channel_two_way"]

    play(scene)


def test_a_port_named_by_its_number_is_never_a_second_one() -> None:
    """The name that a channel gets by itself is compared with those that were chosen."""

    async def scene(world: World) -> None:
        await world.run("a", "b", "c")
        world.allow(("a", "b"), ("a", "c"))
        await world.monitor.bind("a", "b", port="ch2")
        with pytest.raises(StateError, match="already has a port ch2"):
            await world.monitor.bind("a", "c")

    play(scene)


def test_a_machine_whose_end_is_not_told_counts_as_ended_and_is_killed() -> None:
    """A broken future leaves no channel live and no domain running."""

    async def scene(world: World) -> None:
        def cancel(machine: ToyMachine) -> None:
            machine.exited.cancel()

        def fail(machine: ToyMachine) -> None:
            machine.exited.set_exception(MachineError("lost"))

        for spoil in (cancel, fail):
            await world.run("a", "b")
            world.allow(("a", "b"))
            await world.monitor.bind("a", "b")
            spoil(world.machines["a"])
            await ticks()
            assert world.monitor.domain("a").state is State.ENDED
            assert world.monitor.running() == (label("b"),)
            assert len(world.monitor.channels) == 0
            await world.monitor.settle()
            assert not world.machines["a"].ends
            world.monitor.kill("b")
            await ticks()

    play(scene)


def test_a_detach_that_fails_or_a_waiter_that_leaves_disturbs_nobody() -> None:
    """One relabel that is cancelled while it waits does not end another's wait, nor the detach."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        channel = await world.monitor.bind("a", "b")
        machine, gate = world.machines["a"], asyncio.Event()
        detach = machine.detach

        async def slow(number: int) -> None:
            await gate.wait()
            await detach(number)
            raise ZeroDivisionError("oops")

        machine.detach = slow  # type: ignore[method-assign, assignment] # the toy's own
        world.monitor.cut(channel.number)
        first, second = (asyncio.create_task(world.monitor.settle()) for _ in range(2))
        await ticks()
        first.cancel()
        await ticks()
        gate.set()
        await second
        assert not machine.ends
        assert "oops" in str(world.audit.events("detach-failed"))

    play(scene)


def test_a_domain_whose_shutdown_fails_is_stopped_all_the_same() -> None:
    """Taking away does not depend on the machine's good will."""

    async def scene(world: World) -> None:
        await world.run("a")

        async def crash(deadline_s: float) -> None:
            raise ZeroDivisionError("oops")

        world.machines["a"].shutdown = crash  # type: ignore[method-assign] # the toy's own
        await world.monitor.stop("a", 1)
        assert world.monitor.domain("a").state is State.ENDED

    play(scene)


def test_a_relabel_counts_what_the_domain_carries_from_its_old_label() -> None:
    """A domain's memory crosses with it, as over a channel: the wall's history is asked."""

    async def scene(world: World) -> None:
        await world.run("a")
        await world.monitor.relabel(world.operator, "a", label("free"))
        assert ("a", "free") in world.decider.touched

        async def wall(*labels: Label) -> Verdict:
            answer = Answer("toy", False, "TOY-WALL", "it touched the other side")
            return Verdict("admit_bind", False, (), (answer,), world.decider.generation)

        world.decider.admit_bind = wall  # type: ignore[method-assign] # the toy's own
        with pytest.raises(Refused, match="other side"):
            await world.monitor.relabel(world.operator, "a", label("rival"))
        assert world.monitor.domain("a").label == label("free")

    play(scene)


def test_who_watches_a_domain_is_told_before_a_new_label_is_visible() -> None:
    """Sessions end in the same step as the relabel, the stop, the kill and the end."""

    async def scene(world: World) -> None:
        told: list[tuple[str, str]] = []
        world.monitor.withdrawn = lambda name, why: told.append(
            (name, str(world.monitor.domain(name).label))
        )
        await world.run("a", "b")
        await world.monitor.relabel(world.operator, "a", label("z"))
        world.monitor.kill("a")
        world.machines["b"].die("it crashed")
        await ticks()
        assert told[0] == ("a", "a")
        assert {name for name, _ in told} == {"a", "b"}

    play(scene)
