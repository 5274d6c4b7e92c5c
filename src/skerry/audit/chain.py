"""The hash chain: what makes a change to the trail visible. Pure.

The rule: a record's hash is SHA-256 over the hash of the record before it and its own canonical
bytes, so a changed, dropped, swapped or repeated record breaks the chain where it happened. What
a chain alone can't show is a missing end; that needs a head kept elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable

import msgspec

from skerry.audit.record import Record, RecordError, parse_record

GENESIS = "0" * 64
"""The `prev` of the first record."""

SEGMENT = "segment"
"""The event of a segment's first record: which one it continues, and what retention removed."""

_SEAL = b',"hash":"'
_HASH = re.compile(r"[0-9a-f]{64}")
_SEALED = len(_SEAL) + 64 + len(b'"}\n')


class Link(msgspec.Struct, frozen=True):
    """Where a chain stands: the number and hash of its last record."""

    n: int = 0
    hash: str = GENESIS


class Proof(msgspec.Struct, frozen=True):
    """What a verification found.

    `count` records are proven, from number `first` on, and `head` is the hash of the last of
    them. `broken` is the number of the first record that is not as it was written, 0 if there is
    none; `reason` says how. `after` counts the proven records behind the head that was asked for.
    """

    count: int
    head: str
    broken: int = 0
    reason: str = ""
    after: int = 0
    first: int = 1


class BrokenLinkError(Exception):
    """A line does not continue the chain; the message says how."""


def is_hash(untrusted_text: str) -> bool:
    """Tell whether a text could be a record's hash."""
    return _HASH.fullmatch(untrusted_text) is not None


def seal(body: str, prev: str) -> tuple[bytes, str]:
    """Return the line of a record and its hash; `body` as `record.body_json` makes it."""
    data = body.encode("ascii")
    digest = hashlib.sha256(prev.encode("ascii") + data).hexdigest()
    return data[:-1] + _SEAL + digest.encode("ascii") + b'"}\n', digest


def follow(link: Link, untrusted_line: bytes) -> Link:
    """Return where the chain stands after this line.

    Raises `BrokenLinkError` if the line is torn, altered, or not the next record.
    """
    return _join(link, open_line(untrusted_line))


def _join(link: Link, record: Record) -> Link:
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


def verify(
    untrusted_lines: Iterable[bytes],
    head: str | None = None,
    *,
    first: int = 1,
    at_least: Link | None = None,
    see: Callable[[Record], str] | None = None,
) -> Proof:
    """Prove a whole trail, or name the first record that is not as it was written.

    `head` is the hash of a record known from elsewhere, `at_least` the number and hash of one: a
    trail that does not contain it was cut short (or replaced). Records behind the head are proven
    too and counted in `after`. `see` looks at each proven record and returns what is wrong with
    it, if anything.

    A trail that begins with record `first` instead of 1 must begin with one that continues a
    segment, and another must say that retention removed all that came before.
    """
    walk = _Walk(head, first, at_least, see)
    lines = iter(untrusted_lines)
    reason = ""
    try:
        for line in lines:
            walk.step(open_line(line))
    except BrokenLinkError as error:
        reason = str(error)
        for line in lines:  # what is proven must still be justified
            with contextlib.suppress(BrokenLinkError):
                walk.note_removal(open_line(line))
    return walk.proof(reason)


class _Walk:
    """One verification; the link is where the proven part ends."""

    def __init__(
        self,
        head: str | None,
        first: int,
        at_least: Link | None,
        see: Callable[[Record], str] | None,
    ) -> None:
        self._first = first
        self._link = Link(first - 1)
        self._removed = 0  # retention removed everything up to here
        self._head = head
        self._found = first - 1 if head == GENESIS else None
        self._at_least = at_least or Link()
        self._see = see

    def step(self, record: Record) -> None:
        """Prove the next record. Raises `BrokenLinkError`."""
        link = self._link
        if self._first == record.n > 1:
            if record.event != SEGMENT:
                raise BrokenLinkError("does not say which segment it continues")
            link = Link(link.n, record.prev)
        link = _join(link, record)
        if link.n == self._at_least.n and link != self._at_least:
            raise BrokenLinkError("is not the one that was written: another hash is known")
        if self._see and (wrong := self._see(record)):
            raise BrokenLinkError(wrong)
        self._link = link
        if link.hash == self._head:
            self._found = link.n
        self.note_removal(record)

    def note_removal(self, record: Record) -> None:
        """Remember what a segment's first record says about retention."""
        removed = record.fields.get("removed")
        if record.event == SEGMENT and isinstance(removed, dict):
            last = removed.get("last")
            if isinstance(last, int) and last < record.n:
                self._removed = max(self._removed, last)

    def proof(self, reason: str) -> Proof:
        """Return what was found; `reason` is what is wrong with the record behind the link."""
        link, first = self._link, self._first
        if self._removed < first - 1:
            reason = f"is missing: record {first} is the first that is here"
            return Proof(0, GENESIS, self._removed + 1, reason, first=first)
        reason = reason or self._missing_end()
        broken = link.n + 1 if reason else 0
        after = 0 if reason or self._found is None else link.n - self._found
        return Proof(link.n + 1 - first, link.hash, broken, reason, after, first)

    def _missing_end(self) -> str:
        if self._head is not None and self._found is None:
            return "is missing: the trail ends before the head that was asked for"
        if self._link.n < (n := self._at_least.n):
            return f"is missing: the trail ends before record {n}, which it had reached"
        return ""
