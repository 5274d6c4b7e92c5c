"""How the writer's thread and the event loops wake each other.

The rule: a ring is never lost and never waits; one that comes before the wait ends it at once.
Bells are eventfds: a thread that waits in the kernel starts in a third of the time that a
`threading.Condition` takes, which wakes it only to wait for more locks, and a loop that watches
a descriptor of its own is told with one call instead of `call_soon_threadsafe`'s many.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections import deque
from collections.abc import Sequence

from skerry.errors import AuditUnavailable

Result = tuple[asyncio.Future[int], int | AuditUnavailable]
"""A future and what it gets: a record's number, or why there is none."""


class Bell:
    """Rung by many threads, waited for by one. Raises `OSError` if it can't be made.

    Its descriptor is closed when nobody holds the bell any more, so that a late ring never
    meets a descriptor that has become something else.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0)
        weakref.finalize(self, os.close, self._fd).atexit = False

    def fileno(self) -> int:
        """Return the descriptor, readable once the bell was rung."""
        return self._fd

    def ring(self) -> None:
        """End the wait that is on, or the next."""
        os.eventfd_write(self._fd, 1)

    def wait(self) -> None:
        """Return once it was rung since the last wait."""
        os.eventfd_read(self._fd)


class Ear:
    """Takes results to the futures of one event loop. Make it in the loop's own thread.

    Raises `OSError` if it can't be made.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._bell = Bell()
        self._told: deque[Sequence[Result]] = deque()
        loop.add_reader(self._bell, self._hear)

    def tell(self, results: Sequence[Result]) -> None:
        """Give results to futures, with one wake-up for all. From any thread; never waits."""
        self._told.append(results)
        self._bell.ring()

    def leave(self) -> None:
        """Let the loop go once it has all results. From any thread; nothing is told after it."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._left)

    def _hear(self) -> None:
        self._bell.wait()
        self._deliver()

    def _left(self) -> None:
        self._deliver()
        self._loop.remove_reader(self._bell)

    def _deliver(self) -> None:
        while self._told:
            for future, result in self._told.popleft():
                if future.done():  # its waiter was cancelled
                    continue
                if isinstance(result, int):
                    future.set_result(result)
                else:
                    future.set_exception(result)
