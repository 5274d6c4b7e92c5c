"""Who reads a resource while another writes it: asked, remembered and cut as for any exchange."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import pytest

from skerry.label import Label
from skerry.monitor.table import Channel
from skerry.xsm.explain import Refused
from skerry.xsm.request import Verdict
from tests.support.monitor import ToyDecider, World, label, play
from tests.support.resources import add_resource
from tests.support.sharing import Store, sharing


@pytest.mark.parametrize("first", ["reader", "writer"])
def test_a_reader_has_touched_what_its_writer_has_whoever_came_first(first: str) -> None:
    """The history and the record have both; the control: before, the wall was open."""

    async def scene(store: Store) -> None:
        await store.run("auditor", "alice")
        both = [("auditor", "ro"), ("alice", "rw")]
        for each in both if first == "reader" else reversed(both):
            assert await store.may_exchange("auditor", "bob")
            await store.bind(*each)
        assert not await store.may_exchange("auditor", "bob")
        asked = store.world.audit.events("allow")[-1]["parties"]
        assert isinstance(asked, Mapping)
        role, other = ("joined0", "auditor") if first == "reader" else ("writer0", "alice")
        assert asked[role] == other

    sharing(scene)


def test_a_writer_is_refused_beside_a_reader_that_it_may_not_exchange_with() -> None:
    """Nothing of it is minted, and the reader reads on; the control: alone it may write."""

    async def scene(store: Store) -> None:
        await store.run("bob")
        reading = await store.bind("bob", "ro")
        await store.manager.touch(store.label("courier"), store.label("alice"))
        await store.run("courier")
        with pytest.raises(Refused, match="exchange"):
            await store.bind("courier", "rw")
        assert [one_way for one_way, _, _ in store.uses.minted] == [True]
        assert [channel.number for channel in store.monitor.channels] == [reading]
        store.monitor.cut(reading)
        await store.bind("courier", "rw")

    sharing(scene)


@pytest.mark.parametrize("read_before", [True, False])
def test_a_relabel_loses_what_a_reader_may_not_be_told_under_the_new_label(
    read_before: bool,
) -> None:
    """The writer's use is cut before the new label counts; the control: nobody reads."""

    async def scene(store: Store) -> None:
        await store.run("auditor", "courier")
        reading = await store.bind("auditor", "ro") if read_before else 0
        writing = await store.bind("courier", "rw")
        await store.manager.touch(store.label("auditor"), store.label("bob"))
        done = await store.monitor.relabel(store.label("system"), "courier", store.label("alice"))
        assert done.cut == ((writing,) if read_before else ())
        assert (store.label("alice") in store.resource.written) is not read_before
        standing = [channel.number for channel in store.monitor.channels]
        assert standing == [reading if read_before else writing]

    sharing(scene)


def test_a_relabel_that_keeps_the_use_is_remembered_by_who_reads() -> None:
    """The reader exchanges with the new label from then on."""

    async def scene(store: Store) -> None:
        await store.run("auditor", "courier")
        await store.bind("auditor", "ro")
        await store.bind("courier", "rw")
        assert await store.may_exchange("auditor", "bob"), "the control"
        await store.monitor.relabel(store.label("system"), "courier", store.label("alice"))
        assert not await store.may_exchange("auditor", "bob")

    sharing(scene)


class Slow(ToyDecider):
    """Keeps `auditor` and `alice` apart, and lets a test act while the latter is asked about."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.remembers = True

    async def admit_bind(self, *labels: Label) -> Verdict:
        """Answer, and only then let the test act, once."""
        verdict = await super().admit_bind(*labels)
        if self.meanwhile is not None and set(map(str, labels)) == {"alice", "courier"}:
            act, self.meanwhile = self.meanwhile, None
            await act()
        yes = not {"auditor", "alice"} <= set(map(str, labels))
        return Verdict(verdict.hook, yes, (), (), verdict.generation)


def test_a_reader_that_comes_while_its_writer_is_relabelled_is_asked_about_too() -> None:
    """It was allowed beside the old label, and is live before the new one is visible."""

    async def scene(world: World) -> None:
        world.monitor.mediator.decider = decider = Slow()
        decider.allowed = {frozenset({name, "store"}) for name in ("auditor", "courier", "alice")}
        add_resource(world, "store")
        await world.run("auditor", "courier")
        writing = await world.monitor.bind("courier", "store")
        world.audit.gate = gate = asyncio.Event()
        binding = world.monitor.bind("auditor", "store", one_way=True)
        reading = asyncio.ensure_future(binding)
        await asyncio.sleep(0)
        assert decider.asked[-1][0] == "resource_read", "it waits for its record"
        world.audit.gate = None

        async def act() -> None:
            gate.set()
            await reading

        decider.meanwhile = act
        done = await world.monitor.relabel(world.operator, "courier", label("alice"))
        assert done.cut == (writing.number,)
        assert [channel.number for channel in world.monitor.channels] == [(await reading).number]

    play(scene)


def test_who_uses_a_resource_is_known_after_a_restart_too() -> None:
    """Nothing of an uplink is on the disk: its readmitted user counts, so a rival is kept out.

    The control: where nobody was readmitted the rival gets it.
    """

    async def scene(world: World, *, used: bool) -> None:
        world.monitor.mediator.decider = decider = Slow()
        decider.allowed = {frozenset({name, "web"}) for name in ("auditor", "alice")}
        add_resource(world, "web", "uplink")
        await world.run("auditor", "alice")
        sink = world.monitor.resources["web"]
        if used:
            old = Channel(1, "uplink", world.monitor.domain("alice"), sink, "web", False)
            world.monitor.readmit_channel(old)
            with pytest.raises(Refused):
                await world.monitor.bind("auditor", "web")
        else:
            await world.monitor.bind("auditor", "web")

    play(partial(scene, used=True))
    play(partial(scene, used=False))


def test_what_is_thrown_away_is_told_to_nobody_and_leaves_no_name() -> None:
    """A use of a disk that keeps nothing asks about no reader, nor a relabel; the control keeps."""

    async def scene(store: Store) -> None:
        await store.run("auditor", "alice")
        store.resource.keeps = False
        await store.bind("auditor", "ro")
        number = await store.bind("alice", "rw")
        await store.monitor.relabel(store.label("system"), "alice", store.label("courier"))
        assert store.resource.written == frozenset()
        assert await store.may_exchange("auditor", "bob")
        store.monitor.cut(number)
        await store.monitor.relabel(store.label("system"), "alice", store.label("alice"))
        store.resource.keeps = True
        await store.bind("alice", "rw")
        assert store.resource.written == {store.label("alice")}
        assert not await store.may_exchange("auditor", "bob")

    sharing(scene)
