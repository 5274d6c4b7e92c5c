"""The file operations that the trail needs, and the host's.

The rule: a trail's file is a regular file of its owner alone, opened for appending only, never
through a symbolic link, by one writer at a time. Stated as a protocol so that a test's disk can
fail and lose what was not synced.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
from pathlib import Path
from typing import Protocol

KEEP_SIZE = 1
"""Allocate behind the end of the file without moving the end (FALLOC_FL_KEEP_SIZE)."""

_libc = ctypes.CDLL(None, use_errno=True)


class Disk(Protocol):
    """A disk with appendable files. Every method raises `OSError` if it fails."""

    def open(self, path: Path) -> int:
        """Open a file for appending, made if missing, for this writer alone."""

    def size(self, fd: int) -> int:
        """Return the file's length in bytes."""

    def read(self, fd: int, offset: int, count: int) -> bytes:
        """Return up to `count` bytes from `offset`; fewer only at the end of the file."""

    def append(self, fd: int, data: bytes) -> int:
        """Write at the end; returns how many bytes were written, which may be fewer."""

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file to `size` bytes, and give back what was allocated behind them."""

    def allocate(self, fd: int, offset: int, count: int) -> None:
        """Set `count` bytes from `offset` aside for this file, without making it longer.

        What is written there later needs no room any more.
        """

    def sync(self, fd: int) -> None:
        """Return once the file's content is on the disk."""

    def sync_folder(self, path: Path) -> None:
        """Return once the names in the folder of `path` are on the disk."""

    def names(self, path: Path) -> list[str]:
        """Return the names in the folder of `path`."""

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name in its folder."""

    def remove(self, path: Path) -> None:
        """Take a file away; that there is none is no error."""

    def close(self, fd: int) -> None:
        """Close the file and let others write."""


class HostDisk:
    """The host's file system."""

    def open(self, path: Path) -> int:
        """Open a private regular file for appending and lock it."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(path, flags, 0o600)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(f"{path} is not a regular file")
            if found.st_uid != os.geteuid():
                raise OSError(f"{path} belongs to uid {found.st_uid}")
            os.fchmod(fd, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(f"{path} is being written by another node") from None
        except OSError:
            os.close(fd)
            raise
        return fd

    def size(self, fd: int) -> int:
        """Return the file's length in bytes."""
        return os.fstat(fd).st_size

    def read(self, fd: int, offset: int, count: int) -> bytes:
        """Return up to `count` bytes from `offset`; fewer only at the end of the file."""
        parts: list[bytes] = []
        while count > 0 and (part := os.pread(fd, count, offset)):
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return b"".join(parts)

    def append(self, fd: int, data: bytes) -> int:
        """Write at the end; returns how many bytes were written."""
        return os.write(fd, data)

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file to `size` bytes."""
        os.ftruncate(fd, size)

    def allocate(self, fd: int, offset: int, count: int) -> None:
        """Set blocks aside behind the end of the file."""
        off_t = ctypes.c_int64
        # Not posix_fallocate: that moves the end, and writes zeros where it can't allocate.
        if _libc.fallocate64(fd, KEEP_SIZE, off_t(offset), off_t(count)):
            raise OSError(number := ctypes.get_errno(), os.strerror(number))

    def sync(self, fd: int) -> None:
        """Return once the file's content and length are on the disk."""
        os.fdatasync(fd)

    def sync_folder(self, path: Path) -> None:
        """Return once the names in the folder of `path` are on the disk."""
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def names(self, path: Path) -> list[str]:
        """Return the names in the folder of `path`."""
        return os.listdir(path.parent)  # noqa: PTH208  -- names, not paths

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name in its folder."""
        old.rename(new)

    def remove(self, path: Path) -> None:
        """Take a file away; that there is none is no error."""
        path.unlink(missing_ok=True)

    def close(self, fd: int) -> None:
        """Close the file, which also unlocks it."""
        os.close(fd)
