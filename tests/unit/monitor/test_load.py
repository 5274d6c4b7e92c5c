"""A change of policy while domains run: what falls, what stands, and in which order."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from skerry.errors import (
    AuditUnavailable,
    DeciderUnavailable,
    Denied,
    StaleGeneration,
    StateError,
)
from skerry.label import Label
from skerry.monitor.domain import Domain, State
from skerry.monitor.revise import EvictionNeeded, Loaded
from skerry.xsm.explain import Refused
from skerry.xsm.request import Verdict
from tests.support.monitor import ToyDecider, World, carries, label, play

Pair = tuple[str, str]


def candidate(world: World, *pairs: Pair) -> ToyDecider:
    """Return a policy that lets these pairs talk."""
    new = world.decider.candidate(None)  # type: ignore[arg-type]
    new.allowed = {frozenset(pair) for pair in pairs}
    return new


async def load(
    world: World, new: ToyDecider, *, evict: bool = False, dry_run: bool = False
) -> Loaded:
    """Bring it into force."""
    return await world.monitor.load(
        "policy_load", world.operator, label("security"), new, {}, evict=evict, dry_run=dry_run
    )


async def joined(world: World, *pairs: Pair) -> dict[Pair, int]:
    """Start the domains, let the pairs talk, and return the numbers of their channels."""
    await world.run(*sorted({name for pair in pairs for name in pair}))
    world.allow(*pairs)
    return {pair: (await world.monitor.bind(*pair)).number for pair in pairs}


def test_after_a_load_no_byte_crosses_a_channel_that_the_new_policy_refuses() -> None:
    """What stays allowed never notices; the other is cut with what was queued in it."""

    async def scene(world: World) -> None:
        kept, lost = ("a", "b"), ("a", "c")
        numbers = await joined(world, kept, lost)
        os.write(world.end("a", numbers[lost]), b"secret")
        sink = os.dup(world.end("c", numbers[lost]))
        done = await load(world, candidate(world, kept))
        assert [fallen.what for fallen in done.cut] == [numbers[lost]]
        assert "TOY-NO" in done.cut[0].why
        assert done.kept == (numbers[kept],)
        assert os.read(sink, 100) == b""
        os.close(sink)
        assert carries(world, numbers[kept], *kept)
        assert world.decider.generation == done.generation == 2
        assert world.audit.events("cut")[-1]["channel"] == numbers[lost]
        assert world.audit.events("loaded") == [
            {"generation": 2, "cut": 1, "kept": 1, "evicted": []}
        ]
        with pytest.raises(Refused):
            await world.monitor.bind(*lost)

    play(scene)


def test_control_without_the_load_the_same_bytes_cross() -> None:
    """The positive control: nothing but the load took them."""

    async def scene(world: World) -> None:
        pair = ("a", "c")
        numbers = await joined(world, pair)
        os.write(world.end("a", numbers[pair]), b"secret")
        assert os.read(world.end("c", numbers[pair]), 100) == b"secret"

    play(scene)


def test_a_dry_run_says_what_would_fall_and_changes_nothing() -> None:
    """Its answer is that of the load that follows."""

    async def scene(world: World) -> None:
        pair = ("a", "b")
        numbers = await joined(world, pair)
        foretold = await load(world, candidate(world), dry_run=True)
        assert world.decider.generation == 1
        assert carries(world, numbers[pair], *pair)
        assert not world.audit.events("loaded")
        done = await load(world, candidate(world))
        assert done.cut == foretold.cut
        assert done.kept == foretold.kept == ()

    play(scene)


def test_a_label_that_the_new_policy_lacks_needs_evict() -> None:
    """The load says so first and leaves everything; with `evict` the domain is ended."""

    async def scene(world: World) -> None:
        pair, other = ("a", "b"), ("b", "c")
        numbers = await joined(world, pair, other)
        new = candidate(world, pair, other)
        new.unknown = {"a"}
        with pytest.raises(EvictionNeeded, match=r"no label a.*--evict"):
            await load(world, new)
        assert world.decider.generation == 1
        assert carries(world, numbers[pair], *pair)
        done = await load(world, new, evict=True)
        assert [fallen.what for fallen in done.evicted] == ["a"]
        assert [fallen.what for fallen in done.cut] == [numbers[pair]]
        assert world.monitor.domain("a").state is State.ENDED
        assert world.monitor.domain("b").state is State.RUNNING
        assert carries(world, numbers[other], *other)

    play(scene)


def test_of_two_that_may_no_longer_run_together_the_younger_is_evicted() -> None:
    """Domains are judged in the order in which they were started, whatever their names."""

    async def scene(world: World) -> None:
        for name in ("z", "a"):
            world.now += 1
            await world.run(name)
        new = candidate(world)
        new.conflicts = {frozenset({"a", "z"})}
        done = await load(world, new, evict=True)
        assert [fallen.what for fallen in done.evicted] == ["a"]
        assert world.monitor.domain("z").state is State.RUNNING
        with pytest.raises(Refused):
            await world.run("a")

    play(scene)


def test_whatever_fails_in_judging_is_a_refusal() -> None:
    """A policy that raises where it is asked about a channel cuts it."""

    class Broken(ToyDecider):
        async def decide(self, hook: str, parties: object) -> object:  # type: ignore[override]
            raise RuntimeError

    async def scene(world: World) -> None:
        numbers = await joined(world, ("a", "b"))
        new = Broken()
        new.generation = 2
        done = await load(world, new)
        assert [fallen.what for fallen in done.cut] == list(numbers.values())
        assert done.cut[0].why

    play(scene)


def test_a_refusal_that_nobody_can_explain_is_a_refusal_all_the_same() -> None:
    """Who denies without an answer in it is a denial by type, on record, and cuts at a load.

    The control: the same denial with its answer explains itself.
    """

    class Mute(ToyDecider):
        async def decide(self, hook: str, parties: Mapping[str, Label]) -> Verdict:
            verdict = await super().decide(hook, parties)
            mute = tuple(replace(each, answers=()) for each in verdict.decisions)
            return verdict if verdict.allowed else replace(verdict, decisions=mute)

    async def scene(world: World) -> None:
        numbers = await joined(world, ("a", "b"))
        await world.run("c")
        with pytest.raises(Refused):
            await world.monitor.bind("a", "c")
        world.monitor.mediator.decider = Mute()
        with pytest.raises(DeciderUnavailable):
            await world.monitor.bind("a", "c")
        last = world.audit.events("deny")[-1]
        assert (last["hook"], last["why"]["code"]) == ("channel_two_way", "DECIDER-UNAVAILABLE")  # type: ignore[index]
        new = Mute()
        new.generation = 2
        done = await load(world, new, dry_run=True)
        assert [fallen.what for fallen in done.cut] == list(numbers.values())
        assert done.cut[0].why

    play(scene)


@pytest.mark.parametrize("error", [StaleGeneration, DeciderUnavailable])
@pytest.mark.parametrize("question", ["admit", "decide"])
def test_where_nobody_judges_nothing_falls_and_nothing_comes_into_force(
    error: type[Denied], question: str
) -> None:
    """Who is not there says nothing of a domain or channel; another denial does (control)."""

    class Gone(ToyDecider):
        async def fail(self, *_: object) -> Verdict:
            raise failures[-1]("gone")

    async def scene(world: World) -> None:
        numbers = await joined(world, ("a", "b"))
        new = Gone()
        new.generation = 2
        setattr(new, question, new.fail)
        with pytest.raises(error):
            await load(world, new, evict=True)
        assert world.decider.generation == 1
        assert carries(world, numbers["a", "b"], "a", "b")
        assert world.audit.events("deny")[-1]["why"]
        with pytest.raises(error):
            await world.monitor.judge_again(new)
        assert not world.audit.events("cut") + world.audit.events("evicted")
        failures.append(Denied)
        done = await load(world, new, evict=True)
        assert [fallen.what for fallen in done.cut] == list(numbers.values())

    failures: list[type[Denied]] = [error]
    play(scene)


def test_a_load_is_asked_and_a_refused_one_changes_nothing() -> None:
    """The hook is decided by the policy in force."""

    class Owner(ToyDecider):
        async def decide(self, hook, parties):  # type: ignore[no-untyped-def]
            verdict = await super().decide(hook, parties)
            if hook == "policy_load" and str(parties["operator"]) != "owner":
                raise Denied("only the owner loads", code="NOT-PRIVILEGED")
            return verdict

    async def scene(world: World) -> None:
        world.decider = world.monitor.mediator.decider = Owner()
        numbers = await joined(world, ("a", "b"))
        with pytest.raises(Denied, match="only the owner"):
            await load(world, candidate(world))
        assert carries(world, numbers["a", "b"], "a", "b")
        assert world.audit.events("deny")[-1]["hook"] == "policy_load"
        world.operator = label("owner")
        assert (await load(world, candidate(world))).cut

    play(scene)


def test_a_bind_that_waits_while_a_policy_is_loaded_is_judged_by_the_new_one() -> None:
    """Its decision was computed under the old generation; it never binds."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        world.decider.gate = asyncio.Event()
        binding = asyncio.ensure_future(world.monitor.bind("a", "b"))
        await asyncio.sleep(0.01)
        gate, world.decider.gate = world.decider.gate, None
        await load(world, candidate(world))
        gate.set()
        with pytest.raises(Refused):
            await binding
        assert not world.machines["a"].ends

    play(scene)


