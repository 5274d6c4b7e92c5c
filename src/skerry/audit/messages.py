"""What the node and the audit writer's process say to each other.

The rule: one message is one packet of a SOCK_SEQPACKET pair, MessagePack, at most `MAX_MESSAGE`
bytes, and exactly one of the forms below; anything else is a `WireError`, and then the pair is
given up. The writer answers every `Write` in order, with one answer for one or several.

Node to writer: `Begin` once, with the live segment's descriptor; `Write`; `Next`, with the next
segment's descriptor, or `NoNext`, after a `Follow`. Writer to node: `Begun`; `Written` or
`Refused`; `Follow`; `Continued`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from skerry.errors import WireError

MAX_MESSAGE = 1 << 17
"""Longest message in bytes; a longer one ends the connection."""

MAX_PACKED = 1 << 16
"""Bytes of records that one `Write` holds, or one record."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One record to write: `fields` is canonical JSON, the times are in nanoseconds."""

    event: str
    fields: str
    wall_ns: int
    mono_ns: int


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Go on where the live segment ends; see `segments.Opened`. `rotate` in bytes."""

    size: int
    n: int
    hash: str
    first: int
    continues: str
    rotate: int


class Write(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Write these records, with `spare` bytes set aside behind them; see `Appender.write`."""

    spare: int
    entries: Sequence[Entry]


class Next(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Here is the next segment; `continues` are the fields of its first record."""

    continues: str


class NoNext(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """There is no next segment: go on in this one."""

    reason: str


class Begun(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The writer is ready."""


class Written(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The oldest `count` unanswered records are on the disk, numbered from `first`.

    `hash` is that of the last of them.
    """

    first: int
    count: int
    hash: str


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The oldest `count` unanswered records are not in the trail; `full`: the disk is full."""

    count: int
    reason: str
    full: bool


class Follow(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """This segment is full, and all that was answered stands in it: give me the next."""


class Continued(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """The next segment's first record is on the disk."""


Order = Begin | Write | Next | NoNext
Answer = Begun | Written | Refused | Follow | Continued

_encoder = msgspec.msgpack.Encoder()
_orders: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def packed(message: Order | Answer) -> bytes:
    """Return a message's packet."""
    return _encoder.encode(message)


def order(untrusted_packet: bytes) -> Order:
    """Return what the node ordered. Raises `WireError`."""
    try:
        return _orders.decode(untrusted_packet)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise WireError(f"no order for the audit writer: {error}") from None


def answer(untrusted_packet: bytes) -> Answer:
    """Return what the writer answered. Raises `WireError`."""
    try:
        return _answers.decode(untrusted_packet)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise WireError(f"no answer of the audit writer: {error}") from None
