"""A use that is allowed and comes to nothing: who is remembered as a writer, what is on record."""

from __future__ import annotations

import asyncio

import pytest

from skerry.errors import Denied, LimitReached, MachineError, StaleGeneration
from skerry.label import Label
from skerry.monitor.domain import Resource
from skerry.monitor.table import Phase
from skerry.xsm.explain import Refused
from tests.support.monitor import World, label, play
from tests.support.resources import ToyUse, ToyUses, add_resource
from tests.unit.monitor.test_resources import Walled


class Served(ToyUses):
    """Serves what it is asked to once `gate` is set, or refuses it then, as a disk in use is."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = asyncio.Event()
        self.refuses = self.full = False

    def mint(
        self, one_way: bool, overflow: str = "block", *, size: int = 0, source: str = ""
    ) -> ToyUse:
        """Make a use that waits, or none."""
        if self.full:
            raise LimitReached("no connection for the disk")
        use, uses = super().mint(one_way, source=source), self
        gate, refuses = self.gate, self.refuses

        async def open_(channel: int) -> None:
            uses.begun.set()
            await gate.wait()
            if refuses:
                raise Denied("the disk is in use", code="DISK-IN-USE")
            use.opened = True

        use.open = open_  # type: ignore[method-assign]
        return use


async def vault(world: World, *written: str) -> tuple[Served, Resource]:
    """Run three domains that may use a disk."""
    add_resource(world, "vault", written=written)
    resource = world.monitor.resources["vault"]
    uses = Served()
    resource.bridges = uses
    world.allow(("a", "vault"), ("one", "vault"), ("two", "vault"))
    await world.run("a", "one", "two")
    return uses, resource


def labels(*names: str) -> frozenset[Label]:
    """Return labels by name."""
    return frozenset(map(label, names))


@pytest.mark.parametrize("refuses", [True, False])
@pytest.mark.parametrize("before", ["", "one", "two"])
def test_who_is_refused_a_disk_has_not_written_it(refuses: bool, before: str) -> None:
    """Its rival gets it afterwards; who wrote it before has. The control: it had the disk."""

    async def scene(world: World) -> None:
        uses, resource = await vault(world, *filter(None, [before]))
        world.monitor.mediator.decider = decider = Walled()
        decider.allowed = {frozenset({"one", "vault"}), frozenset({"two", "vault"})}
        decider.wall = before != "two"  # which had it before, so that `one` is asked about that
        uses.refuses = refuses
        if refuses:
            with pytest.raises(Denied, match="in use"):
                await world.monitor.bind("one", "vault")
        else:
            channel = await world.monitor.bind("one", "vault")
            world.monitor.cut(channel.number)
        kept = labels(before) if before else labels()
        assert resource.written == (kept if refuses else kept | labels("one"))
        uses.refuses, decider.wall = False, True
        if refuses and before != "one":
            await world.monitor.bind("two", "vault", one_way=True)
        else:
            with pytest.raises(Refused):
                await world.monitor.bind("two", "vault", one_way=True)

    play(scene)


@pytest.mark.parametrize("refuses", [True, False])
def test_who_is_being_given_a_disk_counts_for_all_who_are_asked_meanwhile(refuses: bool) -> None:
    """Nobody may be let in beside it whom a policy keeps apart; afterwards only if it had it."""

    async def scene(world: World) -> None:
        uses, resource = await vault(world)
        world.monitor.mediator.decider = decider = Walled()
        decider.allowed = {frozenset({"one", "vault"}), frozenset({"two", "vault"})}
        uses.refuses = refuses
        uses.gate.clear()
        giving = asyncio.ensure_future(world.monitor.bind("one", "vault"))
        await uses.begun.wait()
        assert resource.written == labels()
        with pytest.raises(Refused):
            await asyncio.wait_for(world.monitor.bind("two", "vault", one_way=True), 10)
        uses.gate.set()
        if not refuses:
            await giving
            with pytest.raises(Refused):
                await world.monitor.bind("two", "vault", one_way=True)
            return
        with pytest.raises(Denied):
            await giving
        uses.refuses = False
        await world.monitor.bind("two", "vault", one_way=True)

    play(scene)


def test_a_use_that_is_refused_leaves_the_mark_of_another_of_the_same_label() -> None:
    """It had the disk, and lost it, while the other waited."""

    async def scene(world: World) -> None:
        uses, resource = await vault(world)
        uses.refuses = True
        refusal = uses.gate
        refusal.clear()
        waiting = asyncio.ensure_future(world.monitor.bind("a", "vault"))
        await uses.begun.wait()
        uses.refuses, uses.gate = False, asyncio.Event()
        uses.gate.set()
        channel = await world.monitor.bind("a", "vault", port="again")
        world.monitor.cut(channel.number)
        refusal.set()
        with pytest.raises(Denied, match="in use"):
            await waiting
        assert resource.written == labels("a")

    play(scene)


def test_who_may_have_had_a_disk_is_remembered_whatever_became_of_it() -> None:
    """Its machine failed to take the end, or says so."""

    async def scene(world: World) -> None:
        _, resource = await vault(world)
        world.machines["a"].fails.add("attach")
        with pytest.raises(MachineError):
            await world.monitor.bind("a", "vault")
        assert resource.written == labels("a")
        assert not world.audit.events("deny"), "a machine that fails is no denial"

    play(scene)


def test_who_is_relabelled_while_it_is_given_a_disk_is_remembered_by_both_names_or_the_new() -> (
    None
):
    """What reaches the disk is what it has under its new label."""

    async def scene(world: World) -> None:
        uses, resource = await vault(world)
        uses.gate.clear()
        giving = asyncio.ensure_future(world.monitor.bind("a", "vault"))
        await uses.begun.wait()
        await world.monitor.relabel(world.operator, "a", label("one"))
        uses.gate.set()
        channel = await giving
        assert channel.phase is Phase.LIVE
        assert label("one") in resource.written

    play(scene)


@pytest.mark.parametrize("where", ["mint", "open", "cut"])
def test_what_was_allowed_and_then_refused_is_on_record_once_as_a_denial(where: str) -> None:
    """After its allow, with the code, and the caller is given its number."""

    async def scene(world: World) -> None:
        uses, _ = await vault(world)
        uses.full, uses.refuses = where == "mint", where == "open"
        uses.gate.clear()
        binding = asyncio.ensure_future(world.monitor.bind("a", "vault"))
        for _ in range(50):
            await asyncio.sleep(0)
        for channel in world.monitor.channels if where == "cut" else ():
            world.monitor.cut(channel.number)
        uses.gate.set()
        with pytest.raises(Denied) as denied:
            await binding
        (deny,) = world.audit.events("deny")
        codes = {"mint": LimitReached.code, "open": "DISK-IN-USE", "cut": StaleGeneration.code}
        assert deny["why"] == {"code": codes[where], "sentence": denied.value.message}
        assert (deny["hook"], deny["source"], deny["sink"]) == ("resource_both", "a", "vault")
        assert deny["channel"] == world.audit.events("allow")[-1]["channel"]
        names = [name for name, _ in world.audit.records]
        assert denied.value.record == len(names) - names[::-1].index("deny")

    play(scene)


def test_a_refusal_of_the_policy_is_on_record_once() -> None:
    """The control of the test before: what was never allowed is recorded where it was decided."""

    async def scene(world: World) -> None:
        await vault(world)
        world.decider.allowed.clear()
        with pytest.raises(Refused):
            await world.monitor.bind("a", "vault")
        assert len(world.audit.events("deny")) == 1

    play(scene)
