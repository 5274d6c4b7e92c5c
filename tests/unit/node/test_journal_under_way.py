"""The node's journal: twins in safe hands, and only those of the channel they are named for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from skerry.channel.stream import StreamBridges
from skerry.errors import DeciderUnavailable, Denied, TransportError
from skerry.label import Label
from skerry.monitor.domain import Domain
from skerry.monitor.journal import Journal
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Machine
from skerry.monitor.table import Channel
from skerry.node import recover
from skerry.node.bridges import AllBridges
from skerry.node.journal import NUMBERS, NodeJournal, read_journal
from skerry.node.recover import Recovery
from skerry.node.resources import Resources
from skerry.node.standing import DomainEntry, Footprint, Standing
from skerry.supervisor.client import Inherited, SupervisorGone
from skerry.xsm.explain import Refused
from tests.support.monitor import ToyDecider, World, label

STANDING = "d/a/1"


class SlowStore:
    """A supervisor that answers when it is let, with the descriptors that it sees then."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.kept: dict[str, int] = {}
        self.dropped: list[str] = []
        self.gone = False

    async def keep(self, fds: Mapping[str, int]) -> None:
        """Take the sockets' identities late."""
        await self.may.wait()
        if self.gone:
            raise SupervisorGone("it ended")
        self.kept |= {name: os.fstat(fd).st_ino for name, fd in fds.items()}

    async def drop(self, *names: str) -> None:
        """Forget."""
        self.dropped += names


def channel_between(world: World) -> Channel:
    """Return a channel that was just minted."""
    one, other = (Domain(name, label(name), 0) for name in "ab")
    channel = Channel(7, "stream", one, other, "p", one_way=False)
    channel.bridge = StreamBridges().mint()
    return channel


def test_a_channel_cut_while_its_twins_are_kept_leaves_nothing_kept(tmp_path: Path) -> None:
    """What is kept are its own twins, though their numbers are others' by then; then it goes."""

    async def main() -> None:
        store = SlowStore()
        journal = await NodeJournal.open(tmp_path / "journal.log", store, Standing())
        channel = channel_between(World())
        bridge = channel.bridge
        assert bridge is not None
        twins = dict(getattr(bridge, "twins"))  # noqa: B009 the protocol has none
        own = {os.fstat(twin).st_ino for twin in twins.values()}
        keeping = asyncio.ensure_future(journal.minted(channel))
        await asyncio.sleep(0)
        channel.bridge = None
        bridge.cut()
        others = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]
        assert set(twins.values()) & set(others), "the control: the numbers were given again"
        store.may.set()
        await keeping
        assert set(store.kept.values()) == own
        await journal.close()
        assert set(store.dropped) == {"c/7.source", "c/7.sink"}
        for descriptor in others:
            os.close(descriptor)

    asyncio.run(main())


def test_a_supervisor_that_keeps_nothing_is_a_denial(tmp_path: Path) -> None:
    """Gone, or out of descriptors here: by type a refusal; with a store it is kept."""

    async def main() -> None:
        store = SlowStore()
        store.may.set()
        journal = await NodeJournal.open(tmp_path / "journal.log", store, Standing())
        channel = channel_between(World())
        await journal.minted(channel)
        assert len(store.kept) == 2
        store.gone = True
        with pytest.raises(TransportError):
            await journal.minted(channel)
        assert issubclass(TransportError, Denied)
        assert channel.bridge is not None
        channel.bridge.cut()
        await journal.close()

    asyncio.run(main())


def test_a_relabel_that_is_refused_leaves_the_old_label_written_down(tmp_path: Path) -> None:
    """The domain is stopped while its new label is being written; one that succeeds is kept."""

    async def main() -> None:
        store = SlowStore()
        store.may.set()
        path = tmp_path / "journal.log"
        journal = await NodeJournal.open(path, store, Standing())
        world = World(journal)
        journal.footprint = lambda machine: Footprint(STANDING, machine.kind)
        monitor = world.monitor
        await world.run("a")
        await monitor.relabel(world.operator, "a", label("b"))
        assert written(path) == "b", "the control"
        labelled = journal.labelled

        async def stopped(domain: Domain, new: Label) -> None:
            await labelled(domain, new)
            if not stopping:
                assert written(path) == "c"
                stopping.append(asyncio.ensure_future(monitor.stop("a", 1)))
                await asyncio.sleep(0)

        stopping: list[asyncio.Future[None]] = []
        hold = asyncio.Event()
        world.machines["a"].shutdown = lambda deadline_s: hold.wait()  # type: ignore[method-assign, assignment, return-value]
        journal.labelled = stopped  # type: ignore[method-assign, assignment]
        with pytest.raises(Exception, match="cannot relabel"):
            await monitor.relabel(world.operator, "a", label("c"))
        assert written(path) == "b"
        hold.set()
        await stopping[0]
        await journal.close()
        world.close()

    asyncio.run(main())


