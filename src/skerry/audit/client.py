"""The audit trail as the node has it: its writer is another process, which may be gone.

The rules (law 4): `append` returns only after the writer says that its record is on the disk. While
the writer is known to be dead, frozen or without a disk, every append is refused at once; `note`
never waits. A writer that dies is started again, and then the trail itself tells what it had
written: nothing that was acknowledged is lost, and nothing is written twice.

Everything here runs on the node's event loop; what touches the disk runs beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from skerry.audit.appender import RECOVERY, RESERVE, Clock
from skerry.audit.chain import Link, is_hash
from skerry.audit.connection import Connection, Start
from skerry.audit.disk import Disk, HostDisk
from skerry.audit.live import Live
from skerry.audit.messages import (
    Answer,
    Begun,
    Continued,
    Entry,
    Follow,
    Next,
    NoNext,
    Refused,
    Write,
    Written,
)
from skerry.audit.opening import append_text, unavailable, words
from skerry.audit.outbox import Item, Outbox
from skerry.audit.record import MAX_NUMBER, fields_json, note_text
from skerry.audit.segments import Segments
from skerry.audit.writer import MAX_NOTES, RETRY_S
from skerry.errors import SkerryError, WireError
from skerry.wire.escape import escape

ANSWER_S = 2.0
"""How long the writer may answer nothing before it counts as frozen, in seconds."""

START_S = 15.0
"""How long a writer may take to start, in seconds."""

FIRST_PAUSE_S = 0.1
"""How long after a writer's death the next is started, in seconds; doubled with each failure."""

LAST_PAUSE_S = 5.0
"""The longest such pause; a writer that lived as long makes the next one the first again."""

CLOSE_S = 5.0
"""How long `close` waits for what is queued, in seconds."""

State = Literal["running", "failing", "frozen", "restarting", "closed"]


