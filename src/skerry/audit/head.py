"""The trail's head as the node remembers it, outside the trail: what shows a missing end.

The rule: the file names a record that was on the disk before the file did, so a trail that does
not reach it was cut. It is replaced whole, and durably, never written in place.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import msgspec

from skerry.audit.chain import Link, is_hash
from skerry.audit.disk import HostDisk
from skerry.audit.record import MAX_NUMBER
from skerry.errors import SkerryError

MAX_HEAD = 4096
"""Longest head file in bytes; a longer one is refused unread."""


def read_head(path: Path) -> Link | None:
    """Return the head that was noted, None if none was. Raises `SkerryError` if it is damaged."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SkerryError(f"the trail's head {path} cannot be read: {error.strerror}") from None
    try:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        untrusted_text = os.read(fd, MAX_HEAD + 1) if regular else b""
    finally:
        os.close(fd)
    try:
        head = msgspec.json.decode(untrusted_text, type=Link)
    except msgspec.MsgspecError:
        head = Link(-1)
    if not 0 <= head.n <= MAX_NUMBER or not is_hash(head.hash):
        raise SkerryError(
            f"the trail's head {path} is damaged",
            fix="run 'skerry audit verify --head HASH' with a head noted elsewhere, keep the file "
            "as evidence, and move it away",
        )
    return head


def write_head(path: Path, head: Link) -> None:
    """Note the head, durably. Raises `OSError`; then the old one stands."""
    new = path.with_name(path.name + ".new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(new, flags, 0o600)
        try:
            os.write(fd, msgspec.json.encode(head))
            os.fsync(fd)
        finally:
            os.close(fd)
        new.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    HostDisk().sync_folder(path)
