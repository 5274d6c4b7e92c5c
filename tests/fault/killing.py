"""One life of a node in a thread of its own, killed at any line of the product.

The rule: at the chosen line every thread of that life stops for ever, as with SIGKILL: no `finally`
runs, nothing is closed, and its disk takes nothing more. What it held leaks by design, so a process
that does this is short-lived.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import skerry
from skerry.machine.simulator.disk import SimulatedDisk

SOURCE = Path(skerry.__file__).parent
PARTS = ("monitor", "node", "channel", "audit", "policy/manager.py")
"""Where a life can be killed."""

STOP_S = 20.0
"""How long the threads of a killed life may take to come to their next line."""

_T = TypeVar("_T")


class Hang(Exception):
    """A life neither ended nor went on: a deadlock, or a machine that is far too slow."""


class Killer:
    """Counts the lines that a life runs, in all of its threads, and stops it at one of them."""

    def __init__(self) -> None:
        self.dead = threading.Event()
        self.stirred = threading.Event()
        self._left: int | None = None
        self._events: int | None = None
        self._behind = 0
        self._stopped: set[int] = set()
        self._files: dict[str, bool] = {}

    def arm(self, lines: int, events: int | None = None) -> None:
        """Kill after so many lines; with `events`, so many behind the next so many effects."""
        self._events, self._behind = events, lines
        self._left = lines if events is None else None

    def disarm(self) -> None:
        """Go on without a kill."""
        self._left = self._events = None

    def happened(self) -> None:
        """Count an effect outside of the node: a sync, a message to the supervisor."""
        if self._events is not None:
            self._events -= 1
            if self._events < 0:
                self._left, self._events = self._behind, None

    def trace(self, frame: FrameType, event: str, arg: object) -> Any:
        """See every function that is entered (`sys.settrace`)."""
        name = frame.f_code.co_filename
        wanted = self._files.get(name)
        if wanted is None:
            wanted = self._files[name] = any(name.startswith(f"{SOURCE}/{part}") for part in PARTS)
        return self._line if wanted else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    self.kill()
            if self.dead.is_set() and not _holds_lock(frame):
                self.park()
        return self._line

    def kill(self) -> None:
        """Let every thread stop at its next line."""
        self.dead.set()
        self.stirred.set()

    def park(self) -> NoReturn:
        """Stop this thread for ever."""
        sys.settrace(None)
        self._stopped.add(threading.get_ident())
        while True:
            threading.Event().wait()

    def has_stopped(self, thread: int) -> bool:
        """Say whether a thread has."""
        return thread in self._stopped


def _holds_lock(frame: FrameType) -> bool:
    """Say whether a trail's lock is held here, which would keep another thread from stopping."""
    lock = getattr(frame.f_locals.get("self"), "_lock", None)
    owned = getattr(lock, "_is_owned", None)
    return owned is not None and owned() is True


class MortalDisk:
    """A disk as one life sees it: it takes nothing from who is dead (`audit.disk.Disk`)."""

    def __init__(self, disk: SimulatedDisk, killer: Killer) -> None:
        self._disk = disk
        self._killer = killer
        self._lock = threading.RLock()
        self._over = False

    def end(self) -> None:
        """Take nothing from now on; an operation under way is finished."""
        with self._lock:
            self._over = True

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self._disk, name)

        def checked(*arguments: Any) -> Any:
            with self._lock:
                if self._over:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                done = operation(*arguments)
                if name in ("sync", "rename"):
                    self._killer.happened()
                return done

        return checked


class _Pool(ThreadPoolExecutor):
    """Threads that may stop for ever: nobody waits for them."""

    def __init__(self) -> None:
        super().__init__(1)
        self.busy: set[int] = set()

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        future: Future[_T] = Future()

        def run() -> None:
            self.busy.add(threading.get_ident())
            try:
                if not future.set_running_or_notify_cancel():
                    return
                try:
                    result = fn(*args, **kwargs)
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
            finally:
                self.busy.discard(threading.get_ident())

        threading.Thread(target=run, daemon=True).start()
        return future


class Life:
    """A thread with an event loop, on which `main` runs first and then whatever is asked."""

    def __init__(self, main: Callable[[], Coroutine[Any, Any, object]], killer: Killer) -> None:
        self.killer = killer
        self._pool = _Pool()
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(self._pool)
        threading.settrace(killer.trace)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._began = asyncio.run_coroutine_threadsafe(main(), self._loop)

    def began(self) -> bool:
        """Wait until `main` has returned; false if the life ended in it. Raises what it raised."""
        return self._finished(self._began)

    def do(self, work: Coroutine[Any, Any, object]) -> bool:
        """Run something to its end; false if the life ended in it. Raises what it raised."""
        return self._finished(asyncio.run_coroutine_threadsafe(work, self._loop))

    def _finished(self, future: Future[object]) -> bool:
        future.add_done_callback(lambda _: self.killer.stirred.set())
        until = time.monotonic() + STOP_S
        while not (future.done() or self.killer.dead.is_set()):
            self.killer.stirred.wait(1.0)
            self.killer.stirred.clear()
            if time.monotonic() > until:
                raise Hang("a life neither ended nor went on")
        if self.killer.dead.is_set():
            return False
        future.result()
        return True

    def end(self) -> None:
        """Kill it, if that has not happened, and wait until none of its threads acts any more."""
        self.killer.kill()
        self._loop.call_soon_threadsafe(self.killer.park)
        until = time.monotonic() + STOP_S
        while not self._is_still():
            if time.monotonic() > until:
                raise Hang("a killed life goes on")
            time.sleep(0.001)
        threading.settrace(None)

    def _is_still(self) -> bool:
        stopped = self.killer.has_stopped
        return stopped(self._thread.ident or 0) and all(map(stopped, set(self._pool.busy)))
