"""Writer and reader of `newc` cpio, the form of an initramfs: the same entries, the same bytes.

Everything that could differ between two builds is fixed: entries are sorted by path, times and
owners are 0, inode numbers count from 1 in that order. Parent directories are added where missing.

Source of the format: Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from pathlib import PurePosixPath

import msgspec

DIRECTORY = 0o755
EXECUTABLE = 0o755
PLAIN = 0o444

TRAILER = "TRAILER!!!"
"""The end of an archive, which so can't be a path in it."""

_MAGIC, _HEAD = b"070701", 110
_HEADER = re.compile(_MAGIC + rb"[0-9A-F]{104}")


class Entry(msgspec.Struct, frozen=True):
    """One entry: `path` relative to the root; `mode` with its file type; `data` as the type needs.

    For a symbolic link `data` is the target; for a directory it is empty.
    """

    path: str
    mode: int
    data: bytes = b""


def file(path: str, data: bytes, *, mode: int = PLAIN) -> Entry:
    """Describe a regular file."""
    return Entry(path, stat.S_IFREG | mode, data)


def link(path: str, target: str) -> Entry:
    """Describe a symbolic link to `target`."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def directory(path: str, *, mode: int = DIRECTORY) -> Entry:
    """Describe a directory."""
    return Entry(path, stat.S_IFDIR | mode)


def archive(entries: Iterable[Entry]) -> bytes:
    """Return the archive of `entries`, whatever their order.

    Raises `ValueError` for a path that is absolute, climbs, or occurs twice.
    """
    by_path: dict[str, Entry] = {}
    for entry in entries:
        path = PurePosixPath(entry.path)
        if path.is_absolute() or ".." in path.parts or str(path) in (".", TRAILER):
            raise ValueError(f"not a path inside an image: {entry.path!r}")
        if by_path.setdefault(str(path), entry) is not entry:
            raise ValueError(f"two entries of one path: {entry.path!r}")
    for path in [PurePosixPath(p) for p in by_path]:
        for parent in path.parents[:-1]:
            by_path.setdefault(str(parent), directory(str(parent)))
    out = bytearray()
    # Parents sort before what they hold, as their path is a prefix.
    for inode, (name, entry) in enumerate(sorted(by_path.items()), start=1):
        _append(out, inode, name, entry.mode, entry.data)
    _append(out, 0, TRAILER, 0, b"")
    return bytes(out)


def _append(out: bytearray, inode: int, name: str, mode: int, data: bytes) -> None:
    links = 2 if stat.S_ISDIR(mode) else 1
    raw_name = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(raw_name), 0)
    out += _MAGIC + b"".join(b"%08X" % field for field in fields) + raw_name
    out += bytes(-len(out) % 4)
    out += data
    out += bytes(-len(out) % 4)


def entries(untrusted: bytes) -> list[Entry]:
    """Return what an archive of `archive` holds, without its inode numbers, in its order.

    Raises `ValueError` for one that is cut off or not of this form.
    """
    found: list[Entry] = []
    at = 0
    while True:
        head = untrusted[at : at + _HEAD]
        if not _HEADER.fullmatch(head):
            raise ValueError("not a newc cpio archive, or cut off")
        mode, length, name_length = (int(head[i : i + 8], 16) for i in (14, 54, 94))
        name_end = at + _HEAD + name_length
        name = untrusted[at + _HEAD : name_end - 1].decode()
        start = name_end + -name_end % 4
        end = start + length
        if end > len(untrusted) or not name_length:
            raise ValueError("a cpio archive that is cut off")
        if name == TRAILER:
            return found
        found.append(Entry(name, mode, untrusted[start:end]))
        at = end + -end % 4
