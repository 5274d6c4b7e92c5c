"""Makes what was on a disk unreadable: its key destroyed, or its blocks zeroed.

The rule (law 6): when this has returned nothing of the disk's contents can be read through its
file, by whoever gets it or its space next, and that is on disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

import msgspec

from skerry.device.disk.image import open_image
from skerry.device.disk.keys import Keys
from skerry.errors import StateError
from skerry.system.model import ResourceSpec

_PIECE = 4 << 20
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
_libc = ctypes.CDLL(None, use_errno=True)


def wipe(spec: ResourceSpec, keys: Keys) -> str:
    """Release a disk that nobody uses, and say what was done.

    Raises `StateError` for one that could not be made again, `BadImage`, `DiskInUse`, `KeyLost`;
    then it is as it was, or partly zeroed, and not forgotten.
    """
    path = Path(spec.file)
    again = spec.format != "raw" or spec.encrypted
    if again and not spec.size:
        raise StateError(
            f"the disk {spec.name} could not be made again: the system file gives it no size",
            fix="add its size, and `skerry up` the file",
        )
    if not os.path.lexists(path):
        keys.destroy(spec.file)
        return "it was not there"
    # As one that is alone with it, whatever is left of it.
    image = open_image(msgspec.structs.replace(spec, shared=False), writes=True, judge=False)
    try:
        if spec.encrypted:
            keys.destroy(spec.file)
        else:
            zero(image.descriptor)
        if again:
            path.unlink()
            _sync(path.parent)
    finally:
        image.close()
    return "its key was destroyed" if spec.encrypted else "its blocks were zeroed"


def zero(descriptor: int) -> None:
    """Write zeros over everything that a file holds, and give its space back. Raises `OSError`."""
    end = os.fstat(descriptor).st_size
    zeros = bytes(_PIECE)
    at = 0
    while at < end:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # nothing but a hole up to the end
            break
        hole = min(os.lseek(descriptor, at, os.SEEK_HOLE), end)
        while at < hole:
            at += os.pwrite(descriptor, zeros[: hole - at], at)
    os.fsync(descriptor)
    with contextlib.suppress(OSError):
        _punch(descriptor, end)
        os.fsync(descriptor)


def _punch(descriptor: int, length: int) -> None:
    mode = _KEEP_SIZE | _PUNCH_HOLE
    none, whole = ctypes.c_int64(0), ctypes.c_int64(length)
    if _libc.fallocate(descriptor, mode, none, whole):
        raise OSError(ctypes.get_errno(), "fallocate")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
