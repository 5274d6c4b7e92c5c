"""The replica of a trail, as the domain that holds it has it. Pure but for its files.

The rules: a record counts as replicated only if it follows, by the chain, from the one before it;
what was replicated once is never replaced, so a trail that was rewritten is found out when it comes
by again; what is missing is a gap that is said. A feed begins with the first record of a segment.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Literal

import msgspec

from skerry.audit.chain import SEGMENT, BrokenLinkError, Link, follow, is_hash, open_line
from skerry.audit.record import MAX_LINE, MAX_NUMBER
from skerry.errors import WireError

KEEP = 64 << 20
"""Bytes of records that a replica keeps; the oldest make room, and the chain goes on."""

FILE = 1 << 20
"""Bytes after which the next file of records is begun."""

MAX_FILE = FILE + MAX_LINE
"""Longest file of records in bytes; what is longer is not taken from a replica."""

MAX_EXPORT = 2 * KEEP
"""Most bytes of records that one export takes from a replica, which may get more meanwhile."""

MAX_GAPS = 16
"""Gaps that are named; further ones are only counted."""

MAX_STATUS = 8192
"""Longest status in bytes; a longer one is none."""

State = Literal["empty", "whole", "gaps", "broken"]


class Status(msgspec.Struct, frozen=True):
    """How a replica stands: its head, the oldest record that it keeps, and what is wrong.

    `gaps` are the first and last number of what never came, `more_gaps` how many are not named.
    `left_out`: records that are in the chain but found no room. `reason`: why it is broken.
    """

    n: int
    hash: str
    first: int = 0
    state: State = "empty"
    gaps: tuple[tuple[int, int], ...] = ()
    more_gaps: int = 0
    left_out: int = 0
    reason: str = ""


def read_status(untrusted: bytes) -> Status:
    """Return what a replica says of itself. Raises `WireError` if that can't be."""
    if len(untrusted) > MAX_STATUS:
        raise WireError(f"the audit replica's status is over {MAX_STATUS} bytes")
    try:
        status = msgspec.json.decode(untrusted, type=Status)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise WireError(f"the audit replica's status is none: {error}") from None
    numbers = (status.n, status.first, status.left_out, status.more_gaps, *sum(status.gaps, ()))
    if not all(0 <= number <= MAX_NUMBER for number in numbers) or not is_hash(status.hash):
        raise WireError("the audit replica's status has numbers that cannot be")
    return status


class Store:
    """The newest records, in files of a folder, the oldest of which make room."""

    def __init__(self, folder: Path, keep: int = KEEP, file: int = FILE) -> None:
        """Begin with an empty folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._keep, self._file = folder, keep, file
        self._files: deque[tuple[int, int]] = deque()  # first record and bytes of each
        self.left_out = 0

    @property
    def first(self) -> int:
        """The oldest record that is kept, 0 for none."""
        return self._files[0][0] if self._files else 0

    def append(self, number: int, line: bytes) -> None:
        """Keep a record; where there is no room at all it is counted and left out."""
        if not self._files or self._files[-1][1] >= self._file:
            self._files.append((number, 0))
        while True:
            first, size = self._files[-1]
            try:
                with (self._folder / str(first)).open("ab") as file:
                    file.write(line)
                break
            except OSError:
                if len(self._files) < 2:
                    self.left_out += 1
                    return
                self._drop()
        self._files[-1] = first, size + len(line)
        while len(self._files) > 1 and sum(size for _, size in self._files) > self._keep:
            self._drop()

    def _drop(self) -> None:
        first, _ = self._files.popleft()
        (self._folder / str(first)).unlink(missing_ok=True)


class Replica:
    """Takes a trail's lines, feed by feed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._head = Link()
        self._feed: Link | None = None  # where the chain of this feed stands
        self._gaps: list[tuple[int, int]] = []
        self._more_gaps = 0
        self._reason = ""
        self._rest = b""

    @property
    def status(self) -> Status:
        """How it stands."""
        state: State = "whole" if self._head.n else "empty"
        if self._reason or self._gaps:
            state = "broken" if self._reason else "gaps"
        return Status(
            self._head.n,
            self._head.hash,
            self._store.first,
            state,
            tuple(self._gaps),
            self._more_gaps,
            self._store.left_out,
            self._reason,
        )

    def connected(self) -> None:
        """A feed begins; what was left of the one before is no part of it."""
        self._feed, self._rest = None, b""

    def take(self, untrusted: bytes) -> None:
        """Take the next bytes of the feed. Once it is broken nothing more is taken."""
        *lines, self._rest = (self._rest + untrusted).split(b"\n")
        try:
            for line in lines:
                if not self._reason:
                    self._line(line + b"\n")
            if len(self._rest) > MAX_LINE and not self._reason:
                raise BrokenLinkError(f"is over {MAX_LINE} bytes")
        except BrokenLinkError as error:
            number = (self._feed or self._head).n + 1
            self._reason = f"record {number} {error}"
        if self._reason:
            self._rest = b""

    def _line(self, untrusted_line: bytes) -> None:
        """Take one line. Raises `BrokenLinkError`."""
        record = open_line(untrusted_line)
        before = self._feed or Link()
        begins = self._feed is None or record.n > before.n + 1
        if begins and record.n > 1:
            if record.event != SEGMENT:
                raise BrokenLinkError("is not here, and what came does not begin a segment")
            before = Link(record.n - 1, record.prev)
            if self._head.n == before.n and self._head != before:
                raise BrokenLinkError("does not follow from what was replicated before")
        link = self._feed = follow(before, untrusted_line)
        if link.n == self._head.n and link != self._head:
            raise BrokenLinkError("came again, and is not the one that was replicated")
        if link.n <= self._head.n:
            return
        if link.n > self._head.n + 1:
            self._gap(self._head.n + 1, link.n - 1)
        self._head = link
        self._store.append(link.n, untrusted_line)

    def _gap(self, first: int, last: int) -> None:
        if not self._head.n:
            return  # what came before a replica began is no gap of its
        if len(self._gaps) < MAX_GAPS:
            self._gaps.append((first, last))
        else:
            self._more_gaps += 1