class AuditClient:
    """Implements the monitor's `AuditLog`. Make it with `open`, end it with `close`."""

    def __init__(
        self,
        live: Live,
        start: Start,
        wall: Clock = time.time_ns,
        mono: Clock = time.monotonic_ns,
    ) -> None:
        self._live = live
        self._start = start
        self._wall = wall
        self._mono = mono
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox()
        self._head = Link()
        self._state: State = "restarting"
        self._failure = "its writer has not started"
        self._full = False
        self._spent = False  # the reserve is used up
        self._confessed = 0  # how many refusals the probe that is on its way tells of
        self._writer: Connection | None = None
        self._begun: asyncio.Future[None] = self._loop.create_future()
        self._gone = asyncio.Event()
        self._news = asyncio.Event()  # set with every answer, and at the writer's end
        self._flushing = False
        self._following: asyncio.Task[None] | None = None
        self._answered_s = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._keeper: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        path: Path,
        start: Start,
        *,
        rotate: int = 0,
        keep: int = 1,
        at_least: Link | None = None,
        insist: bool = True,
        disk: Disk | None = None,
    ) -> AuditClient:
        """Open a trail and start its writer. Raises `AuditUnavailable`, or what `start` raises.

        A segment is closed at `rotate` bytes (0: never), and `keep` closed ones are kept;
        `at_least` is a record that the trail is known to have reached. Without `insist` nothing
        is raised: the trail refuses, and tries again, until the writer starts. `disk` opens the
        files.
        """
        client = cls(Live(Segments(path, disk or HostDisk(), keep), rotate), start)
        client._head = at_least or Link()
        try:
            await client._begin()
        except Exception as error:
            if insist and isinstance(error, OSError):
                raise unavailable(client._refusal(words(error))) from None
            if insist:
                raise
            client._not_begun(error)
        else:
            client._recovered()
        client._keeper = asyncio.ensure_future(client._keep())
        return client

    @property
    def path(self) -> Path:
        """The live segment's file."""
        return self._live.path

    @property
    def head(self) -> Link:
        """Number and hash of the last record that is known to be on the disk."""
        return self._head

    @property
    def state(self) -> State:
        """What `ps` shows of the writer."""
        return self._state

    @property
    def failure(self) -> str:
        """Why appends are refused now; empty while they are not."""
        return self._failure

    async def append(self, event: str, fields: Mapping[str, object]) -> int:
        """Write a record and return its number once it is on disk.

        Raises `AuditUnavailable` if it can't be: at once while the writer is known to fail.
        """
        text = append_text(event, fields)
        why = self._failure or self._outbox.full()
        if why:
            self._outbox.refused += 1
            raise unavailable(self._refusal(why))
        future: asyncio.Future[int] = self._loop.create_future()
        self._outbox.append(Entry(event, text, self._wall(), self._mono()), future)
        if self._outbox.unanswered:
            self._flush_soon()  # the writer is busy: what comes meanwhile goes together
        else:
            self._flush()
        return await future

    def note(self, event: str, fields: Mapping[str, object]) -> None:
        """Record an effect that has already happened. Never blocks or raises.

        What can't be written now is kept, up to `MAX_NOTES`, and written later; what is lost is
        counted in a `lost` record.
        """
        self._outbox.note(Entry(event, note_text(fields), self._wall(), self._mono()))
        self._flush_soon()

    async def close(self) -> None:
        """Write what is queued, if that is possible now, and end the writer. Idempotent."""
        if self._keeper is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                while self._outbox.unanswered or (self._outbox.unsent and self._may_send()):
                    self._news.clear()
                    await self._news.wait()
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        self._keeper = None
        writer = self._writer
        if writer is not None:
            writer.finish()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), CLOSE_S)
            writer.end("it did not end")
        self._fail("closed", "it was closed")

    # Starting, and starting again.

    async def _keep(self) -> None:
        """Start the writer again whenever it ends."""
        pause_s = FIRST_PAUSE_S
        while True:
            began_s = self._loop.time()
            await self._gone.wait()
            if self._loop.time() - began_s > LAST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)
            try:
                await self._begin()
            except Exception as error:  # whatever it is, everything is refused until one starts
                self._not_begun(error)
            else:
                self._recovered(told=True)

    async def _begin(self) -> None:
        """Start a writer where the trail ends. Raises `SkerryError`, `OSError`."""
        if self._following is not None:
            await asyncio.wait([self._following])
        opened, written = await self._live.open(self._head)
        self._outbox.reconcile(written)
        self._head = opened.link
        if opened.cut:
            self.note("recovered", {"reason": "a crash while writing", "cut_bytes": opened.cut})
        try:
            writer = Connection(self._heard, self._flush, self._ended)
        except OSError:
            self._live.close()
            raise
        self._writer = writer
        self._gone.clear()
        self._begun = self._loop.create_future()
        try:
            await writer.start(self._start)
            writer.order(self._live.begin(opened), self._live.fd)
            async with asyncio.timeout(START_S):
                await self._begun
        except TimeoutError:
            writer.end(f"it did not start in {START_S:g} s")
            raise unavailable(self._refusal(self._failure)) from None
        except BaseException:
            writer.end("it could not be started")
            raise

    def _not_begun(self, error: Exception) -> None:
        why = error.message if isinstance(error, SkerryError) else words(error)
        self._fail("restarting", f"its writer cannot be started: {why}")
        self._gone.set()

    def _ended(self, why: str) -> None:
        """Hear that the writer is gone."""
        self._writer = None
        self._live.close()
        for timer in (self._watch, self._retry):
            if timer is not None:
                timer.cancel()
        self._watch = self._retry = None
        self._fail("restarting", f"its writer is gone: {why}")
        if not self._begun.done():
            self._begun.set_exception(unavailable(self._refusal(self._failure)))
            self._begun.exception()  # perhaps nobody waits for it yet
        self._gone.set()
        self._news.set()

    # Failing, and recovering.

    def _fail(self, state: State, why: str) -> None:
        """Refuse all appends from now on; keep the notes."""
        self._state, self._failure = state, why
        self._outbox.refuse_appends(self._refusal(why))

    def _recovered(self, told: bool = False) -> None:
        """Take appends again; with `told`, the trail says why there were none."""
        why, refused = self._failure, self._outbox.refused
        self._state, self._failure = "running", ""
        self._full = self._spent = False
        if told:
            self.note("recovered", {"reason": why, "refused": refused})
            self._confessed = refused
        self._outbox.refused -= self._confessed
        self._confessed = 0
        self._flush_soon()

    def _refusal(self, why: str) -> str:
        return f"the audit trail {self.path} cannot be written: {why}"

    def _look(self) -> None:
        """Look whether the writer still answers."""
        self._watch = None
        if not self._outbox.unanswered or self._writer is None:
            return
        silent_s = self._loop.time() - self._answered_s
        if silent_s < ANSWER_S:
            self._watch = self._loop.call_later(ANSWER_S - silent_s, self._look)
        elif self._state == "running":
            self._fail("frozen", f"its writer has not answered for {ANSWER_S:g} s")

    def _try_again(self) -> None:
        """Ask the writer whether the disk takes records again."""
        self._retry = None
        if self._state != "failing":
            return
        self._confessed = self._outbox.refused
        fields = {"reason": self._failure, "refused": self._confessed}
        entry = Entry("recovered", fields_json(fields), self._wall(), self._mono())
        if not self._send([Item(entry, "probe")], RECOVERY if self._full else RESERVE):
            self._retry = self._loop.call_later(RETRY_S, self._try_again)

    # Sending.

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _may_send(self) -> bool:
        ready = self._writer is not None and self._begun.done() and self._following is None
        from_reserve = self._state == "failing" and self._full and not self._spent
        return ready and (self._state == "running" or from_reserve)

    def _flush(self) -> None:
        self._flushing = False
        if not self._may_send():
            return
        if self._outbox.lost:
            fields = fields_json({"count": self._outbox.lost, "limit": MAX_NOTES})
            self._outbox.confess(Entry("lost", fields, self._wall(), self._mono()))
        while self._outbox.unsent:
            items = self._outbox.take()
            if not self._send(items, 0 if self._full else RESERVE):
                self._outbox.put_back(items)
                return

    def _send(self, items: list[Item], spare: int) -> bool:
        message = Write(spare, [item.entry for item in items])
        if self._writer is None or not self._writer.write(message):
            return False
        if not self._outbox.unanswered:
            self._answered_s = self._loop.time()
        self._outbox.sent(items)
        if self._watch is None:
            self._watch = self._loop.call_later(ANSWER_S, self._look)
        return True

    # Answers.

    def _heard(self, untrusted: Answer) -> None:
        """Take an answer. Raises `WireError` for one that can't be."""
        self._answered_s = self._loop.time()
        self._news.set()
        match untrusted:
            case Written():
                self._written(untrusted)
            case Refused():
                self._refused(untrusted)
            case Follow():
                if self._following is not None or not self._live.is_full():
                    raise WireError("the audit writer asked for a segment before its time")
                self._following = asyncio.ensure_future(self._follow())
            case Begun():
                if self._begun.done():
                    raise WireError("the audit writer began twice")
                self._begun.set_result(None)
            case Continued():
                self._live.begun()
        if self._state == "frozen":
            self._recovered(told=True)

    def _written(self, untrusted: Written) -> None:
        last = untrusted.first + untrusted.count - 1
        if not self._head.n < untrusted.first <= last <= MAX_NUMBER or not is_hash(untrusted.hash):
            raise WireError("the audit writer answered with numbers that cannot be")
        probed = self._outbox.written(untrusted.first, untrusted.count)
        self._head = Link(last, untrusted.hash)
        if probed and self._state == "failing":
            self._recovered()

    def _refused(self, untrusted: Refused) -> None:
        if untrusted.count < 1:
            raise WireError("the audit writer refused nothing")
        why = escape(untrusted.reason[:200])
        self._spent = self._full and not untrusted.full
        self._full = self._full or untrusted.full
        self._outbox.refuse(untrusted.count, self._refusal(why))
        self._fail("failing", why)
        if self._retry is None:
            self._retry = self._loop.call_later(RETRY_S, self._try_again)
        self._flush_soon()

    async def _follow(self) -> None:
        """Give the writer its next segment; no records are sent meanwhile."""
        writer = self._writer
        answer: Next | NoNext
        try:
            answer = Next(await self._live.follow(self._head))
        except OSError as error:
            answer = NoNext(words(error))
        finally:
            self._following = None
        if writer is not None:
            writer.order(answer, self._live.fd if isinstance(answer, Next) else -1)
        self._answered_s = self._loop.time()
        self._flush_soon()
