"""What an uplink leads to in tests, without an internet: a name server and a server of bytes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

import skerry
from skerry.device.uplink import dialer, dns
from skerry.device.uplink.report import Refused
from skerry.node.helpers import command

SOURCE = str(Path(skerry.__file__).parent.parent)
PACKAGES = str(Path(msgspec.__file__).parent.parent)
WAIT_S = 10.0


class NameServer:
    """Answers for a zone, name to addresses, which a test may change; `asked` are the questions."""

    def __init__(self, zone: Mapping[str, Sequence[str]], ttl: int = 60) -> None:
        self.zone, self.ttl = dict(zone), ttl
        self.asked: list[str] = []
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._sock.getsockname())
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            untrusted, client = self._sock.recvfrom(dns.MAX_MESSAGE)
            if untrusted == b"end":
                return
            asked = dns.read_question(untrusted)
            self.asked.append(asked.name)
            found = list(self.zone.get(asked.name, ()))
            code = dns.NOERROR if asked.name in self.zone else dns.NXDOMAIN
            self._sock.sendto(dns.write_answer(asked, found, self.ttl, code), client)

    def close(self) -> None:
        """Answer no more."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"end", self._sock.getsockname())
        self._thread.join()
        self._sock.close()


HTTP = b"HTTP/1.0 200 OK\r\n\r\nhello\n"
"""What a web server says, whatever it is asked."""


class ByteServer:
    """Greets whoever connects with its name, then sends zeros for as long as they are taken.

    `ended` is set when a connection that took zeros is over; `sent` counts what was sent.
    """

    def __init__(self, greeting: bytes = b"hello\n", endless: bool = False) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = self.sent = 0
        self.ended = threading.Event()
        self._greeting, self._endless = greeting, endless
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._greet, args=(accepted,), daemon=True).start()

    def _greet(self, accepted: socket.socket) -> None:
        with accepted, contextlib.suppress(OSError):
            if self._greeting.startswith(b"HTTP"):
                accepted.recv(4096)
            accepted.sendall(self._greeting)
            while self._endless:
                self.sent += accepted.send(bytes(1 << 16))
        self.ended.set()

    def close(self) -> None:
        """Accept no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class BareDialer:
    """A dialer without a jail; the test is its gate."""

    def __init__(self, allow: Sequence[str], resolvers: Sequence[str] = (), rate: int = 0) -> None:
        self.gate, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.gate.settimeout(WAIT_S)
        self.reports, writing = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        orders = dialer.Orders(tuple(allow), tuple(resolvers), rate)
        lent = [fcntl.fcntl(n, fcntl.F_DUPFD, 10) for n in (theirs.fileno(), writing)]
        wiring = f"import os, sys; sys.path.append({PACKAGES!r}); " + "".join(
            f"os.dup2({end}, {n}); os.close({end}); "
            for end, n in zip(lent, (dialer.GATE, dialer.REPORTS), strict=True)
        )
        argv = command(dialer.__name__, SOURCE)
        argv = [
            sys.executable,
            *argv[1:-1],
            wiring + argv[-1],
            msgspec.json.encode(orders).decode(),
        ]
        self.process = subprocess.Popen(argv, pass_fds=lent)
        for number in (*lent, writing):
            os.close(number)
        theirs.close()

    def close(self) -> None:
        """Be a gate that is gone: it ends by itself."""
        self.gate.close()
        assert self.process.wait(WAIT_S) == 0
        os.close(self.reports)

    def refused(self) -> Refused:
        """Wait for what it refuses next."""
        return msgspec.json.decode(os.read(self.reports, 4096), type=Refused)
