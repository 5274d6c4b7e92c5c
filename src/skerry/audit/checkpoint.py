"""Signed checkpoints: that the trail up to a record is what the node saw, provable to others.

The rule: the key is the node's and never the writer's. A `checkpoint` record signs number and
hash of an earlier record, so who holds only the files, or only the writer, can write no other
trail that a checkpoint covers. The signature is Ed25519 over the text `signed_text` returns.

`cryptography` is imported where a key is used, not before: most commands use none.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from skerry.audit.chain import Link
from skerry.audit.record import MAX_NUMBER, Record
from skerry.errors import SkerryError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

CHECKPOINT = "checkpoint"
"""The event of a record that signs an earlier one."""

MAX_BEHIND = 1 << 16
"""How many records may stand between a checkpoint and what it signs; more do not verify."""

MAX_KEY = 4096
"""Longest key file in bytes; a longer one is refused."""


class Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of a checkpoint: what it signs (`last`, `hash`), the key's id, the signature."""

    last: int
    hash: str
    key: str
    signature: str


def signed_text(head: Link) -> bytes:
    """Return the bytes that a checkpoint's signature covers."""
    return f"skerry audit checkpoint 1\n{head.n}\n{head.hash}\n".encode()


def key_id(public: Ed25519PublicKey) -> str:
    """Return the name of a key: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]


def sign(key: Ed25519PrivateKey, head: Link) -> Signed:
    """Sign a head."""
    signature = key.sign(signed_text(head)).hex()
    return Signed(head.n, head.hash, key_id(key.public_key()), signature)


def read_public(path: Path) -> Ed25519PublicKey:
    """Read a public key (PEM). Raises `SkerryError`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(read_key(path))
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("it is no Ed25519 key")
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise SkerryError(
            f"the key {path} cannot be read: {words}",
            fix="name the public half of the trail's key, audit.pub in the node's state",
        ) from None
    return key


class Checks:
    """Checks the checkpoints of a trail while it is verified: pass `see` to `chain.verify`."""

    def __init__(self, keys: Iterable[Ed25519PublicKey]) -> None:
        self.holding = 0
        """How many checkpoints hold."""
        self.signed = 0
        """The number of the last record that one of them signs."""
        self._keys = {key_id(key): key for key in keys}
        self._recent: deque[Link] = deque(maxlen=MAX_BEHIND)

    def see(self, record: Record) -> str:
        """Look at the next proven record; returns what is wrong with it, if anything."""
        wrong = self._check(record) if record.event == CHECKPOINT else ""
        self._recent.append(Link(record.n, record.hash))
        return wrong

    def _check(self, record: Record) -> str:
        from cryptography.exceptions import InvalidSignature

        try:
            signed = msgspec.convert(record.fields, Signed)
            signature = bytes.fromhex(signed.signature)
        except (msgspec.MsgspecError, ValueError):
            return "is no checkpoint: it lacks a number, a hash, a key or a signature"
        key = self._keys.get(signed.key)
        if key is None:
            return f"is signed with the key {signed.key[:16]!r}, which is not known"
        link = Link(signed.last, signed.hash)
        try:
            key.verify(signature, signed_text(link))
        except InvalidSignature:
            return "is a checkpoint whose signature does not hold"
        oldest = self._recent[0].n if self._recent else record.n
        if link.n == oldest - 1:
            return ""  # retention removed what it signs
        at = link.n - oldest
        if not 0 <= at < len(self._recent) or self._recent[at] != link:
            return f"is a checkpoint of another record {min(link.n, MAX_NUMBER)}"
        self.holding += 1
        self.signed = max(self.signed, link.n)
        return ""


def read_key(path: Path) -> bytes:
    """Return a key file's bytes. Raises `OSError`, or `ValueError` if it is too long."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        untrusted_text = os.read(fd, MAX_KEY + 1)
    finally:
        os.close(fd)
    if len(untrusted_text) > MAX_KEY:
        raise ValueError("it is too long for a key")
    return untrusted_text
