"""Makes what was on a disk unreadable: its key destroyed, or its blocks zeroed.

The rules (law 6): when this has returned nothing of the disk's contents can be read through its
file, by whoever gets it or its space next, and that is on disk; what was done is said, and nothing
that was not. An image that is not there now may come back: it is not wiped by its absence.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path

import msgspec

from skerry.device.disk.header import BadImage, is_luks
from skerry.device.disk.image import open_image
from skerry.device.disk.keys import Keys
from skerry.errors import StateError
from skerry.system.durable import sync
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
    if not _is_there(path):
        if spec.encrypted and keys.destroy(spec.file):
            return "its key was destroyed; its image was not there"
        raise BadImage(
            f"{path} is not there, so nothing was wiped",
            fix=f"mount or restore it; if it is gone for good, `skerry disk forget {spec.name}`",
        )
    # As one that is alone with it, whatever is left of it.
    image = open_image(msgspec.structs.replace(spec, shared=False), writes=True, judge=False)
    try:
        done = ["its key was destroyed"] if keys.destroy(spec.file) else []
        # A key is the release only of what it had encrypted.
        if not (done and spec.encrypted and is_luks(os.pread(image.descriptor, 8, 0))):
            zero(image.descriptor)
            done.append("its blocks were zeroed")
        if again:
            path.unlink()
            sync(path.parent, os.O_DIRECTORY)
    finally:
        image.close()
    return " and ".join(done)


def require_gone(spec: ResourceSpec, keys: Keys) -> str:
    """Take a disk's image for gone for good, with its key, and say so.

    Raises `StateError` if it is there, `BadImage` if that can't be said, `KeyLost`.
    """
    if _is_there(Path(spec.file)):
        raise StateError(
            f"{spec.file} is there, and not wiped", fix=f"`skerry disk release {spec.name}`"
        )
    key = "; its key was destroyed" if keys.destroy(spec.file) else ""
    return f"its image was not there, and nothing was wiped{key}"


def _is_there(path: Path) -> bool:
    """Say whether there is a file of that name. Raises `BadImage` where nobody can tell."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise BadImage(
            f"{path} cannot be looked at: {error.strerror}",
            fix="mount it, or let the node reach it",
        ) from None
    return True


def zero(descriptor: int) -> None:
    """Write zeros over everything that a file holds, and give its space back. Raises `OSError`."""
    end = os.fstat(descriptor).st_size
    zeros = bytes(_PIECE)
    at = 0
    while at < end:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # nothing but a hole up to the end
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
