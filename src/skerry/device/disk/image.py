"""A disk's image on the host: found or made, judged, and locked, before anybody may open it.

The rules: what is there is a regular file under its own name, whole, and nobody else's in a way
that would harm it; a file that is made is made anew, never over another. The locks are those that
QEMU's own programs take and respect (`block/file-posix.c`), so that none of them writes a disk
that is in use here; they lie on the open file and go with the helper that has it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from skerry.device.disk.clusters import check_clusters
from skerry.device.disk.header import HEADER_BYTES, BadImage, check_qcow2, check_raw
from skerry.errors import Denied
from skerry.system.model import ResourceSpec

_PERM, _SHARED = 100, 200  # where QEMU's locks lie: what one does, and what one can't have done
_READ, _WRITE, _RESIZE = 0, 1, 3
_FLOCK = struct.Struct("=hh4xqqi4x")
F_OFD_GETLK, F_OFD_SETLK = 36, 37


LOCK_S = 0.5
"""How long a lock on an image is waited for, in seconds: one of a use that was just cut goes a
moment after its daemon."""


class DiskInUse(Denied):
    """Somebody else has the disk in a way that does not allow another use."""

    code = "DISK-IN-USE"


class Image:
    """An image that was found, judged and locked. `new`: it was made now and is empty.

    `descriptor` is the open file that bears the locks; close it, or give it away. Where it is new
    it can be written: see `only_read`.
    """

    def __init__(self, path: Path, descriptor: int, new: bool, locks: Iterable[int]) -> None:
        """Take over a descriptor that bears these locks."""
        self.path = path
        self.descriptor = descriptor
        self.new = new
        self._locks = tuple(locks)

    def only_read(self) -> None:
        """Make the descriptor one that can't write; the locks go on. Raises `OSError`.

        What is made for a use that only reads is open to write until it is laid out.
        """
        if fcntl.fcntl(self.descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            return
        reading = os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _take(reading, self._locks)
        except OSError:
            os.close(reading)
            raise
        self.close()
        self.descriptor = reading

    def close(self) -> None:
        """Let go of it. Idempotent."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def open_image(spec: ResourceSpec, writes: bool, *, judge: bool = True) -> Image:
    """Find a disk's image, or make it where the system file gives a size, and lock it.

    `writes`: the use changes it; `judge`: what it holds must be whole. Raises `BadImage`,
    `DiskInUse`.
    """
    path = Path(spec.file)
    try:
        descriptor, new = _open(path, spec, writes)
    except OSError as error:
        raise BadImage(f"{path} {_words(error)}", fix=_fix(error)) from None
    try:
        if not new:
            _judge_kind(path, descriptor)
        # Before it is judged: what somebody else writes meanwhile is never whole.
        locks = _lock(descriptor, path, writes, spec.shared)
        if not new:
            new = judge and _is_empty(descriptor, spec, writes)
            if new:
                _extend(descriptor, spec)
            elif judge:
                _judge(path, descriptor, spec)
        return Image(path.resolve(), descriptor, new, locks)
    except BaseException:
        os.close(descriptor)
        if new:
            path.unlink(missing_ok=True)
        raise


def _open(path: Path, spec: ResourceSpec, writes: bool) -> tuple[int, bool]:
    mode = os.O_RDWR if writes else os.O_RDONLY
    # Without waiting for the other end of a pipe, and never through a link to another's file.
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(path, mode | flags), False
    except FileNotFoundError:
        if not spec.size or (not writes and spec.format != "raw"):
            raise  # to lay it out is to write it
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _extend(descriptor, spec)
    except OSError:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor, True


def _is_empty(descriptor: int, spec: ResourceSpec, writes: bool) -> bool:
    """Say whether a file was made and then never laid out: a node was killed in between."""
    return bool(spec.size) and writes and os.fstat(descriptor).st_size == 0


def _extend(descriptor: int, spec: ResourceSpec) -> None:
    if spec.format == "raw" and not spec.encrypted:
        os.ftruncate(descriptor, spec.size)
    os.fsync(descriptor)


def _judge_kind(path: Path, descriptor: int) -> None:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise BadImage(f"{path} is no regular file", fix="name the file of an image")
    if found.st_nlink != 1:  # who wrote it would be remembered under one name only
        raise BadImage(f"{path} has another name as well (a hard link)", fix="leave it one name")


def _judge(path: Path, descriptor: int, spec: ResourceSpec) -> None:
    untrusted = os.pread(descriptor, HEADER_BYTES, 0)
    length = os.fstat(descriptor).st_size
    try:
        if spec.format == "raw":
            check_raw(length, untrusted, spec.encrypted, spec.size)
        elif spec.encrypted:  # what LUKS holds only the daemon sees
            check_raw(length, untrusted, encrypted=True)
        else:
            layout = check_qcow2(length, untrusted, spec.size)
            check_clusters(partial(os.pread, descriptor), length, layout)
    except BadImage as error:
        fix = error.fix or "give a whole image of that format"
        raise BadImage(f"{path} {error.message}", fix=fix) from None
    except OSError as error:
        raise BadImage(f"{path} cannot be read: {error.strerror}", fix="mend its disk") from None


def _words(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "is a symbolic link"
    return f"cannot be opened: {error.strerror}"


def _fix(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "make it, or say its size in the system file: then the first use that writes does"
    if error.errno == errno.ELOOP:
        return "name the file itself"
    return "name an image that you may read and write"


def _lock(descriptor: int, path: Path, writes: bool, shared: bool) -> list[int]:
    """Take the locks of a reader or writer, as QEMU does, and look for others'; return ours.

    Taken first and looked for then: of two at once at least one sees the other.
    """
    does = {_READ, _WRITE, _RESIZE} if writes else {_READ}
    forbids = set() if shared else {_WRITE, _RESIZE}
    locks = sorted({_PERM + p for p in does} | {_SHARED + p for p in forbids})
    _take(descriptor, locks)
    against = sorted({_SHARED + p for p in does} | {_PERM + p for p in forbids})
    deadline = time.monotonic() + LOCK_S
    while any(_held(descriptor, at) for at in against):
        if time.monotonic() > deadline:
            raise DiskInUse(
                f"{path} is in use by somebody else",
                fix="end the other use; one that writes is alone, unless the disk is shared",
            )
        time.sleep(LOCK_S / 50)
    return locks


def _take(descriptor: int, locks: Iterable[int]) -> None:
    for at in locks:
        fcntl.fcntl(descriptor, F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, at, 1, 0))


def _held(descriptor: int, at: int) -> bool:
    # Asked as a writer, which every other holder of a lock is in the way of; nothing is taken.
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
    answer = fcntl.fcntl(descriptor, F_OFD_GETLK, asked)
    return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK
