"""A domain's use of a resource: asked, cut and judged again as every other channel is."""

from __future__ import annotations

import asyncio

import pytest

from skerry.errors import MachineError, StateError
from skerry.label import Label
from skerry.monitor.domain import State
from skerry.monitor.protocols import Kind
from skerry.monitor.table import Phase
from skerry.xsm.explain import Refused
from skerry.xsm.hooks import HOOKS
from skerry.xsm.request import Verdict
from tests.support.monitor import ToyDecider, World, label, play
from tests.support.resources import ToyUses, add_resource, serves


async def used(world: World, *, read_only: bool = False) -> tuple[ToyUses, int]:
    """Run a domain that uses a disk; return the maker and the channel's number."""
    uses = add_resource(world, "vault")
    world.allow(("a", "vault"))
    await world.run("a")
    channel = await world.monitor.bind("a", "vault", port="vault", one_way=read_only)
    assert channel.kind == "disk"
    return uses, channel.number


def test_an_allowed_use_reaches_the_helper_and_a_refused_one_never_exists() -> None:
    """The same bind, with and without the policy's yes."""

    async def scene(world: World) -> None:
        uses, number = await used(world)
        assert serves(uses, world.end("a", number))
        other = add_resource(world, "safe")
        with pytest.raises(Refused):
            await world.monitor.bind("a", "safe")
        assert not other.minted
        assert [channel.number for channel in world.monitor.channels] == [number]

    play(scene)


def test_reading_and_writing_are_two_questions() -> None:
    """What only reads asks only for reading, in Xen's words, and the maker is told."""

    async def scene(world: World) -> None:
        uses, _ = await used(world, read_only=True)
        await world.monitor.bind("a", "vault", port="again")
        hooks = [hook for hook, parties in world.decider.asked if "sink" in parties]
        assert hooks == ["resource_read", "resource_both"]
        assert [one_way for one_way, _, _ in uses.minted] == [True, False]
        assert {source for _, source, _ in uses.minted} == {"a"}

    play(scene)
    assert [q.permissions for q in HOOKS["resource_read"].asks] == [("use",), ("map_read",)]
    assert [q.permissions for q in HOOKS["resource_both"].asks] == [
        ("use",),
        ("map_read", "map_write"),
    ]


def test_a_use_that_is_given_no_name_has_the_resource_s() -> None:
    """The guest finds what was connected where it finds what it `uses`; a second needs a name.

    The control: a channel between domains is called by its number.
    """

    async def scene(world: World) -> None:
        await used(world)
        with pytest.raises(StateError, match="already has a port vault; name another"):
            await world.monitor.bind("a", "vault", one_way=True)
        add_resource(world, "safe")
        world.allow(("a", "safe"), ("a", "b"))
        await world.run("b")
        assert (await world.monitor.bind("a", "safe")).port == "safe"
        assert set(world.machines["a"].ports.values()) == {"vault", "safe"}
        stream = await world.monitor.bind("a", "b")
        assert stream.port == f"ch{stream.number}"

    play(scene)


def test_what_goes_both_ways_is_asked_both_ways() -> None:
    """Only a disk can be read alone: an uplink, a switch or a TPM is never got by asking less."""

    async def scene(world: World) -> None:
        kinds: tuple[Kind, ...] = ("uplink", "switch")
        for kind in kinds:
            uses = add_resource(world, kind, kind)
            world.allow(("a", kind))
            if kind == "uplink":
                await world.run("a")
            channel = await world.monitor.bind("a", kind, one_way=True)
            assert (channel.one_way, channel.hook) == (False, "resource_both")
            assert [one_way for one_way, _, _ in uses.minted] == [False]

    play(scene)


def test_after_a_load_nobody_uses_what_the_new_policy_refuses() -> None:
    """The use is cut before the load returns; the resource stays, for others."""

    async def scene(world: World) -> None:
        uses, number = await used(world)
        new = world.decider.candidate(None)  # type: ignore[arg-type]
        loaded = await world.monitor.load("policy_load", world.operator, label("security"), new, {})
        assert [fallen.what for fallen in loaded.cut] == [number]
        assert uses.minted[0][2].gone
        assert number not in world.machines["a"].ends
        assert "vault" in world.monitor.resources

    play(scene)


def test_a_resource_whose_label_a_policy_lacks_is_used_by_nobody() -> None:
    """Not even where that policy would let everybody talk."""

    async def scene(world: World) -> None:
        _, number = await used(world)
        new = world.decider.candidate(None)  # type: ignore[arg-type]
        new.allowed, new.unknown = set(world.decider.allowed), {"vault"}
        loaded = await world.monitor.load("policy_load", world.operator, label("security"), new, {})
        assert [fallen.what for fallen in loaded.cut] == [number]

    play(scene)


def test_a_relabelled_domain_loses_what_its_new_label_may_not_use() -> None:
    """The channel to the resource is judged under the new label."""

    async def scene(world: World) -> None:
        uses, number = await used(world)
        done = await world.monitor.relabel(world.operator, "a", label("b"))
        assert done.cut == (number,)
        assert uses.minted[0][2].gone

    play(scene)


