"""What must outlive the node is written down before its effect, and refused if it can't be."""

from __future__ import annotations

import asyncio
import os

import pytest

from skerry.errors import AuditUnavailable
from skerry.label import Label
from skerry.monitor.domain import Domain, State
from skerry.monitor.journal import Journal
from skerry.monitor.table import Channel, Phase
from skerry.xsm.explain import Refused
from skerry.xsm.request import Verdict
from tests.support.monitor import ToyMachine, World, carries, label, play


class Recording(Journal):
    """Remembers what it was told, and in which state the thing was then; fails on command."""

    def __init__(self, *fails: str) -> None:
        self.fails = set(fails)
        self.told: list[tuple[str, str]] = []

    def _tell(self, what: str, state: str) -> None:
        self.told.append((what, state))
        if what in self.fails:
            raise AuditUnavailable("no disk")

    async def ready(self, domain: Domain) -> None:
        """Note it."""
        self._tell("ready", domain.state.value)

    async def labelled(self, domain: Domain, label: Label) -> None:
        """Note it."""
        self._tell("labelled", f"{domain.label} to {label}")

    def ended(self, domain: Domain) -> None:
        """Note it."""
        self.told.append(("ended", domain.state.value))

    async def minted(self, channel: Channel) -> None:
        """Note how many ends the machines have."""
        self._tell("minted", self._held(channel))

    async def live(self, channel: Channel) -> None:
        """Note it."""
        self._tell("live", self._held(channel))

    def gone(self, channel: Channel) -> None:
        """Note it."""
        self.told.append(("gone", channel.phase.value))

    def _held(self, channel: Channel) -> str:
        machines = [domain.machine for domain in channel.ends]
        return str(sum(isinstance(m, ToyMachine) and channel.number in m.ends for m in machines))


def test_every_step_is_written_down_before_its_effect() -> None:
    """A domain before it may hold channels, twins before an end is given, a label before it is."""
    journal = Recording()

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"), ("a", "c"))
        channel = await world.monitor.bind("a", "b")
        await world.monitor.relabel(world.operator, "b", label("c"))
        world.monitor.cut(channel.number)
        world.monitor.kill("a")
        await world.monitor.domain("a").gone.wait()
        assert journal.told == [
            ("ready", "starting"),
            ("ready", "starting"),
            ("minted", "0"),
            ("live", "2"),
            ("labelled", "b to c"),
            ("gone", "cut"),
            ("ended", "ended"),
        ]

    play(scene, journal)


@pytest.mark.parametrize("step", ["minted", "live"])
def test_a_channel_that_cannot_be_written_down_is_cut(step: str) -> None:
    """Neither machine keeps an end, and the journal is told that it is gone."""
    journal = Recording(step)

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        with pytest.raises(AuditUnavailable):
            await world.monitor.bind("a", "b")
        await world.monitor.settle()
        assert len(world.monitor.channels) == 0
        assert [machine.ends for machine in world.machines.values()] == [{}, {}]
        assert journal.told[-1] == ("gone", "cut")

    play(scene, journal)


def test_a_domain_that_cannot_be_written_down_does_not_start() -> None:
    """Its machine is ended, and its label does not count as running."""

    async def scene(world: World) -> None:
        with pytest.raises(AuditUnavailable):
            await world.run("a")
        await world.monitor.domain("a").gone.wait()
        assert world.machines["a"].exited.done()
        assert world.monitor.running() == ()

    play(scene, Recording("ready"))


