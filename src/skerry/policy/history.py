"""What each label has touched, kept on disk for the Chinese Wall's history form.

The rules this module keeps: a history only grows; it is replaced whole or not at all, and is on
disk before `save` returns; a damaged file is a `PolicyError`, never an empty history, because
forgetting would open a wall.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

import msgspec

from skerry.errors import DeciderUnavailable, Denied, PolicyError, Problem
from skerry.label import Label
from skerry.policy.files import read_regular
from skerry.system.durable import sync
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.module import SecurityModule
from skerry.xsm.stack import History, Stack

MAX_HISTORY_BYTES = 4 * 1024 * 1024
"""Longest history file. A longer one is not read, and none is written: the touch is refused."""

Entries = dict[str, dict[str, frozenset[str]]]
"""Part of a history, or all of it, as messages hold it."""

Common = dict[str, frozenset[str]]
"""By module, what all of some labels have touched."""

_NONE = frozenset[str]()


class HistoryStore(Protocol):
    """Where the standing history lives."""

    def load(self) -> History:
        """Return the history kept, empty at first. Raises `PolicyError` if it is damaged."""

    async def save(self, history: History) -> None:
        """Replace the history; durable on return. Raises a `Denied` or `OSError` if it is not."""


class MemoryHistory:
    """A history that lives as long as its object: for tests and single decisions."""

    def __init__(self, history: History | None = None) -> None:
        self.kept: History = history or {}

    def load(self) -> History:
        """Return what was saved last."""
        return self.kept

    async def save(self, history: History) -> None:
        """Keep the history."""
        self.kept = history


class FileHistory:
    """A history in one file: a line with the SHA-256 of the rest, then JSON."""

    def __init__(self, path: Path, what: str = "Chinese Wall history") -> None:
        """Keep it in a file; `what` is what an error calls it."""
        self._path, self._what = path, what

    def load(self) -> History:
        """Return the history in the file; no file is an empty one. Raises `PolicyError`."""
        try:
            untrusted = read_regular(self._path, MAX_HISTORY_BYTES)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._damaged(f"cannot be read: {error.strerror}") from None
        digest, _, body = untrusted.partition(b"\n")
        if digest.decode("latin-1") != hashlib.sha256(body).hexdigest():
            raise self._damaged("its digest does not match")
        try:
            return msgspec.json.decode(body, type=Entries)
        except (msgspec.DecodeError, RecursionError) as error:
            raise self._damaged(str(error)) from None

    async def save(self, history: History) -> None:
        """Replace the file by way of a new one, both synced. Raises `PolicyError`, `OSError`."""
        sorted_history = {
            module: {label: sorted(types) for label, types in sorted(touched.items())}
            for module, touched in sorted(history.items())
        }
        body = msgspec.json.encode(sorted_history)
        content = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        if len(content) > MAX_HISTORY_BYTES:
            raise PolicyError(
                [Problem(str(self._path), 0, f"history longer than {MAX_HISTORY_BYTES} bytes")]
            )
        await asyncio.to_thread(self._replace, content)

    def _replace(self, content: bytes) -> None:
        new = self._path.with_name(self._path.name + ".new")
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        sync(self._path.parent, os.O_DIRECTORY)

    def _damaged(self, message: str) -> PolicyError:
        return PolicyError([Problem(str(self._path), 0, f"{self._what}: {message}")])


class Holder(Protocol):
    """Whose history is kept."""

    history: History


class Keeper:
    """Saves a history that grows, as often as it must and one at a time."""

    def __init__(self, store: HistoryStore) -> None:
        """Read what is kept, as `history`. Raises `PolicyError` if it is damaged."""
        self.history: History = store.load()
        self._store = store
        self._saving = asyncio.Lock()

    async def keep(self, current: Callable[[], History]) -> None:
        """Return once what is current now, or more, is on disk.

        Raises `DeciderUnavailable` or another `Denied` if it can't be saved.
        """
        # A save goes on when its waiter is cancelled, or an older one could land on a newer.
        await asyncio.shield(self._save(current))

    async def keep_carried(self, holder: Holder, carry: Callable[[History], History]) -> None:
        """Let a history hold also what it will be under another policy, and return once that is
        on disk, with nothing that was remembered meanwhile left out. Raises like `keep`.

        It only grows, so it may stay so where that policy does not come into force after all.
        """
        while True:
            holder.history = merged(holder.history, carry(holder.history))
            if holder.history is self.history:
                return
            await self.keep(lambda: holder.history)

    async def _save(self, current: Callable[[], History]) -> None:
        async with self._saving:
            saving = current()
            if saving is self.history:
                return
            try:
                await self._store.save(saving)
            except Denied:
                raise
            except Exception as error:
                raise DeciderUnavailable(
                    f"the Chinese Wall history can't be saved: {error}", fix="free the disk"
                ) from error
            self.history = saving


def merged(history: History, more: History) -> History:
    """Return everything that either of two histories holds; the first itself if that is all."""
    both = {module: dict(entries) for module, entries in history.items()}
    for module, entries in more.items():
        known = both.setdefault(module, {})
        for label, touched in entries.items():
            known[label] = known.get(label, frozenset()) | touched
    return both if both != history else history


def common(history: History, labels: Collection[Label]) -> Common:
    """Return what every one of these labels has touched."""
    parts = [dict(label.parts) for label in labels]
    return {
        module: found
        for module, touched in history.items()
        if all(module in texts for texts in parts)
        and (found := frozenset.intersection(*(touched.get(p[module], _NONE) for p in parts)))
    }


def may_grow(history: History, told: Common, labels: Collection[Label], stack: Stack) -> bool:
    """Say whether what was told of these labels may come into a history.

    It may be of no other module, and hold nothing new but types of this policy's walls: a history
    only grows, so a falsehood in it would outlive whoever told it.
    """
    modules = {module.name: module for module in stack.modules}
    for name, touched in told.items():
        if name not in modules:
            return False
        known = history.get(name, {})
        have = frozenset.intersection(*(known.get(each.of(name), _NONE) for each in labels))
        if not touched <= have | _historic(modules[name]):
            return False
    return True


def entries_of(told: Common, labels: Collection[Label]) -> Entries:
    """Return what was told of these labels as the entries of a history."""
    return {
        module: {label.of(module): touched for label in labels} for module, touched in told.items()
    }


def _historic(module: SecurityModule) -> frozenset[str]:
    """Return the types of a module's policy of which it keeps a history."""
    if not isinstance(module, AcmModule):
        return frozenset()
    kept = (conflict.types for conflict in module.policy.conflicts if conflict.history)
    return frozenset(itertools.chain.from_iterable(kept))
