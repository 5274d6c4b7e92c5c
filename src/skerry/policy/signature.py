"""Signed policies: Ed25519 over the bytes that come into force, in a file of their own.

The rules this module keeps: what is verified is what is loaded, byte for byte (of a FLASK policy as
text, what it is compiled to); a key, a signature or a form that can't be read verifies nothing.
`FILE.sig` holds 64 raw bytes, as OpenSSL writes them, or lines of base64, each one signature: while
a key is being replaced, a file has one of the old and one of the new.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from skerry.errors import InputError, PolicyError, Problem
from skerry.policy.files import read_regular
from skerry.wire.system_files import MAX_KEY, MAX_SIGNATURE

SUFFIX = ".sig"
"""A policy's signature stands beside it, under its name with this ending."""

SIGNATURE_BYTES = 64
"""Bytes of one Ed25519 signature."""

_SSH = b"ssh-ed25519 "


class Unsigned(PolicyError):
    """A policy that the key in force has not signed: it does not come into force."""

    code = "POLICY-UNSIGNED"


def read_key_file(path: str | Path) -> bytes:
    """Read the bytes of a file that should hold a key. Raises `PolicyError`."""
    return _read(Path(path), MAX_KEY)


def read_signature(policy_path: str | Path) -> bytes:
    """Read what stands beside a policy as its signature, nothing if there is no such file.

    Raises `PolicyError` if there is one that can't be read.
    """
    path = Path(f"{policy_path}{SUFFIX}")
    return _read(path, MAX_SIGNATURE) if path.exists() else b""


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_regular(path, limit)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise PolicyError([Problem(str(path), 0, f"cannot be read: {reason}")]) from None


def public_key(untrusted: bytes, file: str) -> bytes:
    """Return the 32 raw bytes of an Ed25519 public key, PEM or OpenSSH. Raises `PolicyError`."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    load = (
        serialization.load_ssh_public_key
        if untrusted.startswith(_SSH)
        else serialization.load_pem_public_key
    )
    try:
        key = load(untrusted) if len(untrusted) <= MAX_KEY else None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        message = "no Ed25519 public key, PEM or OpenSSH; `skerry policy keygen` makes one"
        raise PolicyError([Problem(file, 0, message)])
    return key.public_bytes_raw()


def require_signed(key: bytes, content: bytes, untrusted_signature: bytes, file: str) -> None:
    """Return if one of the signatures verifies under a raw public key. Raises `Unsigned`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    verifier = Ed25519PublicKey.from_public_bytes(key)
    for signature in _signatures(untrusted_signature):
        try:
            verifier.verify(signature, content)
            return
        except InvalidSignature:
            continue
    what = f"{file}{SUFFIX} does not verify under" if untrusted_signature else "not signed with"
    message = f"{what} the policy key in force; `skerry policy sign FILE --key KEY` signs it"
    raise Unsigned([Problem(file, 0, message)])


def _signatures(untrusted: bytes) -> list[bytes]:
    """Return what has the length of a signature; nothing of a file that is too long."""
    if len(untrusted) > MAX_SIGNATURE:
        return []
    if len(untrusted) == SIGNATURE_BYTES:
        return [untrusted]
    found = []
    for line in untrusted.split():
        try:
            found.append(base64.b64decode(line, validate=True))
        except (binascii.Error, ValueError):
            continue
    return [signature for signature in found if len(signature) == SIGNATURE_BYTES]


def sign(untrusted_key: bytes, content: bytes, file: str) -> bytes:
    """Return a signature as a line of base64; the key is a private one, PEM or OpenSSH.

    Raises `InputError` if it is none, or has a passphrase.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    load = (
        serialization.load_ssh_private_key
        if b"OPENSSH PRIVATE KEY" in untrusted_key
        else serialization.load_pem_private_key
    )
    try:
        key = load(untrusted_key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        message = "no Ed25519 private key without a passphrase; `skerry policy keygen` makes one"
        raise InputError([Problem(file, 0, message)])
    return base64.b64encode(key.sign(content)) + b"\n"


def added(untrusted_old: bytes, new: bytes, file: str) -> bytes:
    """Return the signatures of an older file and a newer one: a line of base64 each, none twice.

    What has not the form of a signature is left out. Raises `InputError` when they are too many.
    """
    whole = (*_signatures(untrusted_old), *_signatures(new))
    made = b"".join(base64.b64encode(one) + b"\n" for one in dict.fromkeys(whole))
    if len(made) > MAX_SIGNATURE:
        raise InputError([Problem(f"{file}{SUFFIX}", 0, "has no room for another signature")])
    return made


def new_key() -> tuple[bytes, bytes]:
    """Return a new private key and its public one, both PEM."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), public
