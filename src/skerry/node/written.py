"""Which labels have written each resource that lives on, kept on the disk.

The rules this module keeps (law 6): what may be written by a label is written down before it can
be; the record only grows, until the resource is released; a damaged record is an error, never an
empty one, because forgetting would open a wall. What it is about is the thing itself (a disk's
image), whatever a system file calls it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import msgspec

from skerry.label import Label
from skerry.policy.history import FileHistory
from skerry.xsm.stack import History


class Written:
    """The record in one file. Raises `PolicyError` if it is damaged, when it is made."""

    def __init__(self, path: Path) -> None:
        self._store = FileHistory(path)
        self._kept: History = self._store.load()
        self._saving = asyncio.Lock()

    def of(self, what: str) -> frozenset[Label]:
        """Return the labels that have written a thing."""
        parts = self._kept.get(what, {})
        return frozenset(Label(msgspec.json.decode(text, type=_Parts)) for text in parts)

    async def keep(self, what: str, labels: Iterable[Label]) -> None:
        """Return once a thing's writers are these, durably; nothing is done if they are already.

        Raises `PolicyError` (a `Denied`) or `OSError`; then the record is as it was.
        """
        wanted = {msgspec.json.encode(label.parts).decode(): frozenset[str]() for label in labels}
        async with self._saving:
            if self._kept.get(what, {}) == wanted:
                return
            kept = {**self._kept, what: wanted}
            if not wanted:
                del kept[what]
            # A save goes on when its waiter is cancelled, or the record would not be what is kept.
            await asyncio.shield(asyncio.ensure_future(self._save(kept)))

    async def _save(self, kept: History) -> None:
        await self._store.save(kept)
        self._kept = kept


_Parts = tuple[tuple[str, str], ...]
