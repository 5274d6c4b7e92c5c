"""The node's journal: what it says is what was written, whatever a crash leaves of its files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from skerry.channel.one_way import Relay
from skerry.channel.stream import StreamBridges
from skerry.errors import AuditUnavailable, SkerryError, TransportError
from skerry.label import Label
from skerry.machine.simulator.disk import SimulatedDisk
from skerry.monitor.domain import Domain, State
from skerry.monitor.protocols import Overflow
from skerry.monitor.table import Channel, Phase
from skerry.node import journal as module
from skerry.node.journal import NodeJournal, read_journal, twin_name
from skerry.node.standing import Footprint, Standing
from skerry.supervisor.client import SpawnFailed
from tests.support.monitor import ToyMachine
from tests.support.relays import BareRelays

PATH = Path("/state/journal.log")


class Store:
    """A supervisor's store that may be full."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}
        self.full = False

    async def keep(self, fds: Mapping[str, int]) -> None:
        """Hold copies."""
        if self.full:
            raise SpawnFailed("the limit")
        self.kept |= {name: os.dup(fd) for name, fd in fds.items()}

    async def drop(self, *names: str) -> None:
        """Close them."""
        for name in names:
            if name in self.kept:
                os.close(self.kept.pop(name))


class Scene:
    """A journal on a simulated disk, with two domains."""

    def __init__(self, seed: int = 0) -> None:
        self.disk = SimulatedDisk(seed)
        self.store = Store()
        self.journal: NodeJournal
        self.domains = [Domain(name, label(name), 1.5) for name in ("a", "b")]

    async def open(self, standing: Standing | None = None) -> None:
        """Begin a journal."""
        standing = standing or Standing("token", "setup-1")
        self.journal = await NodeJournal.open(PATH, self.store, standing, self.disk)
        self.journal.footprint = lambda machine: Footprint(
            f"d/{next(d.name for d in self.domains if d.machine is machine)}/1", "toy", 7, ("g",)
        )

    def channel(self, number: int) -> Channel:
        """Return a live channel between the two."""
        source, sink = self.domains
        channel = Channel(number, "stream", source, sink, "p", False)
        channel.generation, channel.record, channel.since = 3, 4, 5.5
        channel.bridge = StreamBridges().mint()
        return channel

    def read(self) -> Standing | None:
        """Read it as the next node does."""
        return read_journal(PATH, self.disk)


def label(text: str) -> Label:
    """Make a label."""
    return Label((("acm", text),))


def play(scene: Callable[[Scene], Awaitable[None]], seed: int = 0) -> None:
    """Run a scene."""

    async def run() -> None:
        world = Scene(seed)
        for domain in world.domains:
            domain.machine = ToyMachine()
        await world.open()
        await scene(world)
        await world.journal.close()

    asyncio.run(run())


def test_a_one_way_channel_stands_with_its_setting_and_the_uid_of_its_relay() -> None:
    """The next node gives that uid to nobody; the control: a two-way channel has none."""

    async def scene(world: Scene) -> None:
        relays = BareRelays()

        async def start(number: int, source: int, sink: int, overflow: Overflow) -> Relay:
            return (await relays.start(number, source, sink, overflow))._replace(uid=165_500)

        for number, one_way in ((1, False), (2, True)):
            channel = world.channel(number)
            channel.one_way, channel.overflow = one_way, "drop" if one_way else "block"
            if one_way:
                assert channel.bridge is not None
                channel.bridge.cut()
                channel.bridge = StreamBridges(relay=start).mint(True, "drop")
                await channel.bridge.open(number)
            await world.journal.minted(channel)
            await world.journal.live(channel)
            assert channel.bridge is not None
            channel.bridge.cut()
        await world.journal.close()
        standing = world.read()
        assert standing is not None
        entries = standing.channels
        assert (entries[1].overflow, entries[1].uid) == ("block", 0)
        assert (entries[2].overflow, entries[2].uid) == ("drop", 165_500)
        assert standing.uid == 165_500
        sides = ("source", "sink")
        assert set(world.store.kept) == {f"c/{n}.{side}" for n in (1, 2) for side in sides}
        await world.store.drop(*world.store.kept)
        await relays.ended()

    play(scene)


