"""The monitor: what it asks before, what it takes away after, and what it never does."""

from __future__ import annotations

import asyncio
import os

import pytest

from skerry.errors import (
    AuditUnavailable,
    Denied,
    LimitReached,
    MachineError,
    StaleGeneration,
    StateError,
)
from skerry.monitor.domain import State
from skerry.xsm.explain import Refused
from tests.support.monitor import World, carries, label, play


def test_an_allowed_channel_carries_bytes_both_ways() -> None:
    """The positive control of every 'cannot' below."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        channel = await world.monitor.bind("a", "b", port="orders")
        assert carries(world, channel.number, "a", "b")
        assert carries(world, channel.number, "b", "a")
        assert world.machines["a"].ports[channel.number] == "orders"
        assert world.audit.events("allow")[-1]["channel"] == channel.number

    play(scene)


def test_a_refused_channel_never_exists() -> None:
    """A refusal is recorded with its reason, carries the record's number, and makes nothing."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        with pytest.raises(Refused) as refused:
            await world.monitor.bind("a", "b")
        assert refused.value.code == "TOY-NO"
        assert world.audit.records[refused.value.record - 1][0] == "deny"
        assert len(world.monitor.channels) == 0
        assert not world.machines["a"].ends

    play(scene)


def test_an_allow_is_on_disk_before_the_channel_is_made() -> None:
    """While the trail has not acknowledged, no machine holds an end."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        world.audit.gate = asyncio.Event()
        binding = asyncio.create_task(world.monitor.bind("a", "b"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not world.machines["a"].ends
        world.audit.gate.set()
        channel = await binding
        assert channel.number in world.machines["a"].ends

    play(scene)


def test_a_dead_trail_turns_every_allow_into_a_denial_and_taking_away_still_works() -> None:
    """Law 4: no allow without a record; cut, stop and kill need none."""

    async def scene(world: World) -> None:
        await world.run("a", "b", "c")
        world.allow(("a", "b"), ("a", "c"))
        first = await world.monitor.bind("a", "b")
        second = await world.monitor.bind("a", "c")
        world.audit.dead = True
        with pytest.raises(AuditUnavailable):
            await world.monitor.bind("b", "a")
        with pytest.raises(AuditUnavailable):
            await world.monitor.start(world.operator, "d", label("d"), world.maker("d"))
        with pytest.raises(AuditUnavailable):
            await world.monitor.use("domain_exec", world.operator, "a")
        world.monitor.cut(first.number)
        assert not carries(world, first.number, "a", "b")
        await world.monitor.stop("c", 1)
        assert second.number not in {c.number for c in world.monitor.channels}
        world.monitor.kill("a")
        await world.monitor.domain("a").gone.wait()
        assert world.monitor.domain("a").state is State.ENDED

    play(scene)


def test_a_decision_of_an_older_generation_never_binds() -> None:
    """Law 3: the policy changes between decision and mint; the new policy's answer counts."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        world.audit.gate = asyncio.Event()
        binding = asyncio.create_task(world.monitor.bind("a", "b"))
        for _ in range(20):
            await asyncio.sleep(0)
        world.decider.load([])
        world.audit.gate.set()
        with pytest.raises(Refused):
            await binding
        assert len(world.monitor.channels) == 0

    play(scene)


def test_a_policy_that_never_rests_ends_in_a_denial() -> None:
    """After a bounded number of tries the bind is refused as stale."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        append = world.audit.append

        async def restless(event: str, fields: object) -> int:
            world.decider.load(world.decider.allowed)
            return await append(event, {})

        world.audit.append = restless  # type: ignore[method-assign] # the toy's own
        with pytest.raises(StaleGeneration):
            await world.monitor.bind("a", "b")

    play(scene)


def test_a_channel_cut_while_it_binds_is_not_made() -> None:
    """A cut reaches binding entries of the table too."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        world.audit.gate = asyncio.Event()
        binding = asyncio.create_task(world.monitor.bind("a", "b"))
        for _ in range(20):
            await asyncio.sleep(0)
        world.monitor.cut(next(iter(world.monitor.channels)).number)
        world.audit.gate.set()
        with pytest.raises(StaleGeneration):
            await binding
        assert not world.machines["a"].ends

    play(scene)


