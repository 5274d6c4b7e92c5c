"""Lets one uid at one file for a moment: an entry in the file's POSIX access control list.

The rule: an entry is for exactly one uid, stands no longer than the opening takes, and its removal
leaves the list as it was. Layout: Linux' `posix_acl_xattr.h`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

from skerry.errors import Denied

XATTR = "system.posix_acl_access"
READ, WRITE, EXECUTE = 4, 2, 1
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_OWNER, _USER, _OWNING, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NOBODY = 0xFFFFFFFF
_one_at_a_time = Lock()

Entries = dict[tuple[int, int], int]


class NoAccess(Denied):
    """The jail of a disk's helper can't be let at its image."""

    code = "DISK-ACCESS"


@contextlib.contextmanager
def granted(path: Path, uid: int, wanted: int) -> Iterator[None]:
    """Let a uid at a file, and through the directories above it, while the context lasts.

    Raises `NoAccess`; then nothing was changed.
    """
    with contextlib.ExitStack() as stack:
        for folder in reversed(path.parents):
            if not folder.stat().st_mode & stat.S_IXOTH:
                stack.enter_context(_entry(folder, uid, EXECUTE))
        stack.enter_context(_entry(path, uid, wanted))
        yield


@contextlib.contextmanager
def _entry(path: Path, uid: int, wanted: int) -> Iterator[None]:
    with _one_at_a_time:
        before = _read(path)
        try:
            _write(path, _with(before, uid, wanted))
        except OSError as error:
            raise _no_access(path, uid, error) from None
        after = _read(path)
    try:
        yield
    finally:
        with _one_at_a_time, contextlib.suppress(OSError):
            now = _read(path)
            _write(path, before if now == after else _without(now, uid))


def _no_access(path: Path, uid: int, error: OSError) -> NoAccess:
    fix = "put the image where everyone may enter, with a file system that has access lists"
    if error.errno in (errno.EPERM, errno.EACCES):
        fix = f"it must be yours: chown it, or let uid {uid} at it with setfacl"
    return NoAccess(f"{path} cannot be opened to the disk's helper: {error.strerror}", fix=fix)


def _read(path: Path) -> Entries:
    """Return a file's list; that which its mode amounts to where it has none."""
    try:
        raw = os.getxattr(path, XATTR)
    except OSError:
        mode = path.stat().st_mode
        return {
            (_OWNER, _NOBODY): mode >> 6 & 7,
            (_OWNING, _NOBODY): mode >> 3 & 7,
            (_OTHER, _NOBODY): mode & 7,
        }
    return {(tag, who): perm for tag, perm, who in _ENTRY.iter_unpack(raw[len(_VERSION) :])}


def _write(path: Path, entries: Entries) -> None:
    """Set a list; one with nothing but owner, group and others becomes the mode."""
    ordered = sorted(entries.items())
    packed = (_ENTRY.pack(tag, perm, who) for (tag, who), perm in ordered)
    os.setxattr(path, XATTR, _VERSION + b"".join(packed))


def _with(entries: Entries, uid: int, wanted: int) -> Entries:
    group = entries[_OWNING, _NOBODY]
    mask = entries.get((_MASK, _NOBODY), group)
    return {**entries, (_USER, uid): wanted, (_MASK, _NOBODY): mask | wanted}


def _without(entries: Entries, uid: int) -> Entries:
    rest = {key: perm for key, perm in entries.items() if key != (_USER, uid)}
    if not any(tag in (_USER, _GROUP) for tag, _ in rest):
        rest.pop((_MASK, _NOBODY), None)
    return rest