class Slow(ToyDecider):
    """A policy that waits with its first answer to a wall question."""

    def __init__(self, generation: int) -> None:
        super().__init__()
        self.generation = generation
        self.asking, self.reached = asyncio.Event(), asyncio.Event()

    async def admit(self, label: Label, running: tuple[Label, ...]) -> Verdict:
        """Say that it was asked, and wait."""
        self.asking.set()
        await self.reached.wait()
        return await super().admit(label, running)


def test_a_channel_bound_while_a_load_judges_is_judged_too() -> None:
    """What came up between judging and the new policy's force makes the judging start again."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        decide, gate = world.decider.decide, asyncio.Event()

        async def slow(hook: str, parties: Mapping[str, Label]) -> Verdict:
            if "source" in parties:
                await gate.wait()
            return await decide(hook, parties)

        world.decider.decide = slow  # type: ignore[method-assign]
        binding = asyncio.ensure_future(world.monitor.bind("a", "b"))
        await asyncio.sleep(0)  # it is being decided under the old policy
        new = Slow(2)
        loading = asyncio.ensure_future(load(world, new))
        await new.asking.wait()
        gate.set()
        channel = await binding
        assert carries(world, channel.number, "a", "b")
        new.reached.set()
        done = await loading
        assert [fallen.what for fallen in done.cut] == [channel.number]
        assert not carries(world, channel.number, "a", "b")

    play(scene)


def test_who_keeps_cutting_and_killing_cannot_hold_a_load_off() -> None:
    """What goes while it is judged or written down needs no judgement, nor an eviction."""

    async def scene(world: World) -> None:
        pairs = list(itertools.pairwise("abcdefghijkl"))
        numbers = await joined(world, *pairs)
        lost, new = ("a", "b"), candidate(world, *pairs[1:])
        new.unknown = {"l"}
        going = [numbers[pair] for pair in pairs[1:] if "l" not in pair]
        stays = going.pop()
        written = 0

        async def foresee(channels: object) -> None:
            if going:
                world.monitor.cut(going.pop())
            if "l" in [domain.name for domain in world.monitor.domains.values() if domain.admitted]:
                world.monitor.kill("l")
                await world.monitor.domain("l").gone.wait()

        async def durable(labels: Mapping[Domain, Label]) -> None:
            nonlocal written
            written += 1
            assert "l" not in [domain.name for domain in labels]
            while going:
                world.monitor.cut(going.pop())

        new.foresee = foresee  # type: ignore[method-assign] # the toy's own
        done = await world.monitor.load(
            "policy_load", world.operator, label("security"), new, {}, durable=durable
        )
        assert written == 1
        assert (done.evicted, done.kept) == ((), (stays,))
        assert [fallen.what for fallen in done.cut] == [numbers[lost]]
        assert len(world.audit.events("cut")) == len(pairs) - 1  # each of them once
        assert len(world.monitor.channels) == 1

    play(scene)


def test_who_binds_while_a_policy_is_being_loaded_waits_for_it() -> None:
    """So nobody who keeps binding can hold a load off; the answer is the new policy's."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        new = Slow(2)
        loading = asyncio.ensure_future(load(world, new))
        await new.asking.wait()
        binding = asyncio.ensure_future(world.monitor.bind("a", "b"))
        await asyncio.sleep(0)
        assert not binding.done()
        new.reached.set()
        assert (await loading).generation == 2
        with pytest.raises(Refused):
            await binding

    play(scene)


