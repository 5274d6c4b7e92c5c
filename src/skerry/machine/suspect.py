"""Looks from outside at what a machine's processes hold of memories, and believes none of them.

The rules this module keeps: what is looked at is frozen, so that nothing moves while it is looked
at; every process of the jail and every thread counts, as a thread may have descriptors of its own;
what can't be seen counts as held; and a process that was ended is gone before that is said.

Everything here blocks, for a bounded time: it is for a thread beside the event loop.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from skerry.deaths import children
from skerry.wire.memory import NAME, Identity

FREEZE_S = 2.0
"""How long the processes of a machine may take to stand still; then they are ended."""

DEATH_S = 5.0
"""How long a killed process may take to be gone; one that the host does not run acts no more."""

_SHOWN = f"/memfd:{NAME}"
_STILL, _DEAD = frozenset("TtZX"), frozenset("ZX")
_PROC = Path("/proc")


class UnseenError(Exception):
    """What a process holds could not be seen; the text says why."""


class Suspect:
    """The process of a machine's jail and all below it; close it."""

    def __init__(self, jail: int, pidfd: int) -> None:
        """Name the jail's process: its number, and a descriptor of it that proves the number."""
        self._jail, self._pidfd = jail, pidfd
        self._found: dict[int, int] = {}

    def __enter__(self) -> Suspect:
        return self

    def __exit__(self, *_: object) -> None:
        while self._found:
            os.close(self._found.popitem()[1])

    def freeze(self) -> None:
        """Stop every process until `thaw`. Raises `UnseenError`."""
        end = time.monotonic() + FREEZE_S
        while fresh := [pid for pid in self._below() if pid not in self._found]:
            for pid in fresh:
                self._take(pid)
            while not (still := all(map(_is_still, self._found))) and time.monotonic() < end:
                time.sleep(0.001)
            if not still or time.monotonic() > end:
                raise UnseenError("it does not stand still")

    def _take(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._found[pid] = os.pidfd_open(pid)
            if pid in self._below():  # so the descriptor is of one of them
                signal.pidfd_send_signal(self._found[pid], signal.SIGSTOP)
            else:
                os.close(self._found.pop(pid))

    def thaw(self) -> None:
        """Let them run on."""
        self._signal(signal.SIGCONT)

    def held(self) -> frozenset[Identity]:
        """Return the memories that one of them maps or has a descriptor of. Raises `UnseenError`.

        They must be frozen.
        """
        held: set[Identity] = set()
        for pid in self._found:
            try:
                held.update(_mapped(pid), _open(pid))
            except OSError as error:
                if not _is_dead(pid):  # the dead hold nothing, and are partly not there any more
                    raise UnseenError(f"it can't be looked at: {error}") from None
        if not all(map(_is_still, self._found)):
            raise UnseenError("it moved")
        return frozenset(held)

    def kill(self) -> None:
        """End them at once."""
        self._signal(signal.SIGKILL)

    def wait_dead(self) -> None:
        """Wait until those that were found are gone, and their memory with them."""
        end = time.monotonic() + DEATH_S
        for pidfd in self._found.values():
            _ended(pidfd, max(0.0, end - time.monotonic()))

    def _signal(self, number: signal.Signals) -> None:
        for pidfd in self._found.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)

    def _below(self) -> list[int]:
        """Return the jail's process and those below it; nothing once that has ended."""
        found = [self._jail]
        for parent in found:
            found += _children(parent)
        # The number was the jail's all the while: it can't be another's before it was reaped.
        return [] if self._pidfd < 0 or _ended(self._pidfd, 0.0) else found


def _children(pid: int) -> list[int]:
    try:
        return children(pid)
    except NotImplementedError as error:
        raise UnseenError(str(error)) from None


def _fields(task: Path) -> list[str]:
    """Return the fields behind the program's name, which it chooses: state, parent …"""
    return (task / "stat").read_text(errors="replace").rpartition(")")[2].split()


def _is_still(pid: int) -> bool:
    """Say whether no thread of a process moves; so it is with one that is gone."""
    return _states(pid) <= _STILL


def _is_dead(pid: int) -> bool:
    return _states(pid) <= _DEAD


def _states(pid: int) -> set[str]:
    """Return the states that the threads of a process are in; none if it is gone."""
    found = set()
    try:
        for task in (_PROC / str(pid) / "task").iterdir():
            found.add(_fields(task)[0])
    except (FileNotFoundError, ProcessLookupError):  # it has ended, or one of its threads has
        return set() if not (_PROC / str(pid)).exists() else found | {"?"}
    return found


def _ended(pidfd: int, wait_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(wait_s * 1000))


def _mapped(pid: int) -> Iterator[Identity]:
    with (_PROC / str(pid) / "maps").open(errors="replace") as untrusted_lines:
        for line in untrusted_lines:
            _, _, _, device, inode, *name = line.split(maxsplit=5)
            if name and name[0].startswith(_SHOWN):
                major, minor = (int(part, 16) for part in device.split(":"))
                yield Identity(os.makedev(major, minor), int(inode))


def _open(pid: int) -> Iterator[Identity]:
    for task in (_PROC / str(pid) / "task").iterdir():
        for descriptor in (task / "fd").iterdir():
            if str(descriptor.readlink()).startswith(_SHOWN):
                found = descriptor.stat()
                yield Identity(found.st_dev, found.st_ino)
