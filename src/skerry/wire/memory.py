"""What the descriptor of a shared memory says, told by the kernel and by nobody's word.

The rule this module keeps: a one-way memory is open to its reader only after the kernel holds every
reason why the reader can't write: its descriptor, the file's mode and owner, and a seal that was
put when the writer had mapped it; and only with all of its pages there, for good, so that it tells
nothing by looking. Who makes a memory and who maps it agree through these alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import stat
import struct
from typing import NamedTuple

NAME = "skerry-memory"
"""The name of every memory's file: what shows it in `/proc/PID/maps` and `fd`, whoever holds it."""

F_SEAL_FUTURE_WRITE = 0x10
"""No mapping or write from now on, but through mappings that are there (Linux 5.1)."""

LENGTH = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
"""A peer that shortens the file would kill who has mapped it (SIGBUS)."""

OPEN_MODE, CLOSED_MODE = 0o666, 0o444
"""The file's mode while a writer must be able to map it by name, and once it has."""

PAUSE_S = 0.005
"""The pause before a reader looks again whether it may have its memory."""

_FS_IOC_SETFLAGS, _FS_NOATIME = 0x40086602, 0x80
_PIECE = 1 << 20  # bytes that are mapped at once: Python does nothing else meanwhile


class Identity(NamedTuple):
    """Which file a memory is, on this host."""

    device: int
    inode: int


def identity(descriptor: int) -> Identity:
    """Return which file a descriptor is of. Raises `OSError`."""
    found = os.fstat(descriptor)
    return Identity(found.st_dev, found.st_ino)


def size(descriptor: int) -> int:
    """Return the bytes of a memory. Raises `OSError`."""
    return os.fstat(descriptor).st_size


def make(length: int, one_way: bool) -> int:
    """Make a memory of so many bytes and return a descriptor to read and write it.

    One that is two-way is sealed; a one-way one will be once its writer has mapped it
    (`close_to_reader`), and does not tell when it was read. Raises `OSError`.
    """
    made = os.memfd_create(NAME, os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        os.ftruncate(made, length)
        os.fchmod(made, OPEN_MODE)
        if one_way:  # else the writer sees when the reader reads
            hide_access(made)
        fcntl.fcntl(made, fcntl.F_ADD_SEALS, LENGTH | (0 if one_way else fcntl.F_SEAL_SEAL))
    except BaseException:
        os.close(made)
        raise
    return made


def hide_access(memory: int) -> None:
    """Keep no time of access of a file in memory. Raises `OSError` (Linux before 6.0)."""
    fcntl.ioctl(memory, _FS_IOC_SETFLAGS, struct.pack("l", _FS_NOATIME))


def reader(memory: int) -> int:
    """Return a new descriptor of a memory that can only read it. Raises `OSError`."""
    return os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)


def fill(memory: int) -> None:
    """Give a memory all of its pages: else a reader's first look at one is seen by the writer.

    Takes some time. Raises `OSError` where there is no room.
    """
    os.posix_fallocate(memory, 0, size(memory))


def _touch(memory: int) -> None:
    """Have the kernel clear every page: one that it was only promised shows when it is read."""
    length = size(memory)
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    for at in range(0, length, _PIECE):
        piece = min(_PIECE, length - at)
        mmap.mmap(memory, piece, flags=flags, prot=mmap.PROT_READ, offset=at).close()


def is_reader(end: int) -> bool:
    """Say whether a descriptor can only read."""
    return fcntl.fcntl(end, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


def is_one_way(end: int) -> bool:
    """Say whether a memory has a reader, as far as it was not closed to it before."""
    return not is_sealed(end) or bool(_seals(end) & F_SEAL_FUTURE_WRITE)


def close_to_reader(end: int) -> None:
    """Close a one-way memory for everything but what its writer, whose end this is, has mapped.

    Takes some time. Raises `OSError`, also where somebody has put a seal that keeps this one out.
    """
    if not _seals(end) & F_SEAL_FUTURE_WRITE:
        fcntl.fcntl(end, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
    fill(end)  # the writer may have punched holes; from the seal on nobody can
    _touch(end)
    os.fchmod(end, CLOSED_MODE)
    if not is_sealed(end):
        fcntl.fcntl(end, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)


def give_up(end: int) -> None:
    """Let no reader wait: the writer does not come."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(end, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)


def is_sealed(end: int) -> bool:
    """Say whether no seal can be put any more."""
    return bool(_seals(end) & fcntl.F_SEAL_SEAL)


def is_closed(end: int) -> bool:
    """Say whether all that keeps a reader from writing, and from telling, is in force."""
    wanted = F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL | LENGTH
    # The seals first: it is they that keep the pages.
    if _seals(end) & wanted != wanted:
        return False
    found = os.fstat(end)
    whole = os.lseek(end, 0, os.SEEK_HOLE) == found.st_size
    os.lseek(end, 0, os.SEEK_SET)
    return whole and stat.S_IMODE(found.st_mode) == CLOSED_MODE


async def closed(end: int, wait_s: float) -> bool:
    """Wait until a reader may have its memory; False if it never will, or not in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            while not is_closed(end):
                if is_sealed(end) and not _seals(end) & F_SEAL_FUTURE_WRITE:
                    return False
                await asyncio.sleep(PAUSE_S)
            return True
    return False


def _seals(end: int) -> int:
    return fcntl.fcntl(end, fcntl.F_GET_SEALS)