def test_what_is_read_is_what_stood() -> None:
    """Domains with label and footprint, channels with ends and bounds, policy, counters."""

    async def scene(world: Scene) -> None:
        a, b = world.domains
        for domain in (a, b):
            await world.journal.ready(domain)
        one, two = world.channel(1), world.channel(2)
        two.for_s = 9.0
        for channel in (one, two):
            await world.journal.minted(channel)
            await world.journal.live(channel)
        await world.journal.labelled(b, label("other"))
        await world.journal.changed("setup-2", 2, {a: label("renamed")})
        world.journal.gone(one)
        await world.journal.write("setup", {"setup": "setup-3", "generation": 3, "labels": {}})
        await world.journal.close()
        found = world.read()
        assert found == world.journal.standing
        assert found is not None
        await world.open(found)
        assert {d.name: str(d.label) for d in found.domains.values()} == {
            "a": "renamed",
            "b": "other",
        }
        assert found.domains["d/a/1"].footprint == Footprint("d/a/1", "toy", 7, ("g",))
        assert list(found.channels) == [2]
        assert (found.channels[2].source, found.channels[2].for_s) == ("d/a/1", 9.0)
        assert (found.setup, found.generation, found.channel, found.uid) == ("setup-3", 3, 2, 7)
        assert set(world.store.kept) == {twin_name(2, "source"), twin_name(2, "sink")}
        world.journal.ended(a)
        await world.journal.write("setup", {"setup": "setup-3", "generation": 3, "labels": {}})
        await world.journal.close()
        after = world.read()
        assert after is not None
        assert list(after.domains) == ["d/b/1"]
        for channel in (one, two):
            assert channel.bridge is not None
            channel.bridge.cut()

    play(scene)


def test_twins_that_nobody_keeps_refuse_the_channel() -> None:
    """A supervisor that is full or gone is a denial, by type."""

    async def scene(world: Scene) -> None:
        world.store.full = True
        channel = world.channel(1)
        with pytest.raises(TransportError, match="does not keep the ends of channel 1"):
            await world.journal.minted(channel)
        assert channel.bridge is not None
        channel.bridge.cut()

    play(scene)


