"""A disk in memory that fails on command and loses in a crash what was not synced.

The rule: after `crash`, what was synced is there, and of the rest there is any part that a real
disk could leave: nothing, all, a beginning, or some 512-byte blocks with zeros between them. The
seed chooses. It offers the file operations of the audit trail (`audit.disk.Disk`) and those of a
file that is replaced by `rename`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Operation = Literal[
    "open",
    "read",
    "append",
    "truncate",
    "allocate",
    "sync",
    "sync_folder",
    "names",
    "rename",
    "remove",
]

BLOCK = 512
"""What a disk writes whole or not at all, in bytes."""


class _File:
    def __init__(self) -> None:
        self.content = b""
        self.durable = b""
        self.pending: list[bytes | int] = []  # appended bytes, or a length cut to, since the sync
        self.taken = 0  # how much of the disk it has, behind its end too

    def sync(self) -> None:
        self.durable = self.content
        self.pending.clear()

    def crash(self, chance: random.Random) -> None:
        kept = self.pending[: chance.randint(0, len(self.pending))]
        data, safe = self.durable, len(self.durable)
        for change in kept:
            if isinstance(change, int):
                data = data[:change]
                safe = min(safe, change)
            else:
                data += change
        if chance.random() < 0.6:
            data = data[: chance.randint(safe, len(data))]
        if chance.random() < 0.5:
            data = _with_holes(data, safe, chance)
        self.content = data
        self.sync()


def _with_holes(data: bytes, safe: int, chance: random.Random) -> bytes:
    """Zero some of the blocks behind `safe`: they were allocated and never written."""
    out = bytearray(data)
    start = safe
    while start < len(out):
        end = min(len(out), (start // BLOCK + 1) * BLOCK)
        if chance.random() < 0.3:
            out[start:end] = bytes(end - start)
        start = end
    return bytes(out)


class SimulatedDisk:
    """Files in memory, with faults. Safe to use from several threads.

    `room` is how many bytes more it takes, None for any number. `faults` maps an operation to
    the error number with which it fails until the entry is taken away. `crash_in` counts
    operations down to a crash in the middle of one.
    """

    def __init__(self, seed: int = 0) -> None:
        self.room: int | None = None
        self.faults: dict[Operation, int] = {}
        self.crash_in: int | None = None
        self.syncs = 0
        self._chance = random.Random(seed)
        self._lock = threading.RLock()
        self._names: dict[Path, _File] = {}
        self._durable_names: dict[Path, _File] = {}
        self._handles: dict[int, _File] = {}
        self._numbers = itertools.count(1_000_000)

    def open(self, path: Path) -> int:
        """Open a file for appending, made if missing; by one at a time."""
        with self._operation("open"):
            file = self._names.setdefault(path, _File())
            if file in self._handles.values():
                raise OSError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
            number = next(self._numbers)
            self._handles[number] = file
            return number

    def size(self, fd: int) -> int:
        """Return the file's length in bytes."""
        with self._lock:
            return len(self._file(fd).content)

    def read(self, fd: int, offset: int, count: int) -> bytes:
        """Return up to `count` bytes from `offset`."""
        with self._operation("read"):
            return self._file(fd).content[offset : offset + count]

    def append(self, fd: int, data: bytes) -> int:
        """Write at the end; a nearly full disk takes a part, a full one fails with ENOSPC."""
        with self._lock:
            file = self._file(fd)
            spare = max(0, file.taken - len(file.content))
            taken = data if self.room is None else data[: spare + self.room]
            try:
                self._count("append")
            except OSError:
                if fd not in self._handles:  # crashed: some of it may have been on its way
                    file.pending.append(data)
                    file.crash(self._chance)
                raise
            if data and not taken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._take(file, len(file.content) + len(taken))
            file.content += taken
            file.pending.append(taken)
            return len(taken)

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file to `size` bytes, which gives its room back."""
        with self._operation("truncate"):
            file = self._file(fd)
            file.content = file.content[:size]
            file.pending.append(size)
            if self.room is not None:
                self.room += max(0, file.taken - size)
            file.taken = min(file.taken, size)

    def allocate(self, fd: int, offset: int, count: int) -> None:
        """Set room aside for a file behind its end, all of it or none (ENOSPC)."""
        with self._operation("allocate"):
            file = self._file(fd)
            if self.room is not None and offset + count - file.taken > self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._take(file, offset + count)

    def sync(self, fd: int) -> None:
        """Make the file's content survive a crash."""
        with self._operation("sync"):
            self._file(fd).sync()
            self.syncs += 1

    def sync_folder(self, path: Path) -> None:
        """Make the names in the folder of `path` survive a crash."""
        with self._operation("sync_folder"):
            folder = path.parent
            elsewhere = {n: f for n, f in self._durable_names.items() if n.parent != folder}
            here = {n: f for n, f in self._names.items() if n.parent == folder}
            self._durable_names = elsewhere | here

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, replacing what has it."""
        with self._operation("rename"):
            if old not in self._names:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._names[new] = self._names.pop(old)

    def names(self, path: Path) -> list[str]:
        """Return the names in the folder of `path`."""
        with self._operation("names"):
            return [name.name for name in self._names if name.parent == path.parent]

    def remove(self, path: Path) -> None:
        """Take a file away, which gives its room back."""
        with self._operation("remove"):
            file = self._names.pop(path, None)
            if file is not None and self.room is not None:
                self.room += file.taken

    def close(self, fd: int) -> None:
        """Close the file."""
        with self._lock:
            self._handles.pop(fd, None)

    def crash(self) -> None:
        """Lose power now: every handle is dead, and what was not synced is left to chance."""
        with self._lock:
            self.crash_in = None
            self._handles.clear()
            if self._chance.random() < 0.5:
                self._names = dict(self._durable_names)
            for file in dict.fromkeys([*self._names.values(), *self._durable_names.values()]):
                file.crash(self._chance)
            self._durable_names = dict(self._names)

    def content(self, path: Path) -> bytes:
        """Return a file's content as a reader sees it now; for tests."""
        with self._lock:
            return self._names[path].content if path in self._names else b""

    def replace(self, path: Path, content: bytes) -> None:
        """Put a file there, synced; for tests."""
        with self._lock:
            file = self._names.setdefault(path, _File())
            file.content = content
            self._take(file, len(content))
            file.sync()
            self._durable_names[path] = file

    def _take(self, file: _File, size: int) -> None:
        if self.room is not None:
            self.room -= max(0, size - file.taken)
        file.taken = max(file.taken, size)

    @contextlib.contextmanager
    def _operation(self, name: Operation) -> Iterator[None]:
        with self._lock:
            self._count(name)
            yield

    def _count(self, name: Operation) -> None:
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                self.crash()
                raise OSError(errno.EIO, "the power is gone")
        if name in self.faults:
            number = self.faults[name]
            raise OSError(number, os.strerror(number))

    def _file(self, fd: int) -> _File:
        if fd not in self._handles:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._handles[fd]
