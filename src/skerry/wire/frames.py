"""Length-prefixed frames: four bytes, big endian, then that many bytes of one message.

The length is checked against `MAX_FRAME` before anything is allocated for the contents.
"""

from __future__ import annotations

import asyncio
import socket
import struct

from skerry.errors import WireError

MAX_FRAME = 256 * 1024
"""Longest message, in bytes; a longer one is refused and the connection closed."""

MAX_REPLY = 8 * 1024 * 1024
"""Longest answer of the service: the list of all channels that a node can have fits."""

_LENGTH = struct.Struct(">I")


def frame(message: bytes, limit: int = MAX_FRAME) -> bytes:
    """Return the message with its length in front. Raises `WireError` if it is too long."""
    if len(message) > limit:
        raise WireError(f"a message of {len(message)} bytes is over the limit of {limit}")
    return _LENGTH.pack(len(message)) + message


def _checked(untrusted_head: bytes, limit: int) -> int:
    (untrusted_length,) = _LENGTH.unpack(untrusted_head)
    if not 0 < untrusted_length <= limit:
        raise WireError(f"a message claims {untrusted_length} bytes; 1 to {limit} are accepted")
    return int(untrusted_length)


async def read_frame(reader: asyncio.StreamReader, within_s: float | None) -> bytes:
    """Read one message; `b""` if the peer closed between messages.

    `within_s` bounds the wait for a message to begin; once begun it has `BODY_S` seconds.
    Raises `WireError` for a bad length, an end in mid-message, or a message that is too slow.
    """
    try:
        first = await asyncio.wait_for(reader.read(1), within_s)
        if not first:
            return b""
        async with asyncio.timeout(BODY_S):
            head = first + await reader.readexactly(_LENGTH.size - 1)
            return await reader.readexactly(_checked(head, MAX_FRAME))
    except TimeoutError:
        raise WireError("a message was not complete in time") from None
    except asyncio.IncompleteReadError:
        raise WireError("the peer closed in the middle of a message") from None


BODY_S = 10.0
"""Seconds in which a message must be complete once its first byte came."""


def receive(sock: socket.socket) -> bytes:
    """Read one answer from a blocking socket; `b""` if the peer closed between messages."""
    head = _exactly(sock, _LENGTH.size)
    return _exactly(sock, _checked(head, MAX_REPLY)) if head else b""


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            if not data:
                return b""
            raise WireError("the peer closed in the middle of a message")
        data += piece
    return bytes(data)
