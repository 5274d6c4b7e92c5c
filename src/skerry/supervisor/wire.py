"""Messages between node and supervisor: one datagram each, bounded before it is read.

The rule: a message is one JSON object of at most `MAX_MESSAGE` bytes on a SOCK_SEQPACKET Unix
socket, with at most `MAX_FDS` descriptors; a truncated or malformed one is an error, never a guess,
and no descriptor that came with it stays open.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

MAX_MESSAGE = 64 * 1024
"""Bytes of one message; a longer one is refused by the sender and fatal to the receiver."""
MAX_FDS = 253
"""Descriptors of one message (the kernel's SCM_MAX_FD)."""


class WireFault(Exception):
    """A message was too long, truncated or malformed."""


class Closed(Exception):
    """The other side closed its end."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Make the two ends of a supervisor's socket."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def encode(message: dict[str, Any]) -> bytes:
    """Return the bytes of a message. Raises WireFault when it is too long."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE:
        raise WireFault(f"message of {len(data)} bytes; the limit is {MAX_MESSAGE}")
    return data


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send one message. Raises BlockingIOError when the socket is full, OSError when it is gone."""
    if len(fds) > MAX_FDS:
        raise WireFault(f"{len(fds)} descriptors; the limit is {MAX_FDS}")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receive one message and its descriptors (close-on-exec), which are the caller's to close.

    Raises Closed at the end of the stream, BlockingIOError when there is nothing, WireFault.
    """
    space = socket.CMSG_SPACE(MAX_FDS * 4)
    untrusted, ancillary, flags, _ = sock.recvmsg(
        MAX_MESSAGE, space, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    )
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    try:
        if not untrusted and not fds:
            raise Closed
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise WireFault("truncated message")
        message = json.loads(untrusted)
        if not isinstance(message, dict):
            raise WireFault("a message is an object")
    except ValueError as error:
        close_all(fds)
        raise WireFault(f"malformed message: {error}") from None
    except (WireFault, Closed):
        close_all(fds)
        raise
    return message, list(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
