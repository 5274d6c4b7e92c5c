"""The process of one switch: moves Ethernet frames between its members' sockets.

The rules this module keeps: it holds one socket for each member and nothing else that leads out; it
never waits for a member, whose queue is its socket's, and drops what does not fit, counted; it
takes at most one buffer from a member before all others had their turn; a member that sends what
is no frame is shut out.

Frames are as QEMU's stream sockets carry them: the length in four bytes, then the frame. They are
taken from a socket whole, after a look, and put into one whole where the socket is a Unix one: so
another process can go on with the same sockets at any moment (`uses.SwitchUses.resume`).

Run as a helper. On `CONTROL` it gets each member's number with its socket, and says of a member how
many frames it has dropped for it, or that it was shut out. That the other end has gone changes
nothing: the members' frames go on while the node starts anew.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from typing import NamedTuple

from skerry.device.switch.table import BROADCAST, Table
from skerry.supervisor.spawn import PR_SET_DUMPABLE, prctl

CONTROL = 3
"""The number of its control socket."""

MEMBER = struct.Struct("!q")
"""What comes with a member's socket: its number."""

REPORT = struct.Struct("!qq")
"""What is said of a member: its number, and the frames dropped for it so far or `OUT`."""

OUT = -1
"""In the place of a count: the member sent what is no frame and was shut out."""

MAX_MEMBERS = 64
"""Members of one switch; a further one is refused."""

MAX_FRAME = 16 << 10
"""Longest frame that is passed on, in bytes; a longer one is dropped and counted."""

FRAME_BOUND = 68 << 10
"""Longest frame that QEMU itself takes; who announces a longer one is shut out."""

_HEAD = 4
_ETHERNET = 14
_BUFFER = 128 << 10
_RUN = 32 << 10
"""Most bytes of neighbouring frames for one member that are put into its socket at once: the
kernel takes so many as one piece, or nothing of it."""

_PAUSE_MS = 1
_REPORT_S = 1.0


class _Run(NamedTuple):
    """Neighbouring frames in the buffer that go the same way; `to` None: to every other port."""

    to: int | None
    begin: int
    end: int
    frames: int