def test_a_policy_is_durable_before_it_is_in_force() -> None:
    """With the labels under it; what can't be made durable does not come into force."""

    async def scene(world: World) -> None:
        numbers = await joined(world, ("a", "b"))
        seen: list[tuple[int, dict[str, str]]] = []

        async def durable(labels: Mapping[Domain, Label]) -> None:
            names = {domain.name: str(text) for domain, text in labels.items()}
            seen.append((world.decider.generation, names))
            if len(seen) == 1:
                raise AuditUnavailable("no disk")

        for _ in range(2):
            with contextlib.suppress(AuditUnavailable):
                await world.monitor.load(
                    "policy_load",
                    world.operator,
                    label("security"),
                    candidate(world),
                    {},
                    durable=durable,
                )
            if len(seen) == 1:
                assert carries(world, numbers["a", "b"], "a", "b")
        assert seen == [(1, {"a": "a", "b": "b"})] * 2
        assert world.decider.generation == 2
        assert not carries(world, numbers["a", "b"], "a", "b")

    play(scene)


def test_of_two_loads_at_once_the_second_is_judged_after_the_first() -> None:
    """A candidate that was made before another came into force never does."""

    async def scene(world: World) -> None:
        numbers = await joined(world, ("a", "b"))
        first, second = candidate(world, ("a", "b")), candidate(world)
        results = await asyncio.gather(
            load(world, first), load(world, second), return_exceptions=True
        )
        assert isinstance(results[0], Loaded)
        assert isinstance(results[1], StaleGeneration)
        assert carries(world, numbers["a", "b"], "a", "b")

    play(scene)


