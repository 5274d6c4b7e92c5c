"""What the node has for the audit writer: not sent yet, or sent and not answered. No I/O.

The rules: each record is told exactly once whether it is in the trail; a refused note stays, in
its place; how many wait is bounded, appends by `MAX_WAITING` and notes by `MAX_NOTES`, and notes
beyond that are counted and confessed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Literal

from skerry.audit.messages import MAX_PACKED, Entry
from skerry.audit.opening import unavailable
from skerry.audit.record import Record, fields_json
from skerry.audit.writer import MAX_NOTES, MAX_WAITING
from skerry.errors import WireError

Future = asyncio.Future[int]
Kind = Literal["append", "note", "probe"]


class Item:
    """A record on its way. An append has a future; a probe is not sent again when refused."""

    __slots__ = ("entry", "future", "kind")

    def __init__(self, entry: Entry, kind: Kind, future: Future | None = None) -> None:
        self.entry = entry
        self.kind = kind
        self.future = future


class Outbox:
    """A queue of records, the oldest first. `refused` and `lost` count since they were told."""

    def __init__(self) -> None:
        self.refused = 0
        self.lost = 0
        self._unsent: deque[Item] = deque()
        self._sent: deque[Item] = deque()
        self._notes = 0
        self._waiting = 0

    def __len__(self) -> int:
        return len(self._unsent) + len(self._sent)

    @property
    def unsent(self) -> bool:
        """Whether there is anything to send."""
        return bool(self._unsent)

    @property
    def unanswered(self) -> bool:
        """Whether anything that was sent has no answer."""
        return bool(self._sent)

    def full(self) -> str:
        """Return why no more appends are taken, if so."""
        if self._waiting < MAX_WAITING:
            return ""
        return f"{MAX_WAITING} records are waiting (MAX_WAITING)"

    def append(self, entry: Entry, future: Future) -> None:
        """Take a record that someone waits for."""
        self._waiting += 1
        self._unsent.append(Item(entry, "append", future))

    def note(self, entry: Entry) -> None:
        """Take a note, or count it as lost."""
        if self._notes >= MAX_NOTES:
            self.lost += 1
            return
        self._notes += 1
        self._unsent.append(Item(entry, "note"))

    def confess(self, entry: Entry) -> None:
        """Put the record of what was lost first, and begin to count anew."""
        self._notes += 1
        self.lost = 0
        self._unsent.appendleft(Item(entry, "note"))

    def take(self) -> list[Item]:
        """Return what the next message holds; `sent` or `put_back` it."""
        items: list[Item] = []
        size = 0
        while self._unsent:
            entry = self._unsent[0].entry
            size += len(entry.fields) + len(entry.event) + 32
            if size > MAX_PACKED and items:
                break
            items.append(self._unsent.popleft())
        return items

    def sent(self, items: Iterable[Item]) -> None:
        """Say that these were sent, behind all that was sent before."""
        self._sent.extend(items)

    def put_back(self, items: list[Item]) -> None:
        """Say that these were not sent."""
        self._unsent.extendleft(reversed(items))

    def written(self, first: int, count: int) -> bool:
        """Hear that the oldest `count` are in the trail; tells whether a probe was among them.

        Raises `WireError` if there are not so many.
        """
        items = self._answered(count)
        for number, item in enumerate(items, first):
            self._settle(item, number)
        return any(item.kind == "probe" for item in items)

    def refuse(self, count: int, why: str) -> None:
        """Hear that the oldest `count` are not in the trail: the notes among them stay."""
        kept = [item for item in self._answered(count) if self._kept(item, why)]
        self._unsent.extendleft(reversed(kept))

    def refuse_appends(self, why: str) -> None:
        """Refuse all that someone waits for; what was sent of it may still become written."""
        for item in self._sent:
            self._refuse(item, why)
        self._unsent = deque(item for item in self._unsent if self._kept(item, why))

    def reconcile(self, records: Iterable[Record]) -> None:
        """Hear what a writer that ended without answering has written, by the trail itself.

        Its records stand there in the order in which they were sent. Those that are there are
        settled, and of the others the notes are sent again.
        """
        there = [(each.mono, each.event, fields_json(each.fields)) for each in records]
        at = 0
        for item in list(self._sent):
            entry = item.entry
            try:
                at = there.index((entry.mono_ns, entry.event, entry.fields), at) + 1
            except ValueError:
                break
            self._settle(self._sent.popleft(), 0)
        self.refuse(len(self._sent), "")

    def _answered(self, count: int) -> list[Item]:
        if not 0 <= count <= len(self._sent):
            raise WireError("the audit writer answered what it was not asked")
        return [self._sent.popleft() for _ in range(count)]

    def _kept(self, item: Item, why: str) -> bool:
        if item.kind == "append":
            self._refuse(item, why)
        return item.kind == "note"

    def _refuse(self, item: Item, why: str) -> None:
        future, item.future = item.future, None
        if future is not None:
            self.refused += 1
            self._waiting -= 1
            if not future.done():
                future.set_exception(unavailable(why))

    def _settle(self, item: Item, number: int) -> None:
        future, item.future = item.future, None
        if item.kind == "note":
            self._notes -= 1
        elif future is not None:
            self._waiting -= 1
            if not future.done():
                future.set_result(number)
