"""The node's part in the checkpoints: its key, and when one is due.

The rule: the node signs what the writer says it has put on the disk, again and again and at the
end of its life, and notes the trail's head in a file that the writer can't reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from skerry.audit.chain import Link
from skerry.audit.checkpoint import CHECKPOINT, read_key, sign
from skerry.audit.head import write_head
from skerry.errors import AuditUnavailable, SkerryError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

EVERY_RECORDS = 1000
"""Records after which a checkpoint is due."""

EVERY_S = 60.0
"""Seconds after which one is due, if there is anything new; a node's first is due at once."""

LOOK_S = 1.0
"""How often the node looks whether one is due, in seconds."""


class Log(Protocol):
    """A trail that can be appended to and says where it stands."""

    @property
    def head(self) -> Link:
        """The last record on the disk."""

    async def append(self, event: str, fields: Mapping[str, object]) -> int:
        """Write a record; raises `AuditUnavailable`."""


def make_key(path: Path, what: str = "the audit trail's key") -> Ed25519PrivateKey:
    """Return a key of the node, made at first need; its public half is put beside it (`.pub`).

    The file is the owner's alone. Raises `SkerryError` if it can't be read or made.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        with contextlib.suppress(FileExistsError):
            _put(path, Ed25519PrivateKey.generate().private_bytes_raw().hex() + "\n")
        found = path.lstat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise OSError("it must be a file of yours with mode 0600")
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(read_key(path).decode().strip()))
        text = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        public = path.with_suffix(".pub")
        if not public.exists() or read_key(public) != text:
            public.write_bytes(text)
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise SkerryError(
            f"{what} {path} cannot be used: {words}",
            fix="mend that, or move the key away; a new one is made then",
        ) from None
    return key


class Checkpoints:
    """Makes checkpoints of a trail when they are due, and notes its head in a file."""

    def __init__(
        self,
        log: Log,
        key: Ed25519PrivateKey,
        head_file: Path,
        every_records: int = EVERY_RECORDS,
        every_s: float = EVERY_S,
    ) -> None:
        self._log = log
        self._key = key
        self._head_file = head_file
        self._every_records = every_records
        self._every_s = every_s
        self._since: float | None = None  # when there first was something new
        self._done = 0  # nothing behind it but checkpoints
        self._first = True  # so that a life that is short is signed too

    async def run(
        self,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look(clock())
            await sleep(LOOK_S)

    async def look(self, now_s: float) -> bool:
        """Make a checkpoint if one is due at this time; tells whether it did."""
        new = self._log.head.n - self._done
        if new <= 0:
            self._since = None
            return False
        if self._since is None:
            self._since = now_s
        in_time = new < self._every_records and now_s - self._since < self._every_s
        if in_time and not self._first:
            return False
        return await self.make()

    async def make(self) -> bool:
        """Make a checkpoint now, unless there is nothing new; tells whether it did.

        A trail that can't be written has none; the next look tries again.
        """
        head = self._log.head
        if head.n <= self._done:
            return False
        with contextlib.suppress(AuditUnavailable):
            number = await self._log.append(CHECKPOINT, msgspec.to_builtins(sign(self._key, head)))
            self._done = number if number == head.n + 1 else head.n
            self._since, self._first = None, False
            with contextlib.suppress(OSError):  # then an older head stands there
                await asyncio.to_thread(write_head, self._head_file, self._log.head)
            return True
        return False


def _put(path: Path, text: str) -> None:
    """Write a new private file, whole or not at all. Raises `FileExistsError`, `OSError`."""
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode())
        os.fsync(fd)
        os.link(new, path)  # unlike a rename, it never replaces a key
    finally:
        os.close(fd)
        new.unlink()