def test_two_competitors_that_start_together_do_not_both_pass_the_wall() -> None:
    """Admission is decided one at a time; exactly one of two conflicting starts wins."""

    async def scene(world: World) -> None:
        world.decider.conflicts = {frozenset({"a", "b"})}
        monitor = world.monitor
        results = await asyncio.gather(
            *(monitor.start(world.operator, n, label(n), world.maker(n)) for n in "ab"),
            return_exceptions=True,
        )
        assert sum(isinstance(r, Refused) for r in results) == 1
        assert len(monitor.running()) == 1

    play(scene)


def test_the_wall_is_released_only_when_the_machine_has_ended() -> None:
    """A competitor may start after, and not before, the process of the first is gone."""

    async def scene(world: World) -> None:
        world.decider.conflicts = {frozenset({"a", "b"})}
        await world.run("a")
        with pytest.raises(Refused):
            await world.run("b")
        await world.monitor.stop("a", 1)
        await world.run("b")
        assert world.monitor.domain("b").state is State.RUNNING

    play(scene)


def test_a_machine_that_dies_loses_channels_and_wall_and_leaves_a_record() -> None:
    """Nobody asked for the end: it is noted with its reason, and the peer's channel is cut."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        channel = await world.monitor.bind("a", "b")
        world.machines["a"].die("QEMU crashed")
        await asyncio.sleep(0)
        await world.monitor.settle()
        assert world.monitor.domain("a").state is State.ENDED
        assert world.monitor.running() == (label("b"),)
        assert channel.number not in world.machines["b"].ends
        assert world.audit.events("ended")[0]["reason"] == "QEMU crashed"
        assert world.audit.events("ended")[0]["asked"] is False

    play(scene)


def test_a_cut_drains_what_was_queued() -> None:
    """Law 3: bytes written before the cut and not yet read never arrive."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        channel = await world.monitor.bind("a", "b")
        reader = os.dup(world.end("b", channel.number))
        os.write(world.end("a", channel.number), b"secret")
        assert world.monitor.cut(channel.number) == 6
        assert os.read(reader, 100) == b""
        os.close(reader)

    play(scene)


def test_an_end_that_cannot_be_attached_leaves_nothing() -> None:
    """One machine takes its end, the other fails: the channel is cut and both hold nothing."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        world.machines["b"].fails.add("attach")
        with pytest.raises(MachineError):
            await world.monitor.bind("a", "b")
        await world.monitor.settle()
        assert not world.machines["a"].ends
        assert len(world.monitor.channels) == 0

    play(scene)


@pytest.mark.parametrize("step", ["prepare"])
def test_a_start_that_fails_does_not_count_as_running(step: str) -> None:
    """The wall is free again and the same domain can be started anew."""

    async def scene(world: World) -> None:
        with pytest.raises(MachineError):
            await world.monitor.start(
                world.operator, "a", label("a"), world.maker("a", fails=[step])
            )
        await asyncio.sleep(0)
        assert world.monitor.running() == ()
        await world.run("a")
        assert world.monitor.domain("a").state is State.RUNNING

    play(scene)


def test_a_refused_start_leaves_the_earlier_incarnation_to_be_seen() -> None:
    """`ps` goes on to show why the last one ended."""

    async def scene(world: World) -> None:
        world.decider.conflicts = {frozenset({"a", "b"})}
        await world.run("a")
        await world.monitor.stop("a", 1)
        await world.run("b")
        with pytest.raises(Refused):
            await world.run("a")
        end = world.monitor.domain("a").end
        assert end is not None
        assert end.reason == "shut down"

    play(scene)


def test_a_relabel_cuts_what_the_new_label_may_not_have_and_keeps_the_rest() -> None:
    """The channels are judged under the new label, and the answer lists both sorts."""

    async def scene(world: World) -> None:
        await world.run("a", "b", "c")
        world.allow(("a", "b"), ("a", "c"), ("z", "c"))
        lost = await world.monitor.bind("a", "b")
        kept = await world.monitor.bind("a", "c")
        done = await world.monitor.relabel(world.operator, "a", label("z"))
        assert (done.cut, done.kept) == ((lost.number,), (kept.number,))
        assert world.monitor.domain("a").label == label("z")
        assert carries(world, kept.number, "a", "c")
        assert lost.number not in world.machines["b"].ends

    play(scene)


def test_a_bind_that_waits_while_its_domain_is_relabelled_is_judged_anew() -> None:
    """A decision about the old label never binds the new one."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        gate = world.audit.gate = asyncio.Event()
        binding = asyncio.create_task(world.monitor.bind("a", "b"))
        for _ in range(20):
            await asyncio.sleep(0)
        world.audit.gate = None
        await world.monitor.relabel(world.operator, "a", label("z"))
        gate.set()
        with pytest.raises(Denied):
            await binding
        assert not world.machines["b"].ends

    play(scene)


