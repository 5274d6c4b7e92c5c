"""Which labels have written each disk, kept on the host: a disk remembers longer than a node lives.

The rules, those of `policy.history`: it only grows, but for a disk that was released; it is
replaced whole or not at all, and is on disk before `add` returns; a damaged file is an error,
never an empty history, because forgetting would open a wall.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import msgspec

from skerry.errors import Denied
from skerry.label import Label

MAX_HISTORY_BYTES = 4 << 20
"""Longest file of the disks' history. A longer one is not read, and none is written: a use that
would write is refused."""

Kept = dict[str, list[tuple[tuple[str, str], ...]]]


class HistoryLost(Denied):
    """What has written a disk is not known, so nobody may use it."""

    code = "DISK-HISTORY"


class DiskHistory:
    """The history of all disks of a node, by the paths of their images."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saving = asyncio.Lock()

    def load(self) -> Kept:
        """Return what is kept; no file is an empty history. Raises `HistoryLost`."""
        try:
            with self._path.open("rb") as file:
                untrusted = file.read(MAX_HISTORY_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._lost(f"it cannot be read: {error.strerror}") from None
        digest, _, body = untrusted.partition(b"\n")
        if len(untrusted) > MAX_HISTORY_BYTES:
            raise self._lost(f"it is longer than {MAX_HISTORY_BYTES} bytes")
        if digest.decode("latin-1") != hashlib.sha256(body).hexdigest():
            raise self._lost("its digest does not match")
        try:
            return msgspec.json.decode(body, type=Kept)
        except (msgspec.DecodeError, RecursionError) as error:
            raise self._lost(str(error)) from None

    def writers(self, image: str) -> tuple[Label, ...]:
        """Return the labels that have written a disk. Raises `HistoryLost`."""
        return tuple(Label(parts) for parts in self.load().get(image, []))

    async def add(self, image: str, label: Label) -> None:
        """Remember, durably, that a label writes a disk. Raises `HistoryLost`."""
        async with self._saving:
            await asyncio.shield(asyncio.to_thread(self._add, image, label))

    async def forget(self, image: str) -> None:
        """Forget who has written a disk of which nothing is left. Raises `HistoryLost`."""
        async with self._saving:
            await asyncio.shield(asyncio.to_thread(self._forget, image))

    def _add(self, image: str, label: Label) -> None:
        kept = self.load()
        known = kept.setdefault(image, [])
        if label.parts not in known:
            known.append(label.parts)
            self._replace(kept)

    def _forget(self, image: str) -> None:
        kept = self.load()
        if kept.pop(image, None) is not None:
            self._replace(kept)

    def _replace(self, kept: Kept) -> None:
        body = msgspec.json.encode(dict(sorted(kept.items())))
        content = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        if len(content) > MAX_HISTORY_BYTES:
            raise self._lost(f"it would be longer than {MAX_HISTORY_BYTES} bytes")
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            with new.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self._lost(f"it cannot be written: {error.strerror}") from None

    def _lost(self, why: str) -> HistoryLost:
        fix = "free the disk, or restore the file; without it every disk's history is unknown"
        return HistoryLost(f"the history of the disks, {self._path}: {why}", fix=fix)
