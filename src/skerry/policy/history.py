"""What each label has touched, kept on disk for the Chinese Wall's history form.

The rules this module keeps: a history is replaced whole or not at all, and is on disk before
`save` returns; a damaged file is a `PolicyError`, never an empty history, because forgetting
would open a wall.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Protocol

import msgspec

from skerry.errors import PolicyError, Problem
from skerry.policy.files import read_regular
from skerry.xsm.stack import History

MAX_HISTORY_BYTES = 4 * 1024 * 1024
"""Longest history file. A longer one is not read, and none is written: the touch is refused."""


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

    def __init__(self, path: Path) -> None:
        self._path = path

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
            return msgspec.json.decode(body, type=dict[str, dict[str, frozenset[str]]])
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
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _damaged(self, message: str) -> PolicyError:
        return PolicyError([Problem(str(self._path), 0, f"Chinese Wall history: {message}")])
