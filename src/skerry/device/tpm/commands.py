"""The TPM 2.0 commands that the node itself sends, and how their answers are read.

The rules: every answer is checked for its length, its code and its shape before a byte of it is
used; the one key that is made here can sign only what the TPM itself has made, and never leaves it.

Source: TCG, Trusted Platform Module Library 2.0, parts 2 (structures) and 3 (commands).
"""

from __future__ import annotations

import hashlib
import struct

MAX_RESPONSE = 4096
"""Longest answer of a TPM that is taken, in bytes; a longer one is an error."""

HEADER = 10
"""Bytes of the header of a command or an answer: tag, length, code."""

KEY_HANDLE = 0x81010002
"""Where the attestation key lies in the TPM: a guest uses it by this handle, with no password."""

NO_SESSIONS, SESSIONS = 0x8001, 0x8002
ECC, SHA256, ECDSA, NULL, P256 = 0x23, 0x0B, 0x18, 0x10, 3

_ENDORSEMENT, _OWNER = 0x4000000B, 0x40000001
_EMPTY_PASSWORD = struct.pack(">IIHBH", 9, 0x40000009, 0, 0, 0)
# fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign
_ATTRIBUTES = 0x2 | 0x10 | 0x20 | 0x40 | 0x400 | 0x10000 | 0x40000
_KEY = struct.pack(">HHIHHHHHH", ECC, SHA256, _ATTRIBUTES, 0, NULL, ECDSA, SHA256, P256, NULL)


class TpmError(Exception):
    """A TPM refused a command, or answered what is no answer to it."""


def command(code: int, body: bytes, tag: int = NO_SESSIONS) -> bytes:
    """Return a command."""
    return struct.pack(">HII", tag, HEADER + len(body), code) + body


PROBE = command(0x17A, struct.pack(">III", 6, 0x100, 1))
"""Asks a TPM for its family: it answers, with an error, also before it was started."""

STARTUP = command(0x144, struct.pack(">H", 0))
SHUTDOWN = command(0x145, struct.pack(">H", 0))


def create_key() -> bytes:
    """Return the command that derives the attestation key from the TPM's endorsement seed."""
    public = _KEY + struct.pack(">HH", 0, 0)
    sensitive = struct.pack(">HHH", 4, 0, 0)
    outside = struct.pack(">HI", 0, 0)
    body = _allowed(_ENDORSEMENT) + sensitive + struct.pack(">H", len(public)) + public + outside
    return command(0x131, body, SESSIONS)


def keep_key(transient: int) -> bytes:
    """Return the command that puts a key that was made at `KEY_HANDLE`, to stay."""
    handles = struct.pack(">II", _OWNER, transient)
    return command(0x120, handles + _EMPTY_PASSWORD + struct.pack(">I", KEY_HANDLE), SESSIONS)


def read_key() -> bytes:
    """Return the command that asks for the public half of the key at `KEY_HANDLE`."""
    return command(0x173, struct.pack(">I", KEY_HANDLE))


def quote(nonce: bytes, registers: tuple[int, ...]) -> bytes:
    """Return the command that signs a nonce and the SHA-256 bank of some registers with that key.

    The key's own scheme is used. A guest writes these bytes to `/dev/tpm0`.
    """
    chosen = sum(1 << register for register in registers).to_bytes(3, "little")
    body = struct.pack(">I", KEY_HANDLE) + _EMPTY_PASSWORD
    body += struct.pack(">H", len(nonce)) + nonce + struct.pack(">H", NULL)
    body += struct.pack(">IHB", 1, SHA256, len(chosen)) + chosen
    return command(0x158, body, SESSIONS)


def _allowed(hierarchy: int) -> bytes:
    return struct.pack(">I", hierarchy) + _EMPTY_PASSWORD


def answer(untrusted: bytes) -> bytes:
    """Return the body of an answer that says success. Raises `TpmError`."""
    if not HEADER <= len(untrusted) <= MAX_RESPONSE:
        raise TpmError(f"the TPM's answer has {len(untrusted)} bytes")
    _, length, code = struct.unpack_from(">HII", untrusted)
    if length != len(untrusted):
        raise TpmError(f"the TPM's answer has {len(untrusted)} bytes and says {length}")
    if code:
        raise TpmError(f"the TPM refused a command with 0x{code:x}")
    return untrusted[HEADER:]


def is_answer(untrusted: bytes) -> bool:
    """Say whether these bytes are one whole answer, of whatever success."""
    return len(untrusted) >= HEADER and struct.unpack_from(">I", untrusted, 2)[0] == len(untrusted)


def handle_of(untrusted: bytes) -> int:
    """Return the handle with which a success begins. Raises `TpmError`."""
    body = answer(untrusted)
    if len(body) < 4:
        raise TpmError("the TPM's answer has no handle")
    handle: int = struct.unpack_from(">I", body)[0]
    return handle


def point_of(untrusted: bytes) -> bytes:
    """Return the attestation key's point (65 bytes, uncompressed) from an answer to `read_key`.

    Raises `TpmError`, also for a key of another kind: it would sign what the TPM has not made.
    """
    reader = Reader(answer(untrusted))
    public = Reader(reader.sized(256))
    if public.take(len(_KEY)) != _KEY:
        raise TpmError("the TPM's attestation key is of another kind")
    x, y = public.sized(32), public.sized(32)
    return b"\x04" + x.rjust(32, b"\0") + y.rjust(32, b"\0")


def name_of(point: bytes) -> bytes:
    """Return the name by which a TPM calls the attestation key with this point."""
    x, y = point[1:33], point[33:]
    public = _KEY + b"".join(struct.pack(">H", 32) + half for half in (x, y))
    return struct.pack(">H", SHA256) + hashlib.sha256(public).digest()


class Reader:
    """Reads a TPM's structure from front to back. Every method raises `TpmError` at its end."""

    def __init__(self, untrusted: bytes) -> None:
        self._left = untrusted

    @property
    def left(self) -> int:
        """How many bytes were not read."""
        return len(self._left)

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > len(self._left):
            raise TpmError("a TPM's structure is cut short")
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def number(self, size: int) -> int:
        """Return the next number of so many bytes."""
        return int.from_bytes(self.take(size))

    def sized(self, most: int) -> bytes:
        """Return the next bytes, before which their number stands in two."""
        size = self.number(2)
        if size > most:
            raise TpmError(f"a TPM's structure has {size} bytes where {most} are the most")
        return self.take(size)
