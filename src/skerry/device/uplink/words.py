"""What gate and dialer say to each other: one message a datagram, with its bounds. Pure.

The gate asks, and is not believed: to have a connection taken over, which comes as a descriptor
beside `CONNECT`, or what a name stands for. The dialer answers the second.
"""

from __future__ import annotations

import socket
import struct

CONNECT = b"C"
"""Take over the connection whose descriptor comes with this."""

RESOLVE = b"R"
"""Say what a name stands for: a number (4 bytes), then the name."""

MAX_WORDS = 512
"""Longest message, in bytes; what is longer is cut off and then not understood."""

MAX_NAME = 253
"""Longest name, in characters."""

HOST, GATEWAY, GUEST, PREFIX = "127.0.0.1", "192.0.2.1", "192.0.2.2", 24
"""The host's loopback, what stands for it toward the guest (its gateway and resolver), the guest's
address, and the bits of their network's prefix: one that no host of the internet has (RFC 5737)."""

_ANSWER = struct.Struct(">IBI")


def resolve(number: int, name: str) -> bytes:
    """Return the question what a name stands for."""
    return RESOLVE + struct.pack(">I", number) + name.encode("ascii")


def read_resolve(untrusted: bytes) -> tuple[int, str] | None:
    """Return number and name of such a question, None if it is none."""
    name = untrusted[5:]
    if untrusted[:1] != RESOLVE or not 0 < len(name) <= MAX_NAME or not name.isascii():
        return None
    return struct.unpack(">I", untrusted[1:5])[0], name.decode("ascii")


def answer(number: int, code: int, addresses: list[str], ttl: int) -> bytes:
    """Return the answer: DNS's code and what the name stands for."""
    return _ANSWER.pack(number, code, ttl) + b"".join(map(socket.inet_aton, addresses))


def read_answer(said: bytes) -> tuple[int, int, list[str], int]:
    """Return number, code, addresses and seconds to live of an answer."""
    number, code, ttl = _ANSWER.unpack_from(said)
    rest = said[_ANSWER.size :]
    return number, code, [socket.inet_ntoa(rest[i : i + 4]) for i in range(0, len(rest), 4)], ttl


def outward(address: str) -> str:
    """Return the address outside for one that the guest uses."""
    return HOST if address == GATEWAY else address


def inward(address: str) -> str:
    """Return what the guest uses for an address outside."""
    return GATEWAY if address == HOST else address