def written(path: Path) -> str:
    """Return the label that a restarted node would go on with."""
    standing = read_journal(Copy(path).path)
    assert standing is not None
    return str(standing.domains[STANDING].label)


class Copy:
    """A file's copy, since the journal itself is locked by its writer."""

    def __init__(self, path: Path) -> None:
        folder = path.parent / "copy"
        folder.mkdir(exist_ok=True)
        self.path = folder / path.name
        self.path.write_bytes(path.read_bytes())
        self.path.chmod(0o600)


def test_the_supervisor_forgets_a_domain_that_ended_while_there_was_no_node(
    tmp_path: Path,
) -> None:
    """Its process and all that was kept for it; else they would count for ever."""

    async def main() -> None:
        store = SlowStore()
        standing = Standing()
        entry = DomainEntry("a", label("a"), 0.0, Footprint(STANDING, "toy"))
        standing.domains[STANDING] = entry
        journal = await NodeJournal.open(tmp_path / "journal.log", store, standing)
        world = World(journal)
        monitor: Monitor = world.monitor

        def heir(*_: object) -> Machine:
            raise AssertionError("there is no process")

        recovery = Recovery(
            monitor,
            journal,
            Inherited({}, {}),
            heir,  # type: ignore[arg-type]
            lambda _: None,
            lambda number, process: None,
            AllBridges(StreamBridges(), Resources({})).adopt,
        )
        found = await recovery.run(lambda: world.decider)
        assert list(found.ended) == ["a"]
        await journal.close()
        assert STANDING in store.dropped
        assert f"{STANDING}.console" in store.dropped

    asyncio.run(main())


@pytest.mark.parametrize("comes", [True, False])
def test_what_was_adopted_waits_for_a_judge_and_does_not_go_on_without(
    comes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manager that is started again meanwhile judges; without one the node does not begin."""
    monkeypatch.setattr(recover, "JUDGE_PAUSE_S", 0.01)
    asked = 0

    async def main() -> None:
        journal = await NodeJournal.open(tmp_path / "journal.log", SlowStore(), Standing())
        world = World(journal)
        await world.run("a", "b")
        world.allow(("a", "b"))
        world.monitor._journal = Journal()
        channel = await world.monitor.bind("a", "b")
        world.decider.allowed.clear()

        def in_force() -> ToyDecider:
            nonlocal asked
            asked += 1
            if asked <= 5 or not comes:
                raise DeciderUnavailable("another one is being started")
            return world.decider

        recovery = Recovery(
            world.monitor,
            journal,
            Inherited({}, {}),
            NotImplemented,
            NotImplemented,
            NotImplemented,
            NotImplemented,
        )
        recovery.found.channels.append(channel.number)
        recovery.take_over()
        if comes:
            assert list((await recovery.judge(in_force, 20.0)).cut) == [channel.number]
        else:
            with pytest.raises(DeciderUnavailable):
                await recovery.judge(in_force, 0.1)
        await journal.close()
        world.close()

    asyncio.run(main())
    assert asked == 6 if comes else asked > 1


def test_no_number_that_was_in_a_record_is_given_again_after_a_restart(tmp_path: Path) -> None:
    """Also those of channels that were refused; one record takes many, and is not written twice."""

    async def main() -> None:
        path = tmp_path / "journal.log"
        journal = await NodeJournal.open(path, SlowStore(), Standing())
        world = World(journal)
        await world.run("a", "b")
        records: list[int] = []
        write = journal.write

        async def counted(event: str, fields: Mapping[str, object]) -> None:
            records.append(world.monitor.channels._next)
            await write(event, fields)

        journal.write = counted  # type: ignore[method-assign]
        for _ in range(NUMBERS + 1):
            with pytest.raises(Refused):
                await world.monitor.bind("a", "b")
        last = world.audit.events("deny")[-1]["channel"]
        assert last == NUMBERS + 1
        assert len(records) == 2
        standing = read_journal(Copy(path).path)
        assert standing is not None
        assert standing.channel >= last
        await journal.close()
        world.close()

    asyncio.run(main())