def test_a_label_that_cannot_be_written_down_is_not_given() -> None:
    """The domain keeps its label and its channels."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        channel = await world.monitor.bind("a", "b")
        with pytest.raises(AuditUnavailable):
            await world.monitor.relabel(world.operator, "b", label("c"))
        assert world.monitor.domain("b").label == label("b")
        assert carries(world, channel.number, "a", "b")

    play(scene, Recording("labelled"))


def test_a_relabel_is_undone_before_it_is_asked_again() -> None:
    """The second answer may be a refusal, and a kill then must not find the new label."""

    class Disturbing(Recording):
        async def labelled(self, domain: Domain, label: Label) -> None:
            await super().labelled(domain, label)
            if len(self.told) == 1:
                world[0].monitor.cut(next(iter(world[0].monitor.channels)).number)
                world[0].decider.conflicts.add(frozenset({"c", "a"}))

    world: list[World] = []
    journal = Disturbing()

    async def scene(here: World) -> None:
        world.append(here)
        await here.run("a", "b")
        here.allow(("a", "b"), ("a", "c"))
        await here.monitor.bind("a", "b")
        journal.told.clear()
        admit, before = here.decider.admit, list[list[tuple[str, str]]]()

        async def watched(label: Label, running: tuple[Label, ...]) -> Verdict:
            before.append([told for told in journal.told if told[0] == "labelled"])
            return await admit(label, running)

        here.decider.admit = watched  # type: ignore[method-assign] # the toy's own
        with pytest.raises(Refused):
            await here.monitor.relabel(here.operator, "b", label("c"))
        assert before == [[], [("labelled", "b to c"), ("labelled", "b to b")]]
        assert here.monitor.domain("b").label == label("b")

    play(scene, journal)


def test_a_channel_cut_while_its_twins_are_kept_reaches_no_machine() -> None:
    """The machines are asked only for a channel that still stands."""

    class Slow(Recording):
        async def minted(self, channel: Channel) -> None:
            world[0].monitor.cut(channel.number)

    world: list[World] = []

    async def scene(here: World) -> None:
        world.append(here)
        await here.run("a", "b")
        here.allow(("a", "b"))
        with pytest.raises(Exception, match="was cut while it was being bound"):
            await here.monitor.bind("a", "b")
        assert [machine.ends for machine in here.machines.values()] == [{}, {}]

    play(scene, Slow())


def test_what_is_readmitted_goes_on_as_before() -> None:
    """Its numbers are not given again, its time ends as it would have, and it can be cut."""

    async def scene(world: World) -> None:
        await world.run("a", "b")
        world.allow(("a", "b"))
        old = await world.monitor.bind("a", "b", for_s=0.05)
        after = World()
        after.machines, after.now = world.machines, world.now
        for name in ("a", "b"):
            domain = Domain(name, label(name), 0.0)
            after.monitor.readmit(domain, world.machines[name])
            after.monitor.adopted(domain, State.RUNNING)
        source, sink = after.monitor.domains.values()
        again = Channel(old.number, "stream", source, sink, "ch1", False)
        again.bridge, old.bridge = old.bridge, None
        again.for_s, again.since = old.for_s, old.since
        after.monitor.readmit_channel(again)
        assert after.monitor.running() == (label("a"), label("b"))
        assert carries(after, old.number, "a", "b")
        after.allow(("a", "b"))
        assert (await after.monitor.bind("a", "b")).number > old.number
        await asyncio.sleep(0.1)  # the timer is the loop's: twice its time
        assert again.phase is Phase.CUT
        assert not carries(after, old.number, "a", "b")
        world.machines["a"].die("died")
        await after.monitor.domain("a").gone.wait()
        assert after.monitor.running() == (label("b"),)
        after.close()
        await after.monitor.settle()

    play(scene)


def test_what_the_policy_in_force_refuses_of_it_is_cut() -> None:
    """After a restart everything is judged again; what is allowed stays."""

    async def scene(world: World) -> None:
        await world.run("a", "b", "c")
        world.allow(("a", "b"), ("b", "c"))
        kept = await world.monitor.bind("b", "c")
        lost = await world.monitor.bind("a", "b")
        os.write(world.end("a", lost.number), b"secret")
        world.decider.allowed.remove(frozenset({"a", "b"}))
        fall = await world.monitor.judge_again(world.decider)
        assert list(fall.channels) == [lost]
        assert not carries(world, lost.number, "a", "b")
        assert carries(world, kept.number, "b", "c")

    play(scene)


def test_what_goes_on_after_a_restart_counts_in_the_policys_walls_or_is_cut() -> None:
    """A kill after a policy was written down leaves nothing that was exchanged unremembered."""

    async def scene(world: World) -> None:
        await world.run("a", "b", "c")
        world.allow(("a", "b"), ("b", "c"))
        stays = await world.monitor.bind("a", "b")
        goes = await world.monitor.bind("b", "c")
        world.decider.touched.clear()
        fall = await world.monitor.judge_again(world.decider)
        assert not fall.channels
        assert {("a", "b"), ("b", "c"), ("c",)} <= set(world.decider.touched)
        touch = world.decider.touch

        async def forget(*labels: Label) -> None:
            if [str(each) for each in labels] == ["c"]:
                raise AuditUnavailable("no disk")
            await touch(*labels)

        world.decider.touch = forget  # type: ignore[method-assign] # the toy's own
        fall = await world.monitor.judge_again(world.decider)
        assert (list(fall.channels), fall.kept) == ([goes], (stays,))
        assert "can't be remembered" in fall.channels[goes]
        assert not carries(world, goes.number, "b", "c")
        assert carries(world, stays.number, "a", "b")

    play(scene)
