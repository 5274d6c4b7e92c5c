"""Feeds a trail into a pipe, record by record, for the replica at the other end.

The rules: nothing of it is waited for by who writes the trail, as it reads what is on the disk, in
a thread of its own; only what the writer has acknowledged is fed; a reader that does not read makes
it wait, and lag, at no cost but the lag; what retention removed before it was fed is a gap that is
told. It begins with the live segment, since nothing comes back over the pipe.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

from skerry.audit.chain import Link
from skerry.audit.read import Position, follow_lines
from skerry.errors import SkerryError

PAUSE_S = 0.2
"""How long it waits before it looks for new records again, in seconds."""


class _Over(Exception):
    """The feed is to end."""


class Feed:
    """One feed of the trail at `path`; it ends with its reader, or when it is closed."""

    def __init__(
        self,
        path: Path,
        head: Callable[[], Link],
        end: int,
        gap: Callable[[int, int], object],
        ended: Callable[[str], object],
    ) -> None:
        """Take over `end`, a pipe to write to. `head`: the last acknowledged record.

        In the feed's thread, `gap` is called with the first and last number of what can't be fed,
        and `ended`, with the reason, if it ends without being closed.
        """
        os.set_blocking(end, False)
        self.fed = 0
        """The number of the last record that is in the pipe whole."""
        self._path, self._head, self._end = path, head, end
        self._gap, self._ended = gap, ended
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
        why = ""
        try:
            for line in follow_lines(self._path, Position(self._inode(), 0), self._pause, PAUSE_S):
                self._feed(line)
        except _Over as over:
            why = str(over)
        except BrokenPipeError:
            why = "its reader has ended"
        except (OSError, SkerryError, ValueError) as error:
            why = f"the trail cannot be fed: {error}"
        finally:
            os.close(self._end)
        if not self._over.is_set():
            self._ended(why)

    def _inode(self) -> int:
        """Return that of the live segment; between two names of a rotation there is none."""
        while True:
            try:
                return self._path.stat().st_ino
            except FileNotFoundError:
                self._pause(PAUSE_S)

    def _feed(self, line: bytes) -> None:
        number = int(line[len('{"n":') : line.index(b",")])
        while number > self._head().n:
            self._pause(PAUSE_S)
        if self.fed and number > self.fed + 1:
            self._gap(self.fed + 1, number - 1)
        left = memoryview(line)
        while left:
            try:
                left = left[os.write(self._end, left) :]
            except BlockingIOError:
                self._wait()
        self.fed = number

    def _wait(self) -> None:
        """Wait until the pipe has room or lost its reader, or it is over."""
        if self._over.is_set():
            raise _Over
        poll = select.poll()
        poll.register(self._end, select.POLLOUT)
        poll.poll(PAUSE_S * 1000)

    def _pause(self, seconds: float) -> None:
        if self._over.wait(seconds):
            raise _Over
        poll = select.poll()
        poll.register(self._end, 0)
        if poll.poll(0):
            raise _Over("its reader has ended")
