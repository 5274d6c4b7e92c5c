"""The audit writer's process: one trail, behind one socket.

The rules: what is answered as written is on the disk; all that has arrived while the disk was
busy is written in one piece. The process opens nothing: descriptors of segments come from the
node. When the node ends, whatever it had sent is written first, from the reserve if need be.

Run as a helper (`node.helpers`), with the socket as descriptor `SOCKET`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Sequence

from skerry.audit.appender import FULL, Appender
from skerry.audit.chain import Link
from skerry.audit.disk import HostDisk
from skerry.audit.ending import MAX_BATCH
from skerry.audit.messages import (
    MAX_MESSAGE,
    Answer,
    Begin,
    Begun,
    Continued,
    Entry,
    Follow,
    Next,
    NoNext,
    Order,
    Refused,
    Write,
    Written,
    order,
    packed,
)
from skerry.audit.segments import Opened
from skerry.errors import WireError
from skerry.supervisor.spawn import PR_SET_DUMPABLE, prctl

SOCKET = 3
"""The number of the descriptor that leads to the node."""


class Service:
    """Writes what one node orders, until the node ends."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._inbox: deque[Write] = deque()
        self._ended = False

    def run(self) -> None:
        """Do all that is ordered. Raises `WireError` for a broken order."""
        begin, fd = self._receive_with_descriptor()
        if self._ended:
            return
        if not isinstance(begin, Begin) or fd < 0:
            raise WireError("the first order of an audit writer is to begin")
        opened = Opened(fd, begin.size, Link(begin.n, begin.hash), begin.first, begin.continues)
        appender = Appender(HostDisk(), opened, self, begin.rotate, time.time_ns, time.monotonic_ns)
        self._say(Begun())
        try:
            while self._gather():
                spare, entries = self._batch()
                self._write(appender, spare, entries)
        finally:
            appender.close()

    def follow(self, first: int, link: Link) -> tuple[int, str]:
        """Ask the node for the next segment; it knows both. See `Successors`."""
        self._say(Follow())
        while True:
            message, fd = self._receive_with_descriptor()
            if self._ended:
                raise OSError("the node has ended")
            if isinstance(message, Next) and fd >= 0:
                return fd, message.continues
            if isinstance(message, NoNext):
                raise OSError(message.reason)
            if not isinstance(message, Write):
                raise WireError("an order out of turn")
            self._inbox.append(message)

    def begun(self) -> None:
        """Tell the node that the next segment's first record is on the disk."""
        self._say(Continued())

    def _write(self, appender: Appender, spare: int, entries: Sequence[Entry]) -> None:
        try:
            first = appender.write(entries, spare)
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            self._say(Refused(len(entries), reason, bool(spare) and error.errno in FULL))
        else:
            self._say(Written(first, len(entries), appender.link.hash))

    def _gather(self) -> bool:
        """Take what has come meanwhile, or wait for something to come; false at the end."""
        size = 0
        while not self._ended and size < MAX_BATCH:
            packet = self._receive(socket.MSG_DONTWAIT)
            if packet is None:
                if not self._inbox:  # what comes after a wait is written at once
                    self._take(self._receive(0) or b"")
                break
            self._take(packet)
            size += len(packet)
        return bool(self._inbox)

    def _receive(self, flags: int) -> bytes | None:
        """Return the next packet, empty at the end; None if that would mean to wait."""
        try:
            return self._sock.recv(MAX_MESSAGE, flags)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""

    def _take(self, untrusted_packet: bytes) -> None:
        if not untrusted_packet:
            self._ended = True
            return
        message = order(untrusted_packet)
        if not isinstance(message, Write):
            raise WireError("an order out of turn")
        self._inbox.append(message)

    def _batch(self) -> tuple[int, list[Entry]]:
        """Take what may be written in one piece: the same spare room, a bounded size."""
        spare = self._inbox[0].spare
        entries: list[Entry] = []
        size = 0
        while self._inbox and self._inbox[0].spare == spare and size < MAX_BATCH:
            message = self._inbox.popleft()
            entries += message.entries
            size += sum(len(entry.fields) + 512 for entry in message.entries)
        return 0 if self._ended else spare, entries

    def _receive_with_descriptor(self) -> tuple[Order | None, int]:
        try:
            packet, fds, _, _ = socket.recv_fds(self._sock, MAX_MESSAGE, 1)
        except ConnectionResetError:
            packet, fds = b"", []
        if not packet:
            self._ended = True
            return None, -1
        for fd in fds:
            os.set_inheritable(fd, False)
        return order(packet), fds[0] if fds else -1

    def _say(self, answer: Answer) -> None:
        with contextlib.suppress(OSError):  # the node has ended: what it sent is still written
            self._sock.send(packed(answer))


def main() -> None:
    """Run the process until the node ends."""
    prctl(PR_SET_DUMPABLE, 0)
    for number in (signal.SIGINT, signal.SIGTERM):  # it ends with its node, never before
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=SOCKET) as sock:
        Service(sock).run()
