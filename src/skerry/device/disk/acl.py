"""Lets one uid at one file for a moment: an entry in the file's POSIX access control list.

The rule: an entry is for exactly one uid and gives nobody else more; it stands no longer than the
opening takes, and when the last one goes the list is as it was, or as its owner has made it
meanwhile. Layout: Linux' `posix_acl_xattr.h`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from threading import Lock

from skerry.errors import Denied

XATTR = "system.posix_acl_access"
READ, WRITE, EXECUTE = 4, 2, 1
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_OWNER, _USER, _OWNING, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NOBODY = 0xFFFFFFFF
_MASKED = frozenset({_USER, _OWNING, _GROUP})
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


class _Lent:
    """A file's own list, what is granted beside it, and both as they were written last."""

    def __init__(self, own: Entries) -> None:
        self.own = self.written = own
        self.grants: list[tuple[int, int]] = []

    def look(self, now: Entries) -> None:
        """Take note of what the owner has changed meanwhile."""
        if now != self.written:
            self.own = _without(now, {uid for uid, _ in self.grants})

    def write(self, path: Path, grants: list[tuple[int, int]]) -> None:
        """Grant these and no others. Raises `OSError`; then it is as it was."""
        _write(path, _with(self.own, grants))
        self.grants, self.written = grants, _read(path)


_lent: dict[tuple[int, int], _Lent] = {}
"""By device and inode; what is not in it has no entry of ours."""


@contextlib.contextmanager
def _entry(path: Path, uid: int, wanted: int) -> Iterator[None]:
    with _one_at_a_time:
        found, now = path.stat(), _read(path)
        file = found.st_dev, found.st_ino
        lent = _lent.get(file) or _Lent(now)
        lent.look(now)
        try:
            lent.write(path, [*lent.grants, (uid, wanted)])
        except OSError as error:
            raise _no_access(path, uid, error) from None
        _lent[file] = lent
    try:
        yield
    finally:
        with _one_at_a_time:
            rest = lent.grants.copy()
            rest.remove((uid, wanted))
            with contextlib.suppress(OSError):
                lent.look(_read(path))
                lent.write(path, rest)
            lent.grants = rest
            if not rest:
                del _lent[file]


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


def _with(own: Entries, grants: Collection[tuple[int, int]]) -> Entries:
    if not grants:
        return own
    # The mask grows by what is granted: what it withheld of others is taken from them itself.
    withheld = 7 & ~own.get((_MASK, _NOBODY), 7)
    made = {key: p & ~withheld if key[0] in _MASKED else p for key, p in own.items()}
    for uid, wanted in grants:
        made[_USER, uid] = made.get((_USER, uid), 0) | wanted
        mask = made.get((_MASK, _NOBODY), own[_OWNING, _NOBODY])
        made[_MASK, _NOBODY] = mask | wanted
    return made


def _without(entries: Entries, uids: Collection[int]) -> Entries:
    rest = {(tag, who): p for (tag, who), p in entries.items() if tag != _USER or who not in uids}
    if not any(tag in (_USER, _GROUP) for tag, _ in rest):
        rest.pop((_MASK, _NOBODY), None)
    return rest