def test_what_cannot_be_remembered_is_cut() -> None:
    """A channel whose exchange the new policy's history can't hold does not go on."""

    class Forgetful(ToyDecider):
        full = False

        async def touch(self, *labels: Label) -> None:
            if self.full and len(labels) > 1:
                raise Denied("the disk is full")
            await super().touch(*labels)

    async def scene(world: World) -> None:
        world.decider = world.monitor.mediator.decider = Forgetful()
        numbers = await joined(world, ("a", "b"))
        world.decider.full = True
        done = await load(world, candidate(world, ("a", "b")))
        assert ([fallen.what for fallen in done.cut], done.kept) == ([numbers["a", "b"]], ())
        assert not carries(world, numbers["a", "b"], "a", "b")

    play(scene)


def test_a_dead_trail_lets_no_policy_in() -> None:
    """The allow can't be recorded, so nothing changes."""

    async def scene(world: World) -> None:
        numbers = await joined(world, ("a", "b"))
        world.audit.dead = True
        with pytest.raises(Denied):
            await load(world, candidate(world))
        assert world.decider.generation == 1
        assert carries(world, numbers["a", "b"], "a", "b")

    play(scene)


def test_evicting_waits_until_the_machine_is_gone() -> None:
    """When the load returns, the evicted domain has ended, and may be started again."""

    async def scene(world: World) -> None:
        await world.run("a")
        new = candidate(world)
        new.unknown = {"a"}
        await load(world, new, evict=True)
        assert world.machines["a"].exited.done()
        with pytest.raises(StateError):
            await world.monitor.pause(world.operator, "a")

    play(scene)


def test_what_goes_on_counts_at_once_and_does_not_wait_for_the_disk_one_by_one() -> None:
    """Meanwhile another exchange could pass a wall that a channel still to be noted closes."""

    class Disk(ToyDecider):
        gate_disk: asyncio.Event | None = None

        async def touch(self, *labels: Label) -> None:
            await super().touch(*labels)
            if self.gate_disk is not None:
                await self.gate_disk.wait()

    async def scene(world: World) -> None:
        world.decider = world.monitor.mediator.decider = decider = Disk()
        await joined(world, ("a", "b"), ("b", "c"))
        decider.touched.clear()
        decider.gate_disk = asyncio.Event()
        loading = asyncio.ensure_future(load(world, candidate(world, ("a", "b"), ("b", "c"))))
        await asyncio.sleep(0.2)  # and the load waits for the disk
        assert decider.generation == 2
        own = [(name,) for name in "abc"]
        assert sorted(decider.touched) == sorted([*own, ("a", "b"), ("b", "c")])
        decider.gate_disk.set()
        await loading

    play(scene)


def test_others_go_on_while_a_load_judges() -> None:
    """However much there is to judge, a domain can be ended meanwhile."""

    async def scene(world: World) -> None:
        names = [f"d{number}" for number in range(20)]
        pairs = list(itertools.pairwise(names))
        await joined(world, *pairs)
        loading = asyncio.ensure_future(load(world, candidate(world, *pairs)))
        seen = 0
        while not loading.done():
            seen += world.decider.generation == 1
            await asyncio.sleep(0)
        assert seen > 2 * len(names)  # the toy itself waits once for each domain

    play(scene)
