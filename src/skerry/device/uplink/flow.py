"""One connection through an uplink: two sockets, and what is on its way from one to the other.

The rules: bytes are moved and not looked at; what one side does not take is not read from the
other, so a flow holds at most `PIECE` bytes each way; a closed direction is closed on, and a
connection that fails on one side is reset on the other.
"""

from __future__ import annotations

import select
import socket
import struct
import time

PIECE = 64 << 10
"""Bytes that a flow may hold each way; what comes beyond it waits in the kernel."""

SLICE_S = 0.05
"""The longest pause for a rate; what is let through at once is no more than the rate in it."""

_LINGER = struct.pack("ii", 0, 0)


class Rate:
    """Bytes a second of all flows together; 0 is no limit."""

    def __init__(self, rate: int) -> None:
        self._rate, self._debt, self._then = rate, 0.0, time.monotonic()
        self.piece = min(PIECE, max(1, int(rate * SLICE_S))) if rate else PIECE

    def spend(self, size: int) -> None:
        """Count bytes that were moved."""
        self._debt += size if self._rate else 0

    @property
    def used_up(self) -> bool:
        """Whether nothing more may be read for now."""
        return self._debt > 0

    def wait(self) -> None:
        """Wait until what was moved is within the rate, or for `SLICE_S`: others wait behind it."""
        if not self._rate:
            return
        now = time.monotonic()
        self._debt = max(-self._rate * SLICE_S, self._debt - (now - self._then) * self._rate)
        self._then = now
        if self._debt > 0:
            time.sleep(min(SLICE_S, self._debt / self._rate))


class Flow:
    """One connection: `near` comes from the guest, `far` is the one made for it."""

    def __init__(
        self, near: socket.socket, far: socket.socket, called: str, poll: select.epoll
    ) -> None:
        self.near, self.far, self.called = near, far, called
        self._poll = poll
        self._waiting: dict[socket.socket, memoryview] = {}  # by who is to take it
        self._ended: set[socket.socket] = set()  # sides that said all that they have to say
        self._wanted: dict[socket.socket, int] = {}

    def begin(self) -> None:
        """Let it carry."""
        for side in self._sides:
            side.setblocking(False)
            self._want(side)

    @property
    def _sides(self) -> tuple[socket.socket, socket.socket]:
        return self.near, self.far

    def move(self, rate: Rate) -> bool:
        """Move what there is both ways; return False once there is nothing left to do."""
        try:
            self._one_way(self.near, self.far, rate)
            self._one_way(self.far, self.near, rate)
        except OSError:
            return False
        if len(self._ended) == 2 and not self._waiting:
            for side in self._sides:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            return False
        for side in self._sides:
            self._want(side)
        return True

    def _one_way(self, origin: socket.socket, target: socket.socket, rate: Rate) -> None:
        waiting = self._waiting.pop(target, None)
        if waiting is None and origin not in self._ended and not rate.used_up:
            try:
                waiting = memoryview(origin.recv(rate.piece, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return
            if not waiting:
                self._ended.add(origin)
                target.shutdown(socket.SHUT_WR)
        if not waiting:
            return
        try:
            sent = target.send(waiting, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        rate.spend(sent)
        if sent < len(waiting):
            self._waiting[target] = waiting[sent:]

    def _want(self, side: socket.socket) -> None:
        """Have the poll tell of what can be done; of nothing, so that a hung-up side is silent."""
        other = self.far if side is self.near else self.near
        wanted = select.EPOLLOUT if side in self._waiting else 0
        if side not in self._ended and other not in self._waiting:
            wanted |= select.EPOLLIN
        had, self._wanted[side] = self._wanted.get(side, 0), wanted
        if wanted and had:
            self._poll.modify(side, wanted)
        elif wanted:
            self._poll.register(side, wanted)
        elif had:
            self._poll.unregister(side)

    def close(self) -> None:
        """Close both sides: with a reset, unless all was said."""
        for side in self._sides:
            if self._wanted.get(side):  # a copy at the gate would keep it in the poll
                self._poll.unregister(side)
            side.close()
