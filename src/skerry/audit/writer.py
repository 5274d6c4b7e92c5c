"""The trail's writer: durable appends, many sharing one sync, and refusal when the disk fails.

The rule (law 4): `append` returns only after its record is on the disk, and while that can't be
done every append is refused at once, without waiting for the disk. `note` never waits: notes are
queued, and what does not fit is counted and confessed in a `lost` record. When the disk is full
the notes, refusals among them, are written from the reserve (`appender.RESERVE`).

One thread writes. It takes all that is queued, writes it in one piece and syncs once, so the
batch grows with the load by itself. After a failure nothing of the batch counts as written.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from skerry.audit.appender import FULL, RECOVERY, RESERVE, Appender, Clock
from skerry.audit.bell import Bell, Ear, Result
from skerry.audit.chain import Link
from skerry.audit.disk import Disk, HostDisk
from skerry.audit.ending import MAX_BATCH
from skerry.audit.opening import append_text, open_segments, unavailable, words
from skerry.audit.record import fields_json, note_text
from skerry.audit.segments import Segments

MAX_WAITING = 16_384
"""Appends that may wait for the disk; one more is refused."""

MAX_NOTES = 16_384
"""Notes that may wait for the disk; one more is counted as lost."""

RETRY_S = 0.5
"""How long after a failure the writer tries again, in seconds."""


class _Entry(NamedTuple):
    """A record that is not written yet; a note has nobody who waits for it."""

    event: str
    fields: str
    wall_ns: int
    mono_ns: int
    future: asyncio.Future[int] | None = None
    ear: Ear | None = None


class AuditTrail:
    """An append-only file of chained records. Make it with `open`, end it with `close`."""

    def __init__(
        self,
        path: Path,
        appender: Appender,
        bell: Bell,
        retry_s: float = RETRY_S,
        wall: Clock = time.time_ns,
        mono: Clock = time.monotonic_ns,
    ) -> None:
        self.path = path
        self._appender = appender
        self._retry_s = retry_s
        self._wall = wall
        self._mono = mono
        self._lock = threading.RLock()  # never held over anything slow
        self._bell = bell  # rung when the queue is no longer empty, and at the end
        self._ears: dict[asyncio.AbstractEventLoop, Ear] = {}
        self._queue: deque[_Entry] = deque()
        self._taken: list[_Entry] = []  # the batch being written
        self._notes = 0  # how many of the queue are notes
        self._lost = 0
        self._refused = 0
        self._failure = ""
        self._full = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-writer", daemon=True)

    @classmethod
    def open(
        cls,
        path: Path,
        disk: Disk | None = None,
        retry_s: float = RETRY_S,
        wall: Clock = time.time_ns,
        mono: Clock = time.monotonic_ns,
        *,
        rotate: int = 0,
        keep: int = 1,
        at_least: Link | None = None,
    ) -> AuditTrail:
        """Open a trail, or begin one, and continue its chain.

        What a crash left half-written is cut off, and a `recovered` record says so. A segment is
        closed at `rotate` bytes (0: never), and `keep` closed ones are kept. Raises
        `AuditUnavailable` if the file can't be opened, its end does not verify, or it ends before
        `at_least`, a record that it is known to have reached.
        """
        disk = disk or HostDisk()
        segments = Segments(path, disk, keep)
        opened = open_segments(segments, at_least)
        try:
            bell = Bell()
        except OSError as error:
            disk.close(opened.fd)
            raise unavailable(f"the audit trail {path} cannot be read: {words(error)}") from None
        appender = Appender(disk, opened, segments, rotate, wall, mono)
        trail = cls(path, appender, bell, retry_s, wall, mono)
        if opened.cut:
            trail.note("recovered", {"reason": "a crash while writing", "cut_bytes": opened.cut})
        trail._thread.start()
        return trail

    @property
    def head(self) -> Link:
        """Number and hash of the last record on the disk."""
        return self._appender.link

    @property
    def failure(self) -> str:
        """Why appends are refused now; empty while they are not."""
        return self._failure

    async def append(self, event: str, fields: Mapping[str, object]) -> int:
        """Write a record and return its number once it is on disk.

        Raises `AuditUnavailable` if it can't be: at once while the trail is known to fail.
        """
        text = append_text(event, fields)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        ear = self._ears.get(loop) or self._listen(loop)
        entry = _Entry(event, text, self._wall(), self._mono(), future, ear)
        with self._lock:
            self._check()
            first = not self._queue
            self._queue.append(entry)
        if first:
            self._bell.ring()
        return await future

    def _listen(self, loop: asyncio.AbstractEventLoop) -> Ear:
        with self._lock:
            self._check()
            try:
                ear = Ear(loop)
            except OSError as error:
                raise unavailable(f"nobody could be told of a record: {words(error)}") from None
            self._ears = {old: its for old, its in self._ears.items() if not old.is_closed()}
            self._ears[loop] = ear
        return ear

    def _check(self) -> None:
        why = self._failure
        if not why and (self._closing.is_set() or not self._thread.is_alive()):
            why = "its writer has ended"
        if not why and len(self._queue) - self._notes >= MAX_WAITING:
            why = f"{MAX_WAITING} records are waiting (MAX_WAITING)"
        if why:
            self._refused += 1
            raise unavailable(f"the audit trail {self.path} cannot be written: {why}")

    def note(self, event: str, fields: Mapping[str, object]) -> None:
        """Record an effect that has already happened. Never blocks or raises.

        What can't be written now is kept, up to `MAX_NOTES`, and written later; what is lost is
        counted in a `lost` record.
        """
        entry = _Entry(event, note_text(fields), self._wall(), self._mono())
        with self._lock:
            if self._notes >= MAX_NOTES:
                self._lost += 1
                return
            self._notes += 1
            first = not self._queue
            self._queue.append(entry)
        if first:
            self._bell.ring()

    def close(self) -> None:
        """Write what is queued, if the disk takes it, and close the file. Idempotent.

        Waits for the disk: call it where waiting is allowed.
        """
        with self._lock:  # who was let in before this is written
            self._closing.set()
        self._bell.ring()
        if self._thread.ident is not None:
            self._thread.join()
        while self._ears:
            self._ears.popitem()[1].leave()
        self._appender.close()

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:
            # Whatever ends the thread, those who wait must hear it, and the trail stays refused.
            self._fail(f"its writer ended: {words(error)}")

    def _step(self) -> bool:
        """Do one round of the writer; false when it has nothing more to do."""
        if self._failure:
            self._closing.wait(self._retry_s)
            if not self._recover():
                return not self._closing.is_set()
        while not self._queue:
            if self._closing.is_set():
                return False
            self._bell.wait()
        self._take()
        self._write()
        return True

    def _recover(self) -> bool:
        reason, refused = self._failure, self._refused
        fields = fields_json({"reason": reason, "refused": refused})
        spare = RECOVERY if self._full else RESERVE
        try:
            self._appender.write([_Entry("recovered", fields, self._wall(), self._mono())], spare)
        except OSError as error:
            self._failure, self._full = words(error), error.errno in FULL
            while self._full and self._queue:  # only notes: appends are refused
                self._take()
                self._write(spare=0)
            return False
        with self._lock:
            self._failure, self._full = "", False
            self._refused -= refused
        return True

    def _take(self) -> None:
        """Take from the queue what fits into one write, and the confession of what was lost."""
        batch = self._taken
        room = MAX_BATCH
        with self._lock:
            if self._lost:
                fields = fields_json({"count": self._lost, "limit": MAX_NOTES})
                batch.append(_Entry("lost", fields, self._wall(), self._mono()))
                self._lost = 0
            while self._queue:
                room -= len(self._queue[0].fields) + 512  # more than the rest of a record
                if room < 0:
                    break
                entry = self._queue.popleft()
                self._notes -= entry.future is None
                batch.append(entry)

    def _write(self, spare: int = RESERVE) -> None:
        """Make what was taken durable, and tell those who wait."""
        try:
            first = self._appender.write(self._taken, spare)
        except OSError as error:
            self._fail(words(error), bool(spare) and error.errno in FULL)
            return
        done, self._taken = self._taken, []
        _settle(done, first)

    def _fail(self, why: str, full: bool = False) -> None:
        """Refuse all appends from now on; keep the notes for later."""
        with self._lock:
            self._failure, self._full = why, full
            entries = [*self._taken, *self._queue]
            self._taken = []
            notes = [entry for entry in entries if entry.future is None]
            self._lost += max(0, len(notes) - MAX_NOTES)
            self._queue = deque(notes[:MAX_NOTES])
            self._notes = len(self._queue)
            self._refused += sum(entry.future is not None for entry in entries)
        _settle(entries, 0, f"the audit trail {self.path} cannot be written: {why}")


def _settle(entries: list[_Entry], first: int, error: str = "") -> None:
    """Tell those who wait: the numbers from `first` on, or the error."""
    heard: dict[Ear, list[Result]] = {}
    for number, entry in enumerate(entries, first):
        if entry.future is not None and entry.ear is not None:
            result = unavailable(error) if error else number
            heard.setdefault(entry.ear, []).append((entry.future, result))
    for ear, results in heard.items():
        ear.tell(results)