@pytest.mark.parametrize("seed", range(40))
def test_a_crash_at_any_operation_loses_nothing_that_was_acknowledged(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the file is written anew; what was on its way is there or not, whole."""
    monkeypatch.setattr(module, "GROWN", 6)

    async def scene(world: Scene) -> None:
        for domain in world.domains:
            await world.journal.ready(domain)
        world.disk.crash_in = seed * 2
        acknowledged = 0
        try:
            for generation in range(2, 40):
                await world.journal.changed(f"setup-{generation}", generation, {})
                acknowledged = generation
        except SkerryError:
            pass
        world.disk.crash_in = None
        await world.journal.close()
        world.disk.crash()
        found = world.read()
        assert found is not None
        assert found.generation in (acknowledged, acknowledged + 1) if acknowledged else True
        assert found.setup == f"setup-{found.generation}" or found.generation == 1
        assert set(found.domains) == {"d/a/1", "d/b/1"}
        await world.open(found)  # and the next node goes on with it

    play(scene, seed)


def test_a_journal_that_was_altered_is_refused() -> None:
    """Any byte in the middle; only a torn end, which was never acted upon, is passed over."""

    async def scene(world: Scene) -> None:
        for domain in world.domains:
            await world.journal.ready(domain)
        whole = world.disk.content(PATH)
        await world.journal.close()
        for at in range(3, len(whole) - 700, 97):
            world.disk.replace(PATH, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(SkerryError, match=r"is damaged|has no beginning"):
                world.read()
        world.disk.replace(PATH, whole[:-9])
        torn = world.read()
        assert torn is not None
        assert list(torn.domains) == ["d/a/1"]
        world.disk.replace(PATH, b"")
        with pytest.raises(SkerryError, match="has no beginning"):
            world.read()

    play(scene)


def test_a_disk_that_is_full_refuses_what_must_be_durable() -> None:
    """And takes it again when there is room."""

    async def scene(world: Scene) -> None:
        world.disk.faults["append"] = 28
        with pytest.raises(AuditUnavailable):
            await world.journal.ready(world.domains[0])
        world.journal.ended(world.domains[0])  # what was taken away never raises
        world.disk.faults.clear()
        async with asyncio.timeout(5):
            for _ in range(50):
                try:
                    await world.journal.ready(world.domains[1])
                    break
                except AuditUnavailable:
                    await asyncio.sleep(0.05)
        await world.journal.close()
        found = world.read()
        assert found is not None
        assert len(found.domains) == 1

    play(scene)


def test_what_goes_while_it_is_written_down_does_not_stand() -> None:
    """A domain that ends, a channel that is cut or given up; the channel that stays is read."""

    async def scene(world: Scene) -> None:
        a, b = world.domains
        await world.journal.ready(a)
        ending = asyncio.ensure_future(world.journal.ready(b))
        channels = [world.channel(number) for number in (1, 2, 3)]
        binding = [asyncio.ensure_future(world.journal.live(channel)) for channel in channels]
        await asyncio.sleep(0)  # all are on their way
        b.move(State.ENDED, 2.0)
        world.journal.ended(b)
        channels[0].phase = Phase.CUT
        world.journal.gone(channels[0])
        binding[1].cancel()
        await asyncio.gather(ending, *binding, return_exceptions=True)
        standing = world.journal.standing
        assert (list(standing.domains), list(standing.channels)) == (["d/a/1"], [3])
        await world.journal.close()
        found = world.read()
        assert found is not None
        assert (list(found.domains), list(found.channels)) == (["d/a/1"], [3])
        for channel in channels:
            assert channel.bridge is not None
            channel.bridge.cut()

    play(scene)


def test_a_label_that_was_not_given_is_not_read_after_a_failing_disk_or_a_caller_that_left() -> (
    None
):
    """What can't be undone at once is undone later; what nobody waits for any more is undone."""

    def read(world: Scene) -> str:
        found = world.read()
        assert found is not None
        return str(found.domains["d/a/1"].label)

    async def scene(world: Scene) -> None:
        domain = world.domains[0]
        await world.journal.ready(domain)
        await world.journal.labelled(domain, label("refused"))
        assert b"refused" in world.disk.content(PATH), "the control: it is durable at once"
        await world.journal.close()
        assert read(world) == "refused"
        await world.open(world.read())
        world.disk.faults["append"] = 28
        with pytest.raises(AuditUnavailable):
            await world.journal.labelled(domain, domain.label)
        world.disk.faults.clear()
        await world.journal.close()
        assert read(world) == "a"
        await world.open(world.read())
        giving = asyncio.ensure_future(world.journal.labelled(domain, label("refused")))
        await asyncio.sleep(0)
        giving.cancel()
        await asyncio.wait({giving})
        await world.journal.close()
        assert b"refused" in world.disk.content(PATH), "the control: it was on its way"
        assert read(world) == "a"

    play(scene)


@pytest.mark.parametrize("operation", ["rename", "sync_folder", "open", "append", "sync"])
def test_a_journal_that_cannot_begin_anew_goes_on_with_what_it_has(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is restarted on a bad disk stands, refuses what must be durable, and recovers."""
    monkeypatch.setattr(module, "GROWN", 3)

    async def scene(world: Scene) -> None:
        for domain in world.domains:
            await world.journal.ready(domain)
        await world.journal.close()
        standing = world.read()
        assert standing is not None
        world.disk.faults[operation] = 30  # type: ignore[index] # one of its operations
        await world.open(standing)
        for generation in range(2, 9):
            try:
                await world.journal.changed("setup-x", generation, {})
            except AuditUnavailable:
                continue
        world.disk.faults.clear()
        async with asyncio.timeout(5):
            while True:
                try:
                    await world.journal.changed("setup-last", 9, {})
                    break
                except AuditUnavailable:
                    await asyncio.sleep(0.05)  # its writer tries again now and then
        await world.journal.close()
        world.disk.crash()
        found = world.read()
        assert found is not None
        assert (found.setup, set(found.domains)) == ("setup-last", {"d/a/1", "d/b/1"})

    play(scene)


def test_records_that_make_no_sense_are_errors() -> None:
    """Each kind of record with fields of another, and kinds that no journal has."""
    good = dict(Standing("t", "s").records())
    for event in ("begin", "setup", "domain", "label", "ended", "channel", "gone", "other"):
        with pytest.raises(ValueError, match=r"no sense|no journal"):
            Standing().apply(event, {"labels": 3, "domains": 4, "channels": 5})
    assert msgspec.to_builtins(Standing("t", "s"))["token"] == good["begin"]["token"]