def test_a_call_in_the_wrong_state_names_both_states() -> None:
    """The life cycle is guarded, and the message says what would work."""

    async def scene(world: World) -> None:
        await world.run("a")
        with pytest.raises(StateError, match=r"a is running: cannot resume it; .* paused"):
            await world.monitor.resume(world.operator, "a")
        with pytest.raises(StateError, match="already running"):
            await world.run("a")
        world.monitor.kill("a")
        await asyncio.sleep(0)
        with pytest.raises(StateError, match="already ended"):
            world.monitor.kill("a")

    play(scene)


def test_a_domain_killed_while_it_starts_never_runs() -> None:
    """A kill works in every state, and what it killed holds nothing afterwards."""

    async def scene(world: World) -> None:
        world.audit.gate = asyncio.Event()
        start = world.monitor.start(world.operator, "a", label("a"), world.maker("a"))
        starting = asyncio.create_task(start)
        for _ in range(20):
            await asyncio.sleep(0)
        world.monitor.kill("a")
        world.audit.gate.set()
        with pytest.raises(StateError):
            await starting
        assert world.monitor.running() == ()
        assert not world.machines

    play(scene)


def test_taking_a_start_away_waits_for_no_writer() -> None:
    """Killed or stopped while its allow hangs, a domain has ended there and then, on record."""

    async def scene(world: World) -> None:
        world.audit.gate = asyncio.Event()
        starts = [
            asyncio.create_task(
                world.monitor.start(world.operator, name, label(name), world.maker(name))
            )
            for name in ("a", "b")
        ]
        await asyncio.sleep(0)
        first = [world.monitor.domain(name) for name in ("a", "b")]
        assert [domain.state for domain in first] == [State.STARTING] * 2, "the control"
        world.monitor.kill("a")
        async with asyncio.timeout(1):
            await world.monitor.stop("b", 60)
        assert all(domain.gone.is_set() and domain.state is State.ENDED for domain in first)
        assert [row["domain"] for row in world.audit.events("ended")] == ["a", "b"]
        again = asyncio.create_task(world.run("a"))
        await asyncio.sleep(0)
        second = world.monitor.domain("a")
        world.audit.gate.set()
        await again
        assert all(
            isinstance(error, StateError)
            for error in await asyncio.gather(*starts, return_exceptions=True)
        )
        assert world.monitor.domain("a") is second is not first[0]
        assert second.state is State.RUNNING
        assert world.monitor.running() == (label("a"),)

    play(scene)


def test_limits_refuse_by_name_and_make_nothing() -> None:
    """At the limit of channels and of domains the next one is refused, and recorded."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        await world.monitor.bind("a", "b")
        with pytest.raises(LimitReached):
            await world.monitor.bind("a", "b")
        with pytest.raises(LimitReached):
            await world.run("c")
        assert len(world.monitor.channels) == 1

    play(scene, max_channels=1, max_domains=2)


def test_a_port_name_is_one_channel_in_a_domain() -> None:
    """A second channel of the same name would be ambiguous in the guest, so it is refused."""

    async def scene(world: World) -> None:
        await world.run("a", "b", "c")
        world.allow(("a", "b"), ("a", "c"))
        await world.monitor.bind("a", "b", port="orders")
        with pytest.raises(StateError, match="already has a port orders"):
            await world.monitor.bind("a", "c", port="orders")

    play(scene)


def test_a_bounded_grant_ends_when_its_time_is_over() -> None:
    """Nobody has to ask; the trail says for how long it was and why it ended."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        bounded = await world.monitor.bind("a", "b", for_s=0.05)
        lasting = await world.monitor.bind("a", "b")
        assert carries(world, bounded.number, "a", "b")
        assert world.audit.events("allow")[-2]["for_s"] == 0.05
        await asyncio.sleep(0.1)
        assert not carries(world, bounded.number, "a", "b")
        assert carries(world, lasting.number, "a", "b"), "the control: one without a bound"
        assert world.audit.events("cut")[-1]["why"] == "its time is over"

    play(scene)


def test_a_bounded_grant_that_was_cut_is_not_cut_again() -> None:
    """Its timer ends with it."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        channel = await world.monitor.bind("a", "b", for_s=0.02)
        world.monitor.cut(channel.number)
        assert channel.timer is not None
        assert channel.timer.cancelled()
        await asyncio.sleep(0.04)
        assert len(world.audit.events("cut")) == 1

    play(scene)
