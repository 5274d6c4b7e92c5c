"""As much of DNS (RFC 1035) as an uplink's resolver needs: one question, A records. Pure.

The rule: every length is checked before it is used, a name is taken only if it is one of host
names (letters, digits, `-`, `_`), and compression is followed only backwards, so parsing ends.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

A, AAAA, CNAME, IN = 1, 28, 5, 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP = 0, 1, 2, 3, 4
MAX_MESSAGE = 4096
"""Longest datagram that is read; one that is longer is cut off and then refused."""

MAX_RECORDS = 64
"""Records of an answer that are looked at; more are ignored."""

_HEAD = struct.Struct(">HHHHHH")
_QUESTION = struct.Struct(">HH")
_RECORD = struct.Struct(">HHIH")
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")
_QR, _RD, _RA = 0x8000, 0x0100, 0x0080


class Malformed(Exception):
    """A message is not what it should be; the text says what."""


class Question(NamedTuple):
    """What a guest asks: its number, the name in small letters without a final dot, the type."""

    number: int
    name: str
    kind: int
    untrusted_flags: int


class Answer(NamedTuple):
    """What a name server says: the addresses in their order, seconds to live, and its code."""

    addresses: tuple[str, ...]
    ttl: int
    code: int


def read_question(untrusted: bytes) -> Question:
    """Read a query with one question. Raises `Malformed`."""
    number, flags, questions, answers, _, _ = _head(untrusted)
    if flags & _QR or (flags >> 11) & 15 or questions != 1 or answers:
        raise Malformed("not a query with one question")
    name, at = _name(untrusted, _HEAD.size)
    kind, group = _unpack(_QUESTION, untrusted, at)
    if group != IN:
        raise Malformed("not of the internet's class")
    return Question(number, name, kind, flags)


def write_answer(asked: Question, addresses: list[str], ttl: int, code: int) -> bytes:
    """Return the answer to a query, with an A record for each address."""
    flags = _QR | _RA | (asked.untrusted_flags & _RD) | code
    head = _HEAD.pack(asked.number, flags, 1, len(addresses), 0, 0)
    question = _encode(asked.name) + _QUESTION.pack(asked.kind, IN)
    pointer = struct.pack(">H", 0xC000 | _HEAD.size)
    records = (
        pointer + _RECORD.pack(A, IN, ttl, 4) + socket.inet_aton(address) for address in addresses
    )
    return head + question + b"".join(records)


def write_failure(untrusted: bytes, code: int) -> bytes:
    """Return an answer without a question to what could not be read; nothing if it is too short."""
    if len(untrusted) < _HEAD.size or untrusted[2] & 0x80:
        return b""
    return untrusted[:2] + struct.pack(">HHHHH", _QR | _RA | code, 0, 0, 0, 0)


def write_question(number: int, name: str) -> bytes:
    """Return a query for a name's A records."""
    return _HEAD.pack(number, _RD, 1, 0, 0, 0) + _encode(name) + _QUESTION.pack(A, IN)


def read_answer(untrusted: bytes, number: int, name: str) -> Answer:
    """Read the answer to `write_question`. Aliases (CNAME) are followed in the order they stand.

    Raises `Malformed`, also where it answers something else.
    """
    given, flags, questions, answers, _, _ = _head(untrusted)
    if given != number or not flags & _QR or questions != 1:
        raise Malformed("not the answer to this query")
    asked, at = _name(untrusted, _HEAD.size)
    if asked != name or _unpack(_QUESTION, untrusted, at) != (A, IN):
        raise Malformed("the answer to another question")
    at += _QUESTION.size
    called, found, ttl = name, [], 1 << 31
    for _ in range(min(answers, MAX_RECORDS)):
        owner, at = _name(untrusted, at)
        kind, group, lives, size = _unpack(_RECORD, untrusted, at)
        at += _RECORD.size
        if at + size > len(untrusted):
            raise Malformed("a record is longer than the message")
        if owner == called and group == IN and kind == CNAME:
            called, ttl = _name(untrusted, at)[0], min(ttl, lives)
        elif owner == called and group == IN and kind == A and size == 4:
            found.append(socket.inet_ntoa(untrusted[at : at + 4]))
            ttl = min(ttl, lives)
        at += size
    return Answer(tuple(found), ttl if found else 0, flags & 15)


def _head(untrusted: bytes) -> tuple[int, ...]:
    if len(untrusted) > MAX_MESSAGE:
        raise Malformed("too long")
    return _unpack(_HEAD, untrusted, 0)


def _unpack(shape: struct.Struct, untrusted: bytes, at: int) -> tuple[int, ...]:
    if at + shape.size > len(untrusted):
        raise Malformed("too short")
    return shape.unpack_from(untrusted, at)


def _name(untrusted: bytes, at: int) -> tuple[str, int]:
    """Read a name; return it and where what follows it begins. Raises `Malformed`."""
    labels: list[str] = []
    length, after, lowest = 0, 0, at
    while True:
        if at >= len(untrusted):
            raise Malformed("a name is not whole")
        size = untrusted[at]
        if size & 0xC0 == 0xC0:
            (target,) = _unpack(struct.Struct(">H"), untrusted, at)
            after = after or at + 2
            if (target & 0x3FFF) >= lowest:
                raise Malformed("a name that does not end")
            at = lowest = target & 0x3FFF
            continue
        if size == 0:
            return ".".join(labels), after or at + 1
        label = untrusted[at + 1 : at + 1 + size].lower()
        length += size + 1
        if size > 63 or length > 254 or len(label) < size or not _LETTERS.issuperset(label):
            raise Malformed("a name that no host has")
        labels.append(label.decode("ascii"))
        at += 1 + size


def _encode(name: str) -> bytes:
    labels = name.split(".") if name else []
    parts = (bytes([len(label)]) + label.encode("ascii") for label in labels)
    return b"".join(parts) + b"\0"
