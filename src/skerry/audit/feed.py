"""Feeds a trail into a pipe, record by record, for the replica at the other end.

The rules: nothing of it is waited for by who writes the trail, as it reads what is on the disk, in
a thread of its own; only what the writer has acknowledged is fed; a reader that does not read makes
it wait, and lag, at no cost but the lag; what retention removed before it was fed is a gap that is
told. Only its reader ends it: whatever keeps it from reading the trail, a line that is no record
too, is told and tried again, so that whoever can write the trail's files can't end the replica.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from skerry.audit.chain import Link
from skerry.audit.read import follow_lines, number_of, position_of
from skerry.errors import SkerryError

PAUSE_S = 0.2
"""How long it waits before it looks for new records again, in seconds."""

RETRY_S = 5.0
"""How long it waits before it tries to read again what it could not feed, in seconds."""


MISSED_S = 5.0
"""How long a record may be acknowledged and not stand in the trail's files, in seconds."""


class _Over(Exception):
    """The feed is to end."""


class Feed:
    """One feed of the trail at `path`; it ends with its reader, or when it is closed."""

    def __init__(
        self,
        path: Path,
        head: Callable[[], Link],
        end: int,
        note: Callable[[str, Mapping[str, object]], object],
        ended: Callable[[str], object],
        since: int = 0,
    ) -> None:
        """Take over `end`, a pipe to write to. `head`: the last acknowledged record.

        It begins with the segment that holds record `since`, the last that the reader has; 0 for
        the live one. In the feed's thread, `note` is called with the event and fields of what the
        trail should say of it (`replica-gap`, `replica-unfed`, `replica-fed`), and `ended`, with
        the reason, if it ends without being closed.
        """
        os.set_blocking(end, False)
        self.fed = 0
        """The number of the last record that is in the pipe whole."""
        self.failure = ""
        """Why nothing is fed now; empty while it is."""
        self._path, self._head, self._end, self._since = path, head, end, since
        self._note, self._ended = note, ended
        self._missed_s = 0.0  # for how long acknowledged records were not to be found
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-feed", daemon=True)
        self._thread.start()

    @property
    def lag(self) -> int:
        """How many acknowledged records are not in the pipe yet."""
        return max(0, self._head().n - self.fed)

    def close(self) -> None:
        """End it, and close the pipe; returns within `PAUSE_S` or so. Idempotent."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                self._follow()
                self._pause(RETRY_S)
        except (_Over, BrokenPipeError):
            pass
        finally:
            os.close(self._end)
        if not self._over.is_set():
            self._ended("its reader has ended")

    def _follow(self) -> None:
        """Feed until that fails, and tell why it did. Raises `_Over`, `BrokenPipeError`."""
        try:
            begin = position_of(self._path, self.fed or self._since)
            for line in follow_lines(self._path, begin, self._look, PAUSE_S, self._known):
                self._feed(line)
        except (_Over, BrokenPipeError):
            raise
        except Exception as error:  # whatever it is, the reader keeps what it has
            self._fail(error.message if isinstance(error, SkerryError) else str(error))

    def _known(self) -> int:
        return self._head().n

    def _feed(self, untrusted_line: bytes) -> None:
        number = number_of(untrusted_line)
        if not number:
            raise ValueError(f"behind record {self.fed}, a line is no record")
        if number <= self.fed:
            return
        before = self.fed or self._since
        if before and number > before + 1:
            why = "it is no longer in the trail's files"
            self._note("replica-gap", {"first": before + 1, "last": number - 1, "why": why})
        left = memoryview(untrusted_line)
        while left:
            try:
                left = left[os.write(self._end, left) :]
            except BlockingIOError:
                self._wait()
        self.fed, self._missed_s = number, 0.0
        if self.failure:
            self.failure = ""
            self._note("replica-fed", {"fed": number})

    def _fail(self, why: str) -> None:
        if not self.failure:
            self._note("replica-unfed", {"why": why, "fed": self.fed})
        self.failure = why

    def _wait(self) -> None:
        """Wait until the pipe has room or lost its reader, or it is over."""
        if self._over.is_set():
            raise _Over
        poll = select.poll()
        poll.register(self._end, select.POLLOUT)
        poll.poll(PAUSE_S * 1000)

    def _look(self, seconds: float) -> None:
        """Wait for records, and see that those which are acknowledged come. Raises `ValueError`."""
        self._missed_s = self._missed_s + seconds if self.lag else 0.0
        if self._missed_s > MISSED_S:
            self._missed_s = 0.0
            raise ValueError(f"what was recorded after {self.fed} is not in the trail's files")
        self._pause(seconds)

    def _pause(self, seconds: float) -> None:
        """Wait so long. Raises `_Over` if it is over then, or has no reader any more."""
        over = self._over.wait(seconds)
        poll = select.poll()
        poll.register(self._end, 0)
        if over or poll.poll(0):
            raise _Over
