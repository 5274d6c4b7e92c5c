"""The hash chain: what makes a change to the trail visible. Pure.

The rule: a record's hash is SHA-256 over the hash of the record before it and its own canonical
bytes, so a changed, dropped, swapped or repeated record breaks the chain where it happened. What
a chain alone can't show is a missing end; that needs a head kept elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from skerry.audit.record import Record, RecordError, parse_record

GENESIS = "0" * 64
"""The `prev` of the first record."""

SEGMENT = "segment"
"""The event of a segment's first record: which one it continues, and what retention removed."""

_SEAL = b',"hash":"'
_SEALED = len(_SEAL) + 64 + len(b'"}\n')


class Proof(msgspec.Struct, frozen=True):
    """What a verification found.

    `count` records are proven and `head` is the hash of the last of them. `broken` is the number
    of the first record that is not as it was written, 0 if there is none; `reason` says how.
    `after` counts the proven records behind the head that was asked for.
    """

    count: int
    head: str
    broken: int = 0
    reason: str = ""
    after: int = 0


class Link(msgspec.Struct, frozen=True):
    """Where a chain stands: the number and hash of its last record."""

    n: int = 0
    hash: str = GENESIS


class BrokenLinkError(Exception):
    """A line does not continue the chain; the message says how."""


def seal(body: str, prev: str) -> tuple[bytes, str]:
    """Return the line of a record and its hash; `body` as `record.body_json` makes it."""
    data = body.encode("ascii")
    digest = hashlib.sha256(prev.encode("ascii") + data).hexdigest()
    return data[:-1] + _SEAL + digest.encode("ascii") + b'"}\n', digest


def follow(link: Link, untrusted_line: bytes) -> Link:
    """Return where the chain stands after this line.

    Raises `BrokenLinkError` if the line is torn, altered, or not the next record.
    """
    record = open_line(untrusted_line)
    if record.n != link.n + 1:
        how = "is missing" if record.n > link.n + 1 else "is not here"
        raise BrokenLinkError(f"{how}: record {record.n} stands in its place")
    if record.prev != link.hash:
        raise BrokenLinkError("does not follow from the record before it")
    return Link(record.n, record.hash)


def open_line(untrusted_line: bytes) -> Record:
    """Return the record of a line that is whole and unaltered. Raises `BrokenLinkError`."""
    if not untrusted_line.endswith(b"\n"):
        raise BrokenLinkError("is torn: its line has no end")
    body = untrusted_line[:-_SEALED] + b"}"
    try:
        record = parse_record(untrusted_line)
        if seal(body.decode("ascii"), record.prev) != (untrusted_line, record.hash):
            raise BrokenLinkError("was altered: its hash does not fit")
    except (RecordError, UnicodeError) as error:
        raise BrokenLinkError(f"was altered: {error}") from None
    return record


def verify(untrusted_lines: Iterable[bytes], head: str | None = None) -> Proof:
    """Prove a whole trail, or name the first record that is not as it was written.

    `head` is the hash of a record known from elsewhere: a trail that does not contain it was
    cut short (or replaced). Records behind the head are proven too and counted in `after`.
    """
    link = Link()
    found = 0 if head == GENESIS else None
    for line in untrusted_lines:
        try:
            link = follow(link, line)
        except BrokenLinkError as error:
            return Proof(link.n, link.hash, link.n + 1, str(error))
        if link.hash == head:
            found = link.n
    if head is not None and found is None:
        reason = "is missing: the trail ends before the head that was asked for"
        return Proof(link.n, link.hash, link.n + 1, reason)
    return Proof(link.n, link.hash, after=link.n - (link.n if found is None else found))
