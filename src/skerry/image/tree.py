"""The files of an image while it is put together: in memory, bounded, and every path a real one.

The rules: a package is read into memory and never unpacked, so no symbolic link of one can lead
anywhere; no file lies behind a symbolic link or a plain file; two sources never give one path two
contents; the sum of all contents is bounded before any of it is kept.

An image with packages has Debian's merged `/usr`: what a package has in `/bin`, `/sbin` or `/lib*`
stands under `/usr`, and the old names are links.
"""

from __future__ import annotations

import fnmatch
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

import msgspec

from skerry.errors import SkerryError
from skerry.image import cpio

MAX_PATH = 1024
"""Longest path in an image, in bytes; a longer one is refused, and no image is made."""
MAX_ENTRIES = 100_000
"""Most files and directories of an image; with one more no image is made."""

MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""The directories that an image with packages has under `/usr`."""

SKERRY, APPLETS, FILES = "skerry", "busybox", "files"
"""Where entries come from that no package has; a package may replace the applets, a link each."""


class Placed(msgspec.Struct, frozen=True):
    """An entry and where it comes from: a package's name, or one of the three above."""

    entry: cpio.Entry
    origin: str


class Tree:
    """The entries of one image by path.

    `drop`: patterns of paths that packages don't put in; `keep`: of those that they do.
    """

    def __init__(
        self,
        limit: int,
        *,
        merged: bool = False,
        drop: Iterable[str] = (),
        keep: Iterable[str] = (),
    ) -> None:
        """Make an empty tree that takes up to `limit` bytes of contents."""
        self.limit = limit
        self.size = 0
        self._merged = merged
        self._drop = tuple(drop)
        self._keep = (*keep, "usr/share/doc/*/copyright")
        self._placed: dict[str, Placed] = {}

    @property
    def placed(self) -> Mapping[str, Placed]:
        """Everything that was added, by its path."""
        return self._placed

    def path(self, untrusted_path: str) -> str:
        """Return a path as it stands in this image: printable, so that an error can name it.

        Raises `SkerryError` if it leads out of the image, or no archive can hold it.
        """
        path = PurePosixPath(untrusted_path.lstrip("/"))
        raw = str(path)
        out = ".." in path.parts or raw == cpio.TRAILER
        if out or not raw.isprintable() or len(raw.encode()) > MAX_PATH:
            raise SkerryError(f"{untrusted_path[:200]!a} is no path inside an image")
        if self._merged and path.parts and path.parts[0] in MERGED:
            return f"usr/{raw}"
        return raw

    def wants(self, path: str) -> bool:
        """Say whether what a package has at `path` goes into the image."""
        return not _matches(path, self._drop) or _matches(path, self._keep)

    def reserve(self, size: int, what: str) -> None:
        """Count bytes before they are read. Raises `SkerryError` when they are too many."""
        self.size += size
        if self.size > self.limit:
            raise SkerryError(
                f"the image grows over its limit of {self.limit >> 20} MiB with {what}",
                fix="raise limits.size, drop files, or take fewer packages",
            )

    def add(self, entry: cpio.Entry, origin: str, *, over: str = "") -> None:
        """Put an entry in; its bytes were reserved. `over`: the origin that it may replace.

        Raises `SkerryError` if another source has the path already, unless both are directories or
        the same file.
        """
        path = self.path(entry.path)
        merged = self._merged and path.removeprefix("usr/") in MERGED
        if path == "." or (merged and stat.S_ISLNK(entry.mode)):
            return
        entry = cpio.Entry(path, entry.mode, entry.data)
        held = self._placed.get(path)
        if held is not None and held.origin != over and not _same(held.entry, entry):
            raise SkerryError(f"/{path} comes from both {held.origin} and {origin}")
        if held is None or held.origin == over:
            self._placed[path] = Placed(entry, origin)
        if len(self._placed) > MAX_ENTRIES:
            raise SkerryError(f"the image holds more than {MAX_ENTRIES} files")

    def remove(self, path: str) -> None:
        """Take an entry out again, and its bytes out of the count."""
        self.size -= len(self._placed.pop(path).entry.data)

    def entries(self) -> Iterator[cpio.Entry]:
        """Return what the archive holds. Raises `SkerryError` for a file behind a link."""
        for path, placed in self._placed.items():
            for parent in PurePosixPath(path).parents[:-1]:
                above = self._placed.get(str(parent))
                if above is not None and not stat.S_ISDIR(above.entry.mode):
                    kind = "the link" if stat.S_ISLNK(above.entry.mode) else "the file"
                    raise SkerryError(
                        f"{placed.origin} has /{path}, which lies behind {kind} /{parent}"
                        f" of {above.origin}"
                    )
            yield placed.entry
        if self._merged:
            for name in MERGED:
                if any(path.startswith(f"usr/{name}/") for path in self._placed):
                    yield cpio.link(name, f"usr/{name}")


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _same(one: cpio.Entry, other: cpio.Entry) -> bool:
    both_directories = stat.S_ISDIR(one.mode) and stat.S_ISDIR(other.mode)
    return both_directories or (one.mode, one.data) == (other.mode, other.data)
