"""A system file with everything it names, as bytes: what `up` sends to a node that runs.

The rule: the client reads files with the rights of who types; the node reads none for anybody. The
message is MessagePack, and is bounded before it is decoded.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from skerry.errors import WireError

MAX_SYSTEM_BYTES = 16 * 1024 * 1024
"""Most bytes of a system file with its policies in one call; more is refused."""

MAX_KEY = 16_384
"""Longest file of a key, in bytes; a longer one is refused."""

MAX_SIGNATURE = 1024
"""Longest file of signatures, in bytes: some ten of them. A longer one is refused."""

MAX_ASSERTIONS = 64 * 1024
"""Longest file of a policy's assertions, in bytes; a longer one is refused."""

Place = Annotated[str, Meta(min_length=1, max_length=4096)]
Key = Annotated[bytes, Meta(max_length=MAX_KEY)]
Signature = Annotated[bytes, Meta(max_length=MAX_SIGNATURE)]
Asserting = Annotated[bytes, Meta(max_length=MAX_ASSERTIONS)]


class PolicyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One policy: its absolute path, its bytes (compiled), its signature and its assertions.

    The last two as they stand in files beside it, nothing where there are none.
    """

    file: Place
    content: bytes
    signature: Signature = b""
    assertions: Asserting = b""


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A public key that the system file names, and what stands beside it as signature."""

    content: Key
    signature: Signature = b""


class SystemFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`path` is the system file's absolute path, for messages, and `text` what is in it."""

    path: Place
    text: str
    policies: tuple[PolicyFile, ...] = ()
    key: KeyFile | None = None
    image_key: KeyFile | None = None


_decoder: msgspec.msgpack.Decoder[SystemFiles] = msgspec.msgpack.Decoder(SystemFiles)


def encode_files(files: SystemFiles) -> bytes:
    """Return the message. Raises `WireError` if it is too long or has no UTF-8."""
    try:
        message = msgspec.msgpack.encode(files)
    except UnicodeEncodeError:
        raise WireError("a file's name is not valid UTF-8", fix="rename it") from None
    if len(message) > MAX_SYSTEM_BYTES:
        raise WireError(
            f"the system file and its policies are over the limit of {MAX_SYSTEM_BYTES} bytes",
            fix="give the policies in a shorter form",
        )
    return message


def decode_files(untrusted: bytes) -> SystemFiles:
    """Check and decode the message. Raises `WireError`."""
    try:
        return _decoder.decode(untrusted)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"malformed system: {error}") from None