class Walled(ToyDecider):
    """Lets `two` exchange with `one` no more once it is told so."""

    wall = True

    async def admit_bind(self, *labels: Label) -> Verdict:
        """Refuse the pair while the wall stands."""
        verdict = await super().admit_bind(*labels)
        yes = not (self.wall and {"one", "two"} <= set(map(str, labels)))
        return Verdict(verdict.hook, yes, (), (), verdict.generation)


@pytest.mark.parametrize("wall", [True, False])
def test_who_uses_a_resource_exchanges_with_all_that_have_written_it(wall: bool) -> None:
    """A wall between two labels holds also by way of a disk that both may use."""

    async def scene(world: World) -> None:
        world.monitor.mediator.decider = decider = Walled()
        decider.wall = wall
        decider.allowed = {frozenset({"two", "vault"})}
        add_resource(world, "vault", written=("one", "three"))
        await world.run("two")
        if wall:
            with pytest.raises(Refused):
                await world.monitor.bind("two", "vault")
            return
        await world.monitor.bind("two", "vault")
        assert ("two", "one", "three") in decider.touched

    play(scene)


def test_a_stopped_domain_has_its_resources_until_its_machine_has_ended() -> None:
    """It must be able to write out what it has; a stream is cut at once."""

    async def scene(world: World) -> None:
        _, number = await used(world)
        world.allow(("a", "b"))
        await world.run("b")
        stream = await world.monitor.bind("a", "b")
        seen: list[set[int]] = []

        async def shutdown(deadline_s: float) -> None:
            seen.append({channel.number for channel in world.monitor.channels})
            world.machines["a"].die("shut down")

        world.machines["a"].shutdown = shutdown  # type: ignore[method-assign]
        await world.monitor.stop("a", 1)
        assert seen == [{number}]
        assert stream.phase is Phase.CUT
        assert not len(world.monitor.channels)

    play(scene)


def test_a_killed_domain_loses_its_resources_at_once() -> None:
    """Nothing is waited for."""

    async def scene(world: World) -> None:
        uses, _ = await used(world)
        world.monitor.kill("a")
        assert uses.minted[0][2].gone

    play(scene)


def test_what_a_machine_takes_before_it_is_made_is_bound_then_and_never_later() -> None:
    """A TPM is asked for between the admission and the making of the machine."""

    async def scene(world: World) -> None:
        add_resource(world, "chip", "tpm")
        world.allow(("a", "chip"))
        order: list[object] = []

        async def cold() -> None:
            channel = await world.monitor.bind("a", "chip", port="chip")
            order.append((channel.phase, world.monitor.domain("a").state))
            order.append(list(world.machines["a"].calls))

        await world.monitor.start(world.operator, "a", label("a"), world.maker("a"), cold)
        assert order == [(Phase.LIVE, State.STARTING), ["attach"]]
        assert world.machines["a"].calls == ["attach", "prepare"]
        disk = add_resource(world, "vault")
        world.allow(("b", "vault"))

        async def too_early() -> None:
            with pytest.raises(StateError, match="starting"):
                await world.monitor.bind("b", "vault")

        await world.monitor.start(world.operator, "b", label("b"), world.maker("b"), too_early)
        assert not disk.minted

    play(scene)


def test_a_running_domain_does_not_even_ask_for_what_it_can_have_only_at_its_start() -> None:
    """Nothing is asked, minted or opened, so a TPM that nobody owns stays so; its start has it."""

    async def scene(world: World) -> None:
        uses = add_resource(world, "chip", "tpm")
        world.allow(("a", "chip"))
        await world.run("a")
        asked = len(world.decider.asked)
        for _ in range(2):  # running, and then paused
            with pytest.raises(StateError, match="while it is starting"):
                await world.monitor.bind("a", "chip", port="chip")
            if world.monitor.domain("a").state is State.RUNNING:
                await world.monitor.pause(world.operator, "a")
                asked += 1
        assert len(world.decider.asked) == asked
        assert not uses.minted
        assert world.monitor.resources["chip"].written == frozenset()
        world.monitor.kill("a")
        await world.monitor.domain("a").gone.wait()

        async def cold() -> None:
            await world.monitor.bind("a", "chip", port="chip")

        await world.monitor.start(world.operator, "a", label("a"), world.maker("a"), cold)
        assert uses.minted[0][2].opened

    play(scene)


def test_a_machine_that_takes_no_resource_leaves_nothing_of_it() -> None:
    """The use is cut, and the helper with it."""

    async def scene(world: World) -> None:
        uses = add_resource(world, "vault")
        world.allow(("a", "vault"))
        await world.monitor.start(
            world.operator, "a", label("a"), world.maker("a", fails=["attach"])
        )
        with pytest.raises(MachineError):
            await world.monitor.bind("a", "vault")
        await asyncio.sleep(0)
        assert uses.minted[0][2].gone
        assert not len(world.monitor.channels)

    play(scene)


def test_an_operator_gives_a_resource_only_if_he_may() -> None:
    """`connect` asks whether he may see the domain and give it the resource."""

    async def scene(world: World) -> None:
        await used(world)
        await world.monitor.connect(world.operator, "a", "vault", port="again", one_way=True)
        hooks = [hook for hook, parties in world.decider.asked if "operator" in parties]
        assert hooks[-2:] == ["domain_getdomaininfo", "resource_attach"]

    play(scene)
