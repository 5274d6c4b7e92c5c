"""Batches of records made durable in the live segment. Synchronous, for one thread.

The rule: `write` returns only after all of a batch is on the disk; if it raises, nothing of the
batch is in the trail. What a failed write left is cut off before anything else is written.

Room for the next batches is set aside in the file before it is needed, and `RESERVE` bytes more:
when the disk is full that is found out before a batch is written, and what must be written even
then (with no room to `spare`) still has its place, which nobody else can take.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from skerry.audit.chain import SEGMENT, Link, seal
from skerry.audit.disk import Disk
from skerry.audit.record import body_json, fields_json
from skerry.audit.segments import Opened, Successors

RESERVE = 256 << 10
"""Bytes that stay set aside for refusals and takings-away when the disk is full; then they wait."""

STEP = 1 << 20
"""Bytes set aside at a time, so that most batches ask for none; a full disk gives fewer."""

RECOVERY = RESERVE + STEP
"""Bytes that must be free again before a full disk counts as having room."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The error numbers of a disk, or a quota, that is full."""

Clock = Callable[[], int]


class Writable(Protocol):
    """A record without its number; `fields` is canonical JSON, the times in nanoseconds."""

    @property
    def event(self) -> str:
        """The record's event."""

    @property
    def fields(self) -> str:
        """The record's fields, from `record.fields_json`."""

    @property
    def wall_ns(self) -> int:
        """Nanoseconds since 1970."""

    @property
    def mono_ns(self) -> int:
        """Nanoseconds of the monotonic clock."""


class Own(NamedTuple):
    """A record that the writer itself has to say something with."""

    event: str
    fields: str
    wall_ns: int
    mono_ns: int


class Appender:
    """Writes to the live segment of a trail, and to its successors."""

    def __init__(
        self,
        disk: Disk,
        opened: Opened,
        successors: Successors,
        rotate: int,
        wall: Clock,
        mono: Clock,
    ) -> None:
        """Take over an opened segment; `rotate` in bytes, 0 for never."""
        self._disk = disk
        self._fd = opened.fd
        self._size = opened.size  # everything up to here was synced
        self._first = opened.first
        self._continues = opened.continues  # until the record that says so is on the disk
        self._allocated = opened.size
        self._dirty = False
        self._successors = successors
        self._rotate = rotate
        self._rotate_at = rotate
        self._wall = wall
        self._mono = mono
        self.link = opened.link
        """The last record on the disk."""

    def write(self, batch: Iterable[Writable], spare: int = RESERVE) -> int:
        """Make a batch durable and return the number of its first record.

        Behind the batch there must be `spare` bytes set aside: none for what is written from the
        reserve, `RECOVERY` to end a time without room. Raises `OSError`.
        """
        if self._dirty:
            self._mend()
        own = self._before(may_rotate=bool(spare))
        lines: list[bytes] = []
        link = self.link
        for one in (*own, *batch):
            n = link.n + 1
            body = body_json(n, one.wall_ns, one.mono_ns, link.hash, one.event, one.fields)
            line, digest = seal(body, link.hash)
            lines.append(line)
            link = Link(n, digest)
        data = b"".join(lines)
        needed = len(data) + spare
        if self._size + needed > self._allocated:
            self._allocated = self._set_aside(self._fd, self._size, needed)
        self._put(data)
        first = self.link.n + 1 + len(own)
        self._size += len(data)
        self.link = link
        if self._continues:
            self._continues = ""
            self._successors.begun()
        return first

    def close(self) -> None:
        """Close the live segment; what is set aside stays, for the next writer."""
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1

    def _put(self, data: bytes) -> None:
        self._dirty = True
        try:
            while data:
                written = self._disk.append(self._fd, data)
                if written <= 0:
                    raise OSError("the disk took nothing")
                data = data[written:]
            self._disk.sync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):  # else the next write mends it first
                self._mend()
            raise
        self._dirty = False

    def _mend(self) -> None:
        """Cut off what a failed write left."""
        self._disk.truncate(self._fd, self._size)
        self._allocated = self._size
        self._disk.sync(self._fd)
        self._dirty = False

    def _set_aside(self, fd: int, size: int, count: int) -> int:
        """Allocate `count` bytes or more behind the end; returns up to where. Raises `OSError`."""
        for more in (STEP, 0):
            try:
                self._disk.allocate(fd, size, count + more)
            except OSError as error:
                if error.errno in {errno.EOPNOTSUPP, errno.ENOSYS}:
                    break  # a file system that can't: there is no reserve
                if not more:
                    raise
            else:
                return size + count + more
        return size

    def _before(self, may_rotate: bool) -> list[Own]:
        """Begin the next segment if this one is full; return what must be written first."""
        own = []
        if may_rotate and self._rotate and self._size >= self._rotate_at:
            try:
                self._begin_segment()
            except OSError as error:
                # It goes on here, and the next try is some way off.
                self._rotate_at = self._size + self._rotate // 8 + 1
                reason = error.strerror or str(error)
                own.append(self._own("segment-failed", fields_json({"reason": reason})))
        if self._continues:
            own.append(self._own(SEGMENT, self._continues))
        return own

    def _begin_segment(self) -> None:
        fd, continues = self._successors.follow(self._first, self.link)
        try:
            allocated = self._set_aside(fd, 0, RESERVE)
        except OSError:
            self._disk.close(fd)  # the old one has its reserve and remains the live one
            raise
        with contextlib.suppress(OSError):
            self._disk.truncate(self._fd, self._size)  # gives back what was set aside
        self._disk.close(self._fd)
        self._fd, self._continues = fd, continues
        self._size, self._allocated = 0, allocated
        self._first = self.link.n + 1
        self._rotate_at = self._rotate

    def _own(self, event: str, fields: str) -> Own:
        return Own(event, fields, self._wall(), self._mono())
