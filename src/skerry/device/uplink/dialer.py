"""The dialer of an uplink: the one process that has a way out, and holds the allow-list.

The rules it keeps: what the gate says is not believed: where a connection was to go is asked of the
connection itself, and it is made only if the allow-list says so; a name stands for what the
resolvers told *here*, never for what a guest or the gate says; a guest's bytes are moved and not
looked at. All that it holds is bounded.

Run as a helper, with a JSON object as its one argument: see `Orders`. It ends when the gate does.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys
import time
from contextlib import suppress

import msgspec

from skerry.device.uplink import words
from skerry.device.uplink.allow import AllowList, split
from skerry.device.uplink.flow import Flow, Rate
from skerry.device.uplink.names import Names
from skerry.device.uplink.report import Reports
from skerry.supervisor.spawn import PR_SET_DUMPABLE, prctl

GATE, REPORTS = 3, 4
"""Its descriptors."""

MAX_CONNECTIONS = 256
"""Connections of one use at once, those that are being made too; one more is ended at once."""

CONNECT_S = 15.0
"""How long the other side may take to accept a connection."""

BEAT_S = 0.5
FULL, LATE = "the use has its MAX_CONNECTIONS", "it does not answer"
_NOBODYS = "198.51.100.1"
"""An address that no host has (RFC 5737): where it can be bound to, so can any
(`net.ipv4.ip_nonlocal_bind`)."""

_LINGER_NOT = struct.pack("ii", 1, 0)


class Orders(msgspec.Struct, frozen=True):
    """What a dialer may do: destinations, name servers as `ADDRESS:PORT`, bytes a second (0: any
    number)."""

    allow: tuple[str, ...]
    resolvers: tuple[str, ...]
    rate: int = 0


class Dialer:
    """The state of the loop."""

    def __init__(self, gate: socket.socket, reports: Reports, orders: Orders) -> None:
        self._gate, self._reports = gate, reports
        self._allow = AllowList(orders.allow)
        self._poll = select.epoll()
        servers = [split(server) for server in orders.resolvers]
        self._names = Names(self._allow, servers, self._poll, self._resolved, reports.tell)
        self._rate = Rate(orders.rate)
        self._flows: dict[int, Flow] = {}
        self._making: dict[int, tuple[Flow, float]] = {}
        self._over = False
        self._binds_anything = _can_bind(_NOBODYS)

    def run(self) -> None:
        """Serve until the gate is gone."""
        self._poll.register(self._gate, select.EPOLLIN)
        beat = time.monotonic()
        while not self._over:
            for number, _ in self._poll.poll(BEAT_S):
                self._ready(number)
            self._rate.wait()
            now = time.monotonic()
            if now > beat + BEAT_S:
                beat = now
                self._names.tick(now)
                self._reports.settle(beat)
                for flow in [flow for flow, until in self._making.values() if until < now]:
                    self._reports.tell(flow.called, LATE, now)
                    self._end(flow)

    def _ready(self, number: int) -> None:
        if number == self._gate.fileno():
            with suppress(BlockingIOError):
                self._asked()
        elif number in self._making:
            self._connected(number)
        elif number in self._flows:
            if not self._flows[number].move(self._rate):
                self._end(self._flows[number])
        else:
            self._names.ready(number)

    def _asked(self) -> None:
        """Take one message of the gate."""
        untrusted, descriptors, _, _ = socket.recv_fds(self._gate, words.MAX_WORDS, 1)
        if not untrusted:
            self._over = True
        elif untrusted == words.CONNECT and descriptors:
            self._connect(descriptors.pop())
        elif question := words.read_resolve(untrusted):
            self._names.resolve(*question, time.monotonic())
        for descriptor in descriptors:
            os.close(descriptor)

    def _resolved(self, number: int, code: int, addresses: list[str], ttl: int) -> None:
        with suppress(BlockingIOError):  # a gate that does not read gets no answer
            self._gate.send(words.answer(number, code, addresses, ttl), socket.MSG_DONTWAIT)

    def _connect(self, untrusted_descriptor: int) -> None:
        """Make the connection that one from the guest was meant for, or end that."""
        now = time.monotonic()
        untrusted = _connection(untrusted_descriptor)
        if untrusted is None:
            return
        address, port = untrusted.getsockname()
        outward = words.outward(address)
        verdict = self._allow.judge(outward, port, now, self._is_own(outward))
        reason = verdict.reason
        if verdict.allowed and len(self._flows) // 2 + len(self._making) >= MAX_CONNECTIONS:
            reason = FULL
        if reason:
            untrusted.close()  # with a reset
            self._reports.tell(verdict.asked, reason, now)
            return
        self._dial(untrusted, outward, port, verdict.asked)

    def _is_own(self, address: str) -> bool:
        """Say whether an address is this host's; nothing is sent to find out."""
        return _source_of(address) == address if self._binds_anything else _can_bind(address)

    def _dial(self, near: socket.socket, address: str, port: int, called: str) -> None:
        far = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        far.setblocking(False)
        # A killed process resets its connections, and drops what it had not sent (law 3).
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        flow = Flow(near, far, called, self._poll)
        now = time.monotonic()
        if far.connect_ex((address, port)) not in (0, errno.EINPROGRESS):
            self._reports.tell(called, LATE, now)
            flow.close()
            return
        self._making[far.fileno()] = flow, now + CONNECT_S
        self._poll.register(far, select.EPOLLOUT)

    def _connected(self, number: int) -> None:
        flow, _ = self._making.pop(number)
        self._poll.unregister(number)
        if flow.far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._reports.tell(flow.called, LATE, time.monotonic())
            flow.close()
            return
        self._flows[flow.near.fileno()] = self._flows[number] = flow
        flow.begin()

    def _end(self, flow: Flow) -> None:
        for number in flow.near.fileno(), flow.far.fileno():
            self._flows.pop(number, None)
            if self._making.pop(number, None):
                self._poll.unregister(number)
        flow.close()


def _can_bind(address: str) -> bool:
    """Say whether a socket can be bound to an address: only to a host's own, as Linux is set."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _source_of(address: str) -> str:
    """Return from which of its addresses the host speaks to one: to its first, from that itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        if probe.connect_ex((address, 9)):
            return ""
        return str(probe.getsockname()[0])


def _connection(untrusted_descriptor: int) -> socket.socket | None:
    """Take over what a descriptor leads to if it is a TCP socket of IPv4; else close it."""
    try:
        sock = socket.socket(fileno=untrusted_descriptor)
    except OSError:
        os.close(untrusted_descriptor)
        return None
    try:
        if (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            return sock
    except OSError:
        pass
    sock.close()
    return None


def main() -> None:
    """Run the process."""
    prctl(PR_SET_DUMPABLE, 0)
    orders = msgspec.json.decode(sys.argv[1], type=Orders)
    os.set_blocking(GATE, False)
    Dialer(socket.socket(fileno=GATE), Reports(REPORTS), orders).run()
