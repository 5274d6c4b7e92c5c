"""Sees killed helpers dead: from outside, and within a time that all cuts of a node share.

The rules: no descriptor that a helper holds is believed, since it may close it and run on: what
counts is the end of every process in its jail, which the kernel tells by their pidfds; a cut that
does not see it in time goes on all the same, and says so; and however many helpers the host does
not let die, the cuts hold up the event loop for `DEATH_S` and then for little more.

A process has one event loop, whose time this shares out: so there is one `DEATHS`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

DEATH_S = 2.0
"""How long cuts wait for killed helpers to be gone, in seconds, all of them together. They are gone
in milliseconds on any host that still runs; one that the host has frozen, or that waits for a disk
which does not answer, moves nothing more, and dies when it is let."""

LEAST_S = 0.05
"""What a cut waits at least, in seconds, where others have used up the time."""

REGAINED = 0.1
"""The part of the time that passes which cuts may wait again."""

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_OURS = "skerry."  # how the names of the jails' groups begin, see `jail.leftover`


class Killable(Protocol):
    """A helper's process: that of its jail."""

    def kill(self) -> None:
        """End it at once. Never blocks."""


@runtime_checkable
class Numbered(Protocol):
    """A process that the host knows by a number, and by a descriptor that proves it (-1: ended)."""

    pid: int
    pidfd: int


class Patience:
    """How long may be waited yet. Pure: the time is an argument, in seconds."""

    def __init__(self) -> None:
        self._left, self._then = DEATH_S, 0.0

    def left(self, now: float) -> float:
        """Return for how long the next wait may last."""
        regained = max(0.0, now - self._then) * REGAINED
        self._left, self._then = min(DEATH_S, self._left + regained), now
        return max(self._left, LEAST_S)

    def spent(self, begun: float, now: float) -> None:
        """Count a wait."""
        self._left, self._then = max(0.0, self._left - (now - begun)), now


class Deaths:
    """Waits for what was killed. `late` is told what was not seen dead, and after how long."""

    def __init__(self) -> None:
        self.late: Callable[[str, float], object] = lambda what, waited_s: None
        self._patience = Patience()

    def wait(self, what: str, dying: Collection[int] = (), pipes: Iterable[int] = ()) -> bool:
        """Wait until these pidfds' processes have ended, and nobody can write to these pipes.

        Closes the pidfds. Returns whether that was seen; never raises.
        """
        begun = time.monotonic()
        end = begun + self._patience.left(begun)
        waiting = select.poll()
        rest = {*dying, *pipes}
        for descriptor in rest:
            # A pipe says its end unasked; what waits in it is of no interest.
            waiting.register(descriptor, select.POLLIN if descriptor in dying else 0)
        while rest and (left := end - time.monotonic()) > 0:
            for descriptor, _ in waiting.poll(left * 1000):
                waiting.unregister(descriptor)
                rest.discard(descriptor)
        for descriptor in dying:
            os.close(descriptor)
        now = time.monotonic()
        self._patience.spent(begun, now)
        if rest:
            self.late(what, round(now - begun, 3))
        return not rest


DEATHS = Deaths()
"""Those of this process's helpers."""


def kill(processes: Iterable[Killable]) -> list[int]:
    """Kill helpers at once; return pidfds of all that runs in their jails, as far as it is seen.

    They are the caller's, for `Deaths.wait`. Never raises.
    """
    dying: list[int] = []
    for process in processes:
        if isinstance(process, Numbered) and process.pidfd >= 0:
            with contextlib.suppress(OSError):  # no descriptors are left
                dying += _all_of(process)
            with contextlib.suppress(OSError, ValueError):  # it may be gone
                _unbind(process)
        process.kill()
    return dying


def _unbind(process: Numbered) -> None:
    """Take the bound of processor time from a jail that is about to be killed.

    To die takes some, and what has used its share up would wait for the next, up to 100 ms, with
    the cut and all others. Raises `OSError`, `ValueError`.
    """
    for line in (_PROC / str(process.pid) / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not path.rpartition("/")[2].startswith(_OURS):
            continue
        group, file, free = _GROUPS / "cpu" / path.lstrip("/"), "cpu.cfs_quota_us", "-1"
        if not controllers:
            group, file, free = _GROUPS / path.lstrip("/"), "cpu.max", "max"
        elif "cpu" not in controllers.split(","):
            continue
        signal.pidfd_send_signal(process.pidfd, 0)  # it was this process's, and no later one's
        (group / file).write_text(free)


def _all_of(process: Numbered) -> list[int]:
    """Open a pidfd of a jail's process and of each below it."""
    opened = [os.dup(process.pidfd)]
    with contextlib.suppress(OSError, NotImplementedError):  # without: it alone is waited for
        found = [process.pid]
        for parent in found:
            found += children(parent)
        for pid in found[1:]:
            with contextlib.suppress(ProcessLookupError):
                opened.append(os.pidfd_open(pid))
    return opened


def children(pid: int) -> list[int]:
    """Return the processes below a process, none if it is gone.

    Raises `NotImplementedError` where the kernel does not say, `OSError`.
    """
    found: list[int] = []
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        for task in (_PROC / str(pid) / "task").iterdir():
            if not (listing := task / "children").exists() and task.exists():
                raise NotImplementedError(
                    "this kernel does not say what is below (CONFIG_PROC_CHILDREN)"
                )
            found += map(int, listing.read_text().split())
    return found
