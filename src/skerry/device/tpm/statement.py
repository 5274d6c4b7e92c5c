"""A node's signed statement about a domain and its TPM, and a quote of that TPM beside it.

The rule: what is signed is the exact text that is parsed, under a heading that no other signature
of this project has; a statement that does not verify says nothing. No TPM is needed to verify.

`cryptography` is imported where a key is used, not before: most commands use none.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from skerry.device.tpm import commands
from skerry.device.tpm.commands import Reader, TpmError, name_of
from skerry.errors import SkerryError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

MAX_STATEMENT = 64 << 10
"""Longest statement that is read, in bytes; a longer one is refused."""

MAX_QUOTE = commands.MAX_RESPONSE
"""Longest quote that is read, in bytes; a longer one is refused."""

_HEADING = b"skerry tpm statement 1\n"
_MAGIC, _QUOTE = 0xFF544347, 0x8018

_Text = Annotated[str, Meta(min_length=1, max_length=8192)]


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node says: that now, by its clock, this domain runs under this label, judged by the
    policy of this digest and generation, and has the TPM with this attestation key.

    `nonce` is the asker's, `point` the key's (65 bytes, uncompressed), both in hexadecimal;
    `channel` and `record` name the use and the record of this statement in the node's trail, `time`
    is in seconds since 1970.
    """

    nonce: Annotated[str, Meta(pattern=r"\A([0-9a-f]{2}){8,64}\Z")]
    domain: _Text
    label: _Text
    tpm: _Text
    point: Annotated[str, Meta(pattern=r"\A04[0-9a-f]{128}\Z")]
    policy: _Text
    generation: Annotated[int, Meta(ge=0)]
    channel: Annotated[int, Meta(ge=0)]
    record: Annotated[int, Meta(ge=0)]
    time: Annotated[int, Meta(ge=0)]


class Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A statement with the id of the key that signed it, and the Ed25519 signature."""

    statement: Statement
    key: str
    signature: Annotated[str, Meta(pattern=r"\A[0-9a-f]{128}\Z")]


class Quoted(msgspec.Struct, frozen=True):
    """What a quote says: the registers that it covers, the digest over them, and the TPM's counts
    of its starts."""

    registers: tuple[int, ...]
    digest: str
    resets: int
    restarts: int


def key_id(key: Ed25519PublicKey) -> str:
    """Return the name of a key: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def signed_text(statement: Statement) -> bytes:
    """Return the bytes that the signature covers: a heading, then JSON with sorted keys."""
    return _HEADING + msgspec.json.encode(statement, order="sorted")


def sign(key: Ed25519PrivateKey, statement: Statement) -> Signed:
    """Sign a statement."""
    return Signed(statement, key_id(key.public_key()), key.sign(signed_text(statement)).hex())


def verified(untrusted: bytes, key: Ed25519PublicKey) -> Statement:
    """Return the statement in a file, if the key signed it. Raises `SkerryError`."""
    from cryptography.exceptions import InvalidSignature

    if len(untrusted) > MAX_STATEMENT:
        raise SkerryError(f"the statement is longer than {MAX_STATEMENT} bytes")
    try:
        signed = msgspec.json.decode(untrusted, type=Signed)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise SkerryError(f"this is no statement: {error}") from None
    try:
        key.verify(bytes.fromhex(signed.signature), signed_text(signed.statement))
    except InvalidSignature:
        raise SkerryError(
            f"the statement's signature does not hold under the key {key_id(key)}",
            fix=f"it names the key {signed.key[:16]!r}; ask the node's owner which is the node's",
        ) from None
    return signed.statement


def quoted(untrusted: bytes, statement: Statement) -> Quoted:
    """Return what a quote says, if the TPM of the statement made it over the same nonce.

    `untrusted` is the TPM's whole answer to `commands.quote`. Raises `SkerryError`.
    """
    try:
        reader = Reader(commands.answer(untrusted))
        reader.number(4)  # the length of what follows, before the sessions' part
        attested = reader.sized(1024)
        if reader.number(2) != commands.ECDSA or reader.number(2) != commands.SHA256:
            raise TpmError("its signature is of another kind")
        r, s = (int.from_bytes(reader.sized(32)) for _ in range(2))
        point = bytes.fromhex(statement.point)
        _check(point, attested, r, s)
        return _read(Reader(attested), bytes.fromhex(statement.nonce), point)
    except TpmError as error:
        raise SkerryError(
            f"the quote is not one of the statement's TPM and nonce: {error}",
            fix="have the guest quote the same nonce with the key at 0x81010002",
        ) from None


def _check(point: bytes, attested: bytes, r: int, s: int) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        key.verify(encode_dss_signature(r, s), attested, ec.ECDSA(SHA256()))
    except ValueError:
        raise TpmError("the statement's key is no point of the curve") from None
    except InvalidSignature:
        raise TpmError("its signature does not hold under the TPM's key") from None


def _read(attest: Reader, nonce: bytes, point: bytes) -> Quoted:
    """Read a TPMS_ATTEST whose signature holds."""
    if attest.number(4) != _MAGIC or attest.number(2) != _QUOTE:
        raise TpmError("it is no quote")
    signer = attest.sized(256)
    del signer  # the qualified name; the signature says as much
    if attest.sized(64) != nonce:
        raise TpmError("it is over another nonce")
    attest.take(8)
    resets, restarts = attest.number(4), attest.number(4)
    attest.take(1 + 8)  # whether the clock is safe, the firmware's version
    registers: list[int] = []
    if attest.number(4) != 1 or attest.number(2) != commands.SHA256:
        raise TpmError("it is not over registers of the SHA-256 bank alone")
    chosen = int.from_bytes(attest.take(min(attest.number(1), 4)), "little")
    registers = [register for register in range(32) if chosen >> register & 1]
    digest = attest.sized(64)
    if attest.left:
        raise TpmError("bytes follow its end")
    return Quoted(tuple(registers), digest.hex(), resets, restarts)


def key_name(statement: Statement) -> str:
    """Return the name by which TPM tools call the statement's key, in hexadecimal."""
    return name_of(bytes.fromhex(statement.point)).hex()
