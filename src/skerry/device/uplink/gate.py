"""The gate of an uplink: where everything arrives that a guest sends; it decides nothing.

The rules it keeps: it can make no socket and connect to nothing; a connection that it accepts goes
to the dialer as it is, which decides; of a guest's bytes it reads only what is sent to its
resolver, and asks the dialer what a name stands for. What comes for anything else is told and
dropped.

Run as a helper (`python -m` of nothing: see `node.helpers.command`). It ends when the dialer does.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time
from contextlib import suppress

from skerry.device.uplink import dns, words
from skerry.device.uplink.report import Reports
from skerry.supervisor.spawn import PR_SET_DUMPABLE, prctl

DIALER, REPORTS, RESOLVER, ATTEMPTS, DATAGRAMS, LISTENERS = 3, 4, 5, 6, 7, 8
"""Its descriptors: of the last kind, one for each port, up to the highest number."""

QUERIES_S, QUERIES_BURST = 20, 100
"""Queries to the resolver in a second, and how many at once; one more is not answered."""

MAX_ASKING = 64
"""Queries that wait for the dialer; one more is not answered."""

ASKING_S = 10.0
"""How long one may wait; then it is forgotten."""

BEAT_S = 1.0
PIECES = 32
SLOW, UDP = "more queries than the resolver answers", "UDP goes nowhere but to the resolver"
PORT = "no allowed destination has this port"
KIND, BAD = "the resolver answers for addresses of IPv4 only", "not a query that is understood"
TOO_MANY = "more connections at once than are taken over"


class Bucket:
    """Lets so many things through in a second, and so many at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst, self._left, self._then = rate, burst, burst, 0.0

    def take(self, now: float) -> bool:
        """Say whether one more may go through now."""
        self._left = min(self._burst, self._left + (now - self._then) * self._rate)
        self._then = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Gate:
    """The state of the loop. Its sockets were made in a namespace that leads nowhere."""

    def __init__(
        self,
        dialer: socket.socket,
        reports: Reports,
        resolver: socket.socket,
        watchers: tuple[socket.socket, socket.socket],
        listeners: list[socket.socket],
    ) -> None:
        self._dialer, self._reports, self._resolver = dialer, reports, resolver
        self._attempts, self._datagrams = watchers
        self._listeners = {sock.fileno(): sock for sock in listeners}
        self._ports = {sock.getsockname()[1] for sock in listeners}
        self._bucket = Bucket(QUERIES_S, QUERIES_BURST)
        self._asking: dict[int, tuple[dns.Question, tuple[str, int], float]] = {}
        self._numbers = 0
        self._over = False

    def run(self) -> None:
        """Serve until the dialer is gone."""
        poll = select.poll()
        others = {
            self._dialer.fileno(): self._answered,
            self._resolver.fileno(): self._query,
            self._attempts.fileno(): self._attempt,
            self._datagrams.fileno(): self._datagram,
        }
        for number in (*others, *self._listeners):
            poll.register(number, select.POLLIN)
        beat = time.monotonic()
        while not self._over:
            for number, _ in poll.poll(BEAT_S * 1000):
                if number in self._listeners:
                    self._accept(self._listeners[number])
                else:
                    with suppress(BlockingIOError):
                        others[number]()
            if time.monotonic() > beat + BEAT_S:
                beat = time.monotonic()
                self._reports.settle(beat)
                self._asking = {n: a for n, a in self._asking.items() if a[2] > beat}

    def _accept(self, listener: socket.socket) -> None:
        """Hand a connection to the dialer; a copy of ours would keep it from ending."""
        try:
            accepted, _ = listener.accept()
        except OSError:  # it is gone again, or there are no descriptors for it
            time.sleep(0.001)
            return
        with accepted:
            try:
                socket.send_fds(self._dialer, [words.CONNECT], [accepted.fileno()])
            except OSError:
                asked = "{}:{}".format(*accepted.getsockname())
                self._reports.tell(asked, TOO_MANY, time.monotonic())

    def _query(self) -> None:
        untrusted, client = self._resolver.recvfrom(dns.MAX_MESSAGE + 1)
        now = time.monotonic()
        if not self._bucket.take(now):
            self._reports.tell("", SLOW, now)
            return
        try:
            asked = dns.read_question(untrusted)
        except dns.Malformed:
            self._reports.tell("", BAD, now)
            self._reply(dns.write_failure(untrusted, dns.FORMERR), client)
            return
        if not 0 < len(asked.name) <= words.MAX_NAME:
            self._reply(dns.write_answer(asked, [], 0, dns.NXDOMAIN), client)
        elif len(self._asking) < MAX_ASKING:
            self._numbers = (self._numbers + 1) & 0xFFFFFFFF
            self._asking[self._numbers] = asked, client, now + ASKING_S
            with suppress(BlockingIOError):
                self._dialer.send(words.resolve(self._numbers, asked.name), socket.MSG_DONTWAIT)

    def _answered(self) -> None:
        said = self._dialer.recv(words.MAX_WORDS)
        if not said:
            self._over = True
            return
        number, code, addresses, ttl = words.read_answer(said)
        if number not in self._asking:
            return
        asked, client, _ = self._asking.pop(number)
        if asked.kind != dns.A:
            addresses = []
            if asked.kind != dns.AAAA and code == dns.NOERROR:
                self._reports.tell(f"{asked.name} (type {asked.kind})", KIND, time.monotonic())
        inward = [words.inward(address) for address in addresses]
        self._reply(dns.write_answer(asked, inward, ttl, code), client)

    def _reply(self, message: bytes, client: tuple[str, int]) -> None:
        with suppress(OSError):
            if message:
                self._resolver.sendto(message, client)

    def _attempt(self) -> None:
        """Tell of an attempt to connect to a port that nobody listens on."""
        for _ in range(PIECES):
            _, target, port = _heads(self._attempts.recv(64))
            if port not in self._ports:
                asked = f"{words.outward(target)}:{port}"
                self._reports.tell(asked, PORT, time.monotonic())

    def _datagram(self) -> None:
        """Tell of a datagram to anything but the resolver."""
        for _ in range(PIECES):
            origin, target, port = _heads(self._datagrams.recv(64))
            answer = origin == words.GATEWAY
            if not answer and (target, port) != (words.GATEWAY, 53):
                self._reports.tell(f"{target}:{port}/udp", UDP, time.monotonic())


def _heads(packet: bytes) -> tuple[str, str, int]:
    """Return source, destination and port of a packet, whose heads the kernel has made."""
    length = (packet[0] & 15) * 4 if packet else 0
    if len(packet) < max(20, length + 4):
        return "", "", 0
    (port,) = struct.unpack_from(">H", packet, length + 2)
    return socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20]), port


def main() -> None:
    """Run the process. Its one argument is the number of its listeners."""
    prctl(PR_SET_DUMPABLE, 0)
    count = int(sys.argv[1])
    sockets = [socket.socket(fileno=n) for n in range(RESOLVER, LISTENERS + count)]
    for sock in sockets:
        sock.setblocking(False)
    dialer = socket.socket(fileno=DIALER)
    dialer.setblocking(False)
    watchers = sockets[1], sockets[2]
    Gate(dialer, Reports(REPORTS), sockets[0], watchers, sockets[3:]).run()
