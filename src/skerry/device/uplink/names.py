"""What the names of an uplink stand for: asked of the host's name servers, one query for a name.

The rule: only a name on the allow-list is ever asked for, so a guest can send nothing out by asking
for names; an answer must come from the server that was asked, with the number that was drawn.
"""

from __future__ import annotations

import secrets
import select
import socket
import time
from collections.abc import Callable

from skerry.device.uplink import dns
from skerry.device.uplink.allow import MAX_TTL_S, NOT_ALLOWED, NOT_PUBLIC, AllowList

TRY_S, TRIES = 2.0, 3
"""How long a name server may take, and how often one is asked, the next one each time."""

MAX_WAITING = 64
"""Questions of the guest that wait for the same answer; one more gets a failure."""

NO_ANSWER = "no name server has an answer"

Answered = Callable[[int, int, list[str], int], None]
"""Takes a question's number, DNS's code, the addresses and for how many seconds they stand."""

Tell = Callable[[str, str, float], None]
"""Takes a name that is refused, why, and the time."""


class _Asking:
    """A name that is being asked for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tries = 0
        self.until = 0.0
        self.number = 0
        self.sock: socket.socket | None = None
        self.waiting: list[int] = []


class Names:
    """The resolver: its sockets are in `poll`, whose owner calls `ready` and `tick`."""

    def __init__(
        self,
        allow: AllowList,
        servers: list[tuple[str, int]],
        poll: select.epoll,
        answered: Answered,
        tell: Tell,
    ) -> None:
        self._allow, self._servers, self._poll = allow, servers, poll
        self._answered, self._tell = answered, tell
        self._asking: dict[str, _Asking] = {}

    def resolve(self, number: int, untrusted_name: str, now: float) -> None:
        """Answer a question, now or later."""
        name = untrusted_name
        if not self._allow.knows(name):
            self._tell(name, NOT_ALLOWED, now)
            self._answered(number, dns.NXDOMAIN, [], 0)
            return
        addresses, ttl = self._allow.pinned(name, now)
        if addresses:
            self._answered(number, dns.NOERROR, addresses, ttl)
            return
        asking = self._asking.setdefault(name, _Asking(name))
        if len(asking.waiting) >= MAX_WAITING:
            self._answered(number, dns.SERVFAIL, [], 0)
            return
        asking.waiting.append(number)
        if asking.sock is None:
            self._ask(asking, now)

    def ready(self, descriptor: int) -> None:
        """Read what a server says on this descriptor."""
        for asking in list(self._asking.values()):
            if asking.sock is not None and asking.sock.fileno() == descriptor:
                self._read(asking)

    def tick(self, now: float) -> None:
        """Ask again where no answer has come in time."""
        for asking in [asking for asking in self._asking.values() if asking.until < now]:
            self._ask(asking, now)

    def _ask(self, asking: _Asking, now: float) -> None:
        """Ask the next server, from a port that nobody knows; fail after the last try."""
        self._forget(asking)
        while self._servers and asking.tries < TRIES:
            server = self._servers[asking.tries % len(self._servers)]
            asking.tries += 1
            asking.until, asking.number = now + TRY_S, secrets.randbelow(1 << 16)
            asking.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            asking.sock.setblocking(False)
            try:
                asking.sock.connect(server)
                asking.sock.send(dns.write_question(asking.number, asking.name))
            except OSError:
                asking.sock.close()
                asking.sock = None
                continue
            self._poll.register(asking.sock, select.EPOLLIN)
            return
        self._tell(asking.name, NO_ANSWER, now)
        self._finish(asking, dns.SERVFAIL, [], 0)

    def _read(self, asking: _Asking) -> None:
        assert asking.sock is not None
        now = time.monotonic()
        try:
            untrusted = asking.sock.recv(dns.MAX_MESSAGE + 1)
            answer = dns.read_answer(untrusted, asking.number, asking.name)
        except (BlockingIOError, dns.Malformed):
            return  # the true answer may come yet
        except OSError:  # nobody is there
            self._ask(asking, now)
            return
        good = self._allow.pin(asking.name, answer.addresses, answer.ttl, now)
        for address in sorted(set(answer.addresses) - set(good)):
            self._tell(f"{asking.name} ({address})", NOT_PUBLIC, now)
        refused = bool(answer.addresses) and not good
        code = dns.NXDOMAIN if refused else answer.code
        _, ttl = self._allow.pinned(asking.name, now)
        self._finish(asking, code, good, min(ttl, MAX_TTL_S))

    def _finish(self, asking: _Asking, code: int, addresses: list[str], ttl: int) -> None:
        self._forget(asking)
        del self._asking[asking.name]
        for number in asking.waiting:
            self._answered(number, code, addresses, ttl)

    def _forget(self, asking: _Asking) -> None:
        if asking.sock is not None:
            self._poll.unregister(asking.sock)
            asking.sock.close()
            asking.sock = None