class Port:
    """A member's socket. `rest` is what its socket did not take of a frame that it has begun."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.rest = b""
        self.dropped = 0
        self.told = 0

    def put(self, data: memoryview, frames: int) -> bool:
        """Queue whole frames, or drop and count them. Returns False if the member has gone."""
        if self.rest:
            self.dropped += frames
            return True
        try:
            sent = self.sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self.dropped += frames
        except OSError:
            return False
        else:
            self.rest = bytes(data[sent:])
        return True

    def go_on(self) -> None:
        """Queue more of the rest."""
        with contextlib.suppress(OSError):
            sent = self.sock.send(self.rest, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            self.rest = self.rest[sent:]


class Switch:
    """One switch with its members, by their numbers."""

    def __init__(self, control: socket.socket) -> None:
        self.ports: dict[int, Port] = {}
        self.table = Table()
        control.setblocking(False)
        self._control: socket.socket | None = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._by_fd: dict[int, Port] = {}
        self._half: set[Port] = set()  # a frame has begun to come: not polled for a moment
        self._buffer = bytearray(_BUFFER)
        self._waste = bytearray(_BUFFER)
        self._reported = 0.0

    def run(self) -> None:
        """Serve without end."""
        while True:
            self.turn(None)

    def turn(self, timeout_ms: int | None) -> None:
        """Give each member that has something one turn."""
        if self._half:
            timeout_ms = _PAUSE_MS
        elif any(port.told != port.dropped for port in self.ports.values()):
            timeout_ms = int(_REPORT_S * 1000)
        events = self._poll.poll(timeout_ms)
        waited, self._half = self._half, set()
        for each in waited:
            self._watch(each)
        # Members first: who was handed over before a frame was sent is to get it.
        if any(fd not in self._by_fd for fd, _ in events):
            while self._control is not None and self._listen(self._control):
                pass
        for fd, event in events:
            port = self._by_fd.get(fd)
            if port is None:  # it is the control, or went in this very turn
                continue
            if event & select.POLLOUT:
                port.go_on()
                self._watch(port)
            if event & ~select.POLLOUT:
                self._take(port)
        self._report_drops()

    def _listen(self, control: socket.socket) -> bool:
        """Take the next member, or note that the node has gone. Returns whether there was one."""
        ends: list[int] = []
        try:
            message, ends, _, _ = socket.recv_fds(control, MEMBER.size, 1)
        except BlockingIOError:
            return False
        except OSError:
            message = b""
        if not message:
            self._poll.unregister(control)
            control.close()
            self._control = None
        elif len(ends) == 1 and len(message) == MEMBER.size:
            self.add(MEMBER.unpack(message)[0], ends.pop())
        for end in ends:
            os.close(end)
        return bool(message)

    def add(self, number: int, end: int) -> None:
        """Take a member's socket over."""
        sock = socket.socket(fileno=end)
        if len(self.ports) >= MAX_MEMBERS or number in self.ports:
            sock.close()
            self._say(number, OUT)
            return
        port = self.ports[number] = self._by_fd[sock.fileno()] = Port(number, sock)
        self._watch(port)

    def _watch(self, port: Port) -> None:
        """Ask for what a port waits for."""
        if port.number in self.ports:
            out = select.POLLOUT if port.rest else 0
            self._poll.register(port.sock, select.POLLIN | out)

    def _remove(self, port: Port) -> None:
        if self.ports.pop(port.number, None) is None:
            return
        self._poll.unregister(port.sock)
        del self._by_fd[port.sock.fileno()]
        self._half.discard(port)
        self.table.remove(port.number)
        port.sock.close()

    def _shut_out(self, port: Port) -> None:
        with contextlib.suppress(OSError):
            port.sock.shutdown(socket.SHUT_RDWR)
        self._remove(port)
        self._say(port.number, OUT)

    def _take(self, port: Port) -> None:
        """Look at what a member has queued, pass on the whole frames, then take them away."""
        try:
            got = port.sock.recv_into(self._buffer, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            got = 0
        if not got:
            self._remove(port)
            return
        runs, end = self._sort(port, got)
        with memoryview(self._buffer) as view:
            for run in runs:
                self._pass_on(port, run, view)
        if end < 0:
            self._shut_out(port)
        elif port.number not in self.ports:
            return
        elif end:
            with contextlib.suppress(OSError):
                port.sock.recv_into(self._waste, end, socket.MSG_DONTWAIT)
        else:  # not yet a whole frame: a moment's pause, or half a frame would keep us busy
            self._half.add(port)
            out = select.POLLOUT if port.rest else 0
            self._poll.register(port.sock, out)

    def _sort(self, port: Port, got: int) -> tuple[list[_Run], int]:
        """Return where the first `got` bytes of the buffer go, and where the last whole frame ends.

        That is -1 if something in them is no frame.
        """
        buffer, table = self._buffer, self.table
        runs: list[_Run] = []
        at = 0
        while got - at >= _HEAD:
            length = int.from_bytes(buffer[at : at + _HEAD], "big")
            if not _ETHERNET <= length <= FRAME_BOUND:
                return runs, -1
            begin, end = at + _HEAD, at + _HEAD + length
            if end > got:
                break
            table.hear(bytes(buffer[begin + 6 : begin + 12]), port.number)
            to = None
            if not buffer[begin] & BROADCAST:
                to = table.port_of(bytes(buffer[begin : begin + 6]))
            if length > MAX_FRAME:
                port.dropped += 1
            elif to == port.number:
                pass  # it is at home already
            elif runs and runs[-1][:1] == (to,) and runs[-1].end == at:
                last = runs[-1]
                if end - last.begin <= _RUN:
                    runs[-1] = _Run(to, last.begin, end, last.frames + 1)
                else:
                    runs.append(_Run(to, at, end, 1))
            else:
                runs.append(_Run(to, at, end, 1))
            at = end
        return runs, at

    def _pass_on(self, source: Port, run: _Run, view: memoryview) -> None:
        if run.to is None:
            ports = [port for port in self.ports.values() if port is not source]
        else:
            ports = [self.ports[run.to]] if run.to in self.ports else []
        with view[run.begin : run.end] as frames:
            for port in ports:
                if not port.put(frames, run.frames):
                    self._remove(port)
                elif port.rest:
                    self._watch(port)

    def _say(self, number: int, count: int) -> None:
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send(REPORT.pack(number, count), socket.MSG_DONTWAIT)

    def _report_drops(self) -> None:
        now = time.monotonic()
        if now - self._reported < _REPORT_S:
            return
        self._reported = now
        for port in self.ports.values():
            if port.told != port.dropped:
                port.told = port.dropped
                self._say(port.number, port.dropped)


def main() -> None:
    """Run the process until it is ended."""
    prctl(PR_SET_DUMPABLE, 0)
    Switch(socket.socket(fileno=CONTROL)).run()
