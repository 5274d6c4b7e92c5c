"""Lays out LUKS1 containers, in milliseconds, where the storage daemon would take seconds.

The rule: nothing secret is written that is not encrypted; the key that encrypts the data is random
and kept nowhere. QEMU measures the host for as long as a passphrase deserves, and now and then it
fails to; a key of 256 random bits needs no slow derivation.

Format: the LUKS1 on-disk format specification 1.2.3, with AES-256 in XTS mode and SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import struct
import uuid

SECTOR = 512
STRIPES, KEY_BYTES, SLOTS, ITERATIONS = 4000, 64, 8, 1000
_SLOT_SECTORS = 504  # 4000 stripes of 64 bytes, in whole pages
_FIRST_SLOT = 8
PAYLOAD = (_FIRST_SLOT + SLOTS * _SLOT_SECTORS) * SECTOR
"""Bytes before the data of a container that is laid out here."""

_HEAD = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT = struct.Struct(">II32sII")
_ON, _OFF = 0x00AC71F3, 0x0000DEAD


def lay_out(descriptor: int, key: str, size: int) -> None:
    """Make an empty file a container of `size` bytes, on disk on return. Raises `OSError`."""
    master = secrets.token_bytes(KEY_BYTES)
    salt, slot_salt = secrets.token_bytes(32), secrets.token_bytes(32)
    digest = hashlib.pbkdf2_hmac("sha256", master, salt, ITERATIONS, 20)
    name = str(uuid.uuid4()).encode()
    words = b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256", PAYLOAD // SECTOR
    head = _HEAD.pack(*words, KEY_BYTES, digest, salt, ITERATIONS, name)
    slots = b"".join(_slot(number, slot_salt) for number in range(SLOTS))
    derived = hashlib.pbkdf2_hmac("sha256", key.encode(), slot_salt, ITERATIONS, KEY_BYTES)
    os.ftruncate(descriptor, PAYLOAD + size)
    _write(descriptor, _encrypt(derived, _split(master)), _FIRST_SLOT * SECTOR)
    _write(descriptor, head + slots, 0)
    os.fsync(descriptor)


def _slot(number: int, salt: bytes) -> bytes:
    at = _FIRST_SLOT + number * _SLOT_SECTORS
    if number:
        return _SLOT.pack(_OFF, 0, bytes(32), at, STRIPES)
    return _SLOT.pack(_ON, ITERATIONS, salt, at, STRIPES)


def _split(master: bytes) -> bytes:
    """Spread a key over many stripes, of which each is needed to have it (section 2.4)."""
    stripes, mixed = [], bytes(len(master))
    for _ in range(STRIPES - 1):
        stripes.append(secrets.token_bytes(len(master)))
        mixed = _diffuse(_xor(mixed, stripes[-1]))
    return b"".join(stripes) + _xor(mixed, master)


def _diffuse(block: bytes) -> bytes:
    pieces = range(0, len(block), 32)
    return b"".join(
        hashlib.sha256(struct.pack(">I", number) + block[at : at + 32]).digest()
        for number, at in enumerate(pieces)
    )


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one) ^ int.from_bytes(other)).to_bytes(len(one))


def _encrypt(key: bytes, plain: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    out = bytearray()
    for number in range(len(plain) // SECTOR):
        mode = modes.XTS(number.to_bytes(16, "little"))
        encryptor = Cipher(algorithms.AES(key), mode).encryptor()
        out += encryptor.update(plain[number * SECTOR : (number + 1) * SECTOR])
    return bytes(out)


def _write(descriptor: int, data: bytes, at: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written
