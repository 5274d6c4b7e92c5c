"""The replica's keeper, with a true trail and a replica in memory: what ends it, and what does not.

The replica's guest is a thread at the reading end of the feed's pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from skerry.audit import feed as feed_module
from skerry.audit.guest import RECORDS
from skerry.audit.read import first_kept, number_of, read_lines
from skerry.audit.record import parse_record
from skerry.audit.replica import Replica, Store
from skerry.audit.segments import closed_segments
from skerry.audit.writer import AuditTrail
from skerry.errors import MachineError
from skerry.monitor.domain import Domain, State
from skerry.monitor.mediate import AUDIT
from skerry.monitor.protocols import Exit
from skerry.node import replica as replica_module
from skerry.node.guest import Sink
from skerry.node.node import Node
from skerry.node.replica import Replication
from tests.support.remote import until


class Guest:
    """A replica's guest: it reads what it was given, and says how it stands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.replica = Replica(Store(folder, file=4000))
        self.reads = threading.Event()
        self.reads.set()
        self.agent = self
        self._has_port = False
        self._thread: threading.Thread | None = None

    def give(self, end: int) -> None:
        """Take a new end of the port; what the one before still holds is lost."""
        self.close()
        if self._thread is not None:
            self._thread.join()
        self._has_port = True
        self.replica.connected()
        self._thread = threading.Thread(target=self._run, args=(os.dup(end),), daemon=True)
        self._thread.start()

    def _run(self, end: int) -> None:
        with open(end, "rb", buffering=0) as port:
            while self.reads.wait() and self._has_port and (piece := port.read(4096)):
                self.replica.take(piece)

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", output: Sink, timeout_s: float | None
    ) -> int:
        """Run a script as its guest does, with its files where they are here."""
        if argv[2] == replica_module.SAY:
            said, code = msgspec.json.encode(self.replica.status), 0
        else:
            script = argv[2].replace(str(RECORDS), str(self.folder))
            done = await asyncio.to_thread(
                subprocess.run, [*argv[:2], script], capture_output=True, check=False
            )
            said, code = done.stdout, done.returncode
        for at in range(0, len(said), 3000):
            output("out", said[at : at + 3000])
        return code

    def close(self) -> None:
        """Read no more from the port, once what it waits for has come."""
        self._has_port = False
        self.reads.set()


class Home:
    """The replica's domain, with a new guest whenever the last one has ended."""

    def __init__(self, folder: Path) -> None:
        self.guests: list[Guest] = []
        self._folder = folder
        self._domain: Domain | None = None

    async def stand(self) -> Domain:
        """Return it, alive."""
        if self._domain is None:
            self.guests.append(Guest(self._folder / str(len(self.guests))))
            self._domain = Domain("audit", AUDIT, 0.0)
            for state in (State.PAUSED, State.RUNNING):
                self._domain.move(state, 0.0)
            self._domain.machine = cast("object", self.guests[-1])  # type: ignore[assignment]
        return self._domain

    async def give(self, domain: Domain, end: int) -> None:
        """Give it the end of its port."""
        self.guests[-1].give(end)

    def kill(self) -> None:
        """End it at once."""
        domain, self._domain = self._domain, None
        if domain is not None:
            self.guests[-1].close()
            domain.end = Exit(-9, "killed")
            domain.gone.set()


class Scene:
    """A trail of small segments, the replica's home, and who keeps it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "audit.log"
        self.trail = AuditTrail.open(self.path, rotate=4000, keep=100)
        self.home = Home(folder / "replicas")
        self.keeper = self._keeper()

    def _keeper(self) -> Replication:
        async def answered(name: str, timeout_s: float) -> None:
            """Answer at once."""

        return Replication(cast(Node, SimpleNamespace(answered=answered)), self.home, self.trail)

    async def next_service(self) -> None:
        """Have another service take up what stands."""
        await self.keeper.close()
        self.keeper = self._keeper()
        await self.keeper.begin(insist=True)

    async def record(self, count: int) -> None:
        """Append records."""
        for _ in range(count):
            await self.trail.append("allow", {"x": "y" * 100})

    @property
    def replica(self) -> Replica:
        """The replica that stands."""
        return self.home.guests[-1].replica

    def caught_up(self) -> bool:
        """Say whether the replica has all that is on record."""
        return self.replica.status.n == self.trail.head.n

    def closed(self) -> list[Path]:
        """Return the closed segments, oldest first."""
        return [
            path
            for _, path in closed_segments(self.path, (p.name for p in self.path.parent.iterdir()))
        ]

    def events(self) -> list[str]:
        """Return what became of the replica, by the trail."""
        lines = [line for line in read_lines(self.path) if line.startswith(b'{"n"')]
        return [r.event for r in map(parse_record, lines) if r.event.startswith("replica-")]


@contextlib.asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    """Give a scene whose replica stands and has read all."""
    made = Scene(folder)
    try:
        await made.record(3)
        await made.keeper.begin(insist=True)
        await until(made.caught_up)
        yield made
    finally:
        await made.keeper.close()
        made.home.kill()
        made.trail.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the feed and the keeper wait little."""
    monkeypatch.setattr(feed_module, "PAUSE_S", 0.01)
    monkeypatch.setattr(feed_module, "RETRY_S", 0.05)
    monkeypatch.setattr(replica_module, "FIRST_PAUSE_S", 0.01)


