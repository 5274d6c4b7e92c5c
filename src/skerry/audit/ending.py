"""Where an existing trail ends, and what of a crash may be cut off it.

The rule: nothing that was acknowledged is ever removed. A record is acknowledged after its whole
batch was synced, so what a crash can leave behind is at the very end, in one batch: a last line
without its end, or blocks that were never written and read as zeros. That is cut. Anything else
that does not verify was not done by a crash, and the trail is refused as it is.
"""

from __future__ import annotations

from collections import deque

import msgspec

from skerry.audit.chain import SEGMENT, BrokenLinkError, Link, follow, open_line
from skerry.audit.disk import Disk
from skerry.audit.record import MAX_LINE, Record

MAX_BATCH = 1 << 18
"""Most bytes written before a sync, and so the most that a crash can damage."""

WINDOW = 4 * (MAX_BATCH + MAX_LINE)
"""How much of the end is verified when a trail is opened; `audit verify` reads all of it."""

_FRESH = Link()


class Ending(msgspec.Struct, frozen=True):
    """The good part of a trail: its length in bytes, its last record, what lies behind it."""

    size: int
    link: Link
    cut: int


class DamagedTrailError(Exception):
    """The end of the trail does not verify, and no crash explains it."""


def find_ending(disk: Disk, fd: int, before: Link | None = _FRESH) -> Ending:
    """Return where the good part of a segment ends.

    `before` is the last record of the segment before it; None if that is no longer there, and
    then this one must begin with the record that says it continues one. Raises
    `DamagedTrailError` or `OSError`.
    """
    size = disk.size(fd)
    start = max(0, size - WINDOW)
    untrusted_data = disk.read(fd, start, size - start)
    at = 0
    link = before
    if start:  # begins within a record; the first whole line is where the check begins
        at = untrusted_data.find(b"\n") + 1
        link = None
    while at < len(untrusted_data):
        end = untrusted_data.find(b"\n", at) + 1 or len(untrusted_data)
        try:
            link = _next(link, untrusted_data[at:end], must_continue=not start)
        except BrokenLinkError as error:
            rest = untrusted_data[at:]
            if link is None or not is_torn(rest):
                where = f"record {link.n + 1}" if link else "the end"
                raise DamagedTrailError(f"{where} {error}") from None
            return Ending(start + at, link, len(rest))
        at = end
    if link is None:
        raise DamagedTrailError("the end holds no record")
    return Ending(size, link, 0)


def first_number(disk: Disk, fd: int) -> int:
    """Return the number of a segment's first record. Raises `DamagedTrailError` or `OSError`."""
    untrusted_data = disk.read(fd, 0, MAX_LINE)
    try:
        return open_line(untrusted_data[: untrusted_data.find(b"\n") + 1]).n
    except BrokenLinkError as error:
        raise DamagedTrailError(f"its first record {error}") from None


def records_after(disk: Disk, fd: int, size: int, number: int) -> list[Record]:
    """Return the records behind `number` among the last `WINDOW` bytes, in order.

    The end of the file must have been verified up to `size`.
    """
    start = max(0, size - WINDOW)
    lines = disk.read(fd, start, size - start).splitlines(keepends=True)
    found: deque[Record] = deque()
    for line in reversed(lines[1:] if start else lines):
        record = open_line(line)
        if record.n <= number:
            break
        found.appendleft(record)
    return list(found)


def _next(link: Link | None, line: bytes, must_continue: bool) -> Link:
    if link is not None:
        return follow(link, line)
    record = open_line(line)
    if must_continue and record.event != SEGMENT:
        raise BrokenLinkError("does not say which segment it continues")
    return Link(record.n, record.hash)


def is_torn(rest: bytes) -> bool:
    """Say whether a crash while writing can have left this at the end of a file."""
    return len(rest) <= MAX_BATCH and (b"\n" not in rest or b"\0" in rest)