def spoil(made: Scene) -> None:
    """Write a line that is no record behind the trail."""
    with made.path.open("ab") as file:
        file.write(b"x\n")


def test_what_is_written_to_the_trail_s_file_does_not_end_the_replica(tmp_path: Path) -> None:
    """It stands with all that it had, and both `ps` and the trail say that it is not fed."""

    async def run() -> None:
        async with scene(tmp_path) as made:
            before = made.replica.status
            assert made.keeper.state == "running"
            spoil(made)
            await until(lambda: made.keeper.state == "unfed")
            await until(lambda: made.events() == ["replica-unfed"])
            await asyncio.sleep(0.2)
            assert len(made.home.guests) == 1
            assert made.replica.status == before
            status = await made.keeper.status()
            assert "a line is no record" in str(status["unfed"])
            assert status["hash"] == before.hash

    asyncio.run(run())


def test_control_a_replica_that_reads_no_more_is_replaced(tmp_path: Path) -> None:
    """Its reading end is gone, so nothing would ever reach it; the trail says both."""

    async def run() -> None:
        async with scene(tmp_path) as made:
            made.home.guests[0].close()
            await made.record(1)
            await until(lambda: made.events() == ["replica-lost", "replica-back"])
            await until(made.caught_up)
            assert len(made.home.guests) == 2
            assert made.keeper.state == "running"

    asyncio.run(run())


@pytest.mark.parametrize("spoiled", [False, True])
def test_the_next_service_feeds_what_a_lagging_replica_lacks(spoiled: bool, tmp_path: Path) -> None:
    """Over any number of rotations, from the segment on that holds its last record; and a line
    that is no record neither ends the replica then."""

    async def run() -> None:
        async with scene(tmp_path) as made:
            has = made.replica.status.n
            made.home.guests[0].reads.clear()
            await made.record(100)
            assert first_kept(made.path) == 1
            assert int(made.closed()[-1].suffix[1:]) > has + 20, "the control: it lags so far"
            last = made.trail.head.n
            if spoiled:
                spoil(made)
            await made.next_service()
            await until(lambda: made.replica.status.n >= last)
            await until(lambda: made.keeper.state == ("unfed" if spoiled else "running"))
            status = made.replica.status
            assert (status.state, status.gaps, status.first) == ("whole", (), 1)
            assert len(made.home.guests) == 1

    asyncio.run(run())


def test_the_records_of_a_replica_are_read_file_by_file(tmp_path: Path) -> None:
    """Each by the number that its first is behind; behind the last one there is none."""

    async def run() -> None:
        async with scene(tmp_path) as made:
            assert await made.keeper.records(made.trail.head.n) == b""
            await made.record(100)
            await until(made.caught_up)
            after, kept = 0, b""
            while piece := await made.keeper.records(after):
                after = number_of(piece.splitlines(keepends=True)[0])
                kept += piece
            assert kept == b"".join(read_lines(made.path))
            assert after > 50, "the control: there are several files, of numbers of any length"

    asyncio.run(run())


def test_more_than_a_replica_s_file_can_be_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that gives more is cut off, and nobody keeps what it said; the control is above."""

    async def run() -> None:
        async with scene(tmp_path) as made:
            monkeypatch.setattr(replica_module, "MAX_FILE", 100)
            with pytest.raises(MachineError, match="too much"):
                await made.keeper.records(0)

    asyncio.run(run())
