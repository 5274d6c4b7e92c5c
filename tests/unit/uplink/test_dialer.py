"""The dialer as a process: what a gate in an attacker's hands can and can't have of it.

Its destinations are servers on the loopback, which the allow-list names literally; what the guest
asked for is the address of a socket's own end, as at the gate, so those are pairs of the loopback.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Protocol

import pytest

from skerry.device.uplink import allow, dialer, dns, words
from tests.support.uplink import WAIT_S, BareDialer, ByteServer, NameServer


class Gated(Protocol):
    """A dialer whose gate the test is."""

    gate: socket.socket


@pytest.fixture
def server() -> Iterator[ByteServer]:
    """What may be reached."""
    made = ByteServer()
    yield made
    made.close()


def knock(address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Return a guest's end, and the end that a gate accepted on this address and port."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(1)
    guest = socket.create_connection((address, port))
    accepted, _ = listener.accept()
    listener.close()
    guest.settimeout(WAIT_S)
    return guest, accepted


def hand_over(made: Gated, accepted: socket.socket) -> None:
    """Do as the gate does."""
    with accepted:
        socket.send_fds(made.gate, [words.CONNECT], [accepted.fileno()])


def test_a_listed_destination_is_reached_and_another_is_not() -> None:
    """The guest's connection to 127.0.0.2 is that to the server there; to 127.0.0.3 it is reset.

    Both servers are there, so it is the list that decides.
    """
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(contextlib.closing(BareDialer(["127.0.0.2:7801"])))
        for address in ("127.0.0.2", "127.0.0.3"):
            # The gate's listener has the same address: it is in another namespace in truth.
            guest, accepted = knock(address, 7801)
            far = stack.enter_context(socket.create_server((address, 7801)))
            far.settimeout(2)
            hand_over(made, accepted)
            if address == "127.0.0.2":
                there, _ = far.accept()
                there.sendall(b"hello")
                assert guest.recv(5) == b"hello"
                guest.sendall(b"back")
                assert there.recv(4) == b"back"
                guest.shutdown(socket.SHUT_WR)
                assert there.recv(1) == b""
                there.sendall(b"more")
                there.close()
                assert guest.recv(9) == b"more"
                assert guest.recv(9) == b""
            else:
                with pytest.raises(ConnectionResetError):
                    guest.recv(1)
                with pytest.raises(TimeoutError):
                    far.accept()
                refused = made.refused()
                assert (refused.asked, refused.reason) == (f"{address}:7801", allow.NOT_ALLOWED)
            guest.close()


def test_what_is_no_connection_is_dropped(server: ByteServer) -> None:
    """Files, Unix sockets, no descriptor, several of them, and words that are none; it goes on."""
    made = BareDialer([f"127.0.0.1:{server.port}"])
    one, other = socket.socketpair()
    null = os.open(os.devnull, os.O_RDONLY)
    made.gate.send(words.resolve(8, "evil.test"))
    assert made.gate.recv(512)
    held = len(os.listdir(f"/proc/{made.process.pid}/fd"))  # noqa: PTH208
    socket.send_fds(made.gate, [words.CONNECT], [null])
    socket.send_fds(made.gate, [words.CONNECT], [one.fileno()])
    with contextlib.suppress(OSError):
        socket.send_fds(made.gate, [words.CONNECT], [null] * 50)
    for junk in (words.CONNECT, b"R", b"R\0\0\0\1", b"R\0\0\0\1\xff\xfe", b"x" * 4000, b"\0"):
        made.gate.send(junk)
    made.gate.send(words.resolve(9, "evil.test"))
    assert words.read_answer(made.gate.recv(512))[:2] == (9, dns.NXDOMAIN)
    assert len(os.listdir(f"/proc/{made.process.pid}/fd")) <= held  # noqa: PTH208
    for sock in (one, other):
        sock.close()
    os.close(null)
    made.close()


def test_a_name_that_is_not_listed_is_never_asked_for() -> None:
    """So nothing can be told by asking; a listed one is asked for once while it stands."""
    names = NameServer({"web.test": ["93.184.216.34"], "evil.test": ["93.184.216.35"]})
    made = BareDialer(["web.test:80"], [names.address])
    for number, name in enumerate(("evil.test", "secret.web.test", "web.test", "web.test")):
        made.gate.send(words.resolve(number, name))
    answers = [words.read_answer(made.gate.recv(512)) for _ in range(4)]
    assert [answer[1] for answer in sorted(answers)] == [3, 3, 0, 0]
    assert names.asked == ["web.test"]
    assert made.refused().asked == "evil.test"
    made.close()
    names.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "192.168.0.1"])
def test_a_name_that_comes_to_stand_for_the_inside_is_refused(address: str) -> None:
    """DNS rebinding: first a public address, and after its time one of the host's networks.

    The control: as long as it is public the answer is given."""
    names = NameServer({"web.test": ["93.184.216.34"], "turned.test": [address]})
    made = BareDialer(["web.test:80", "turned.test:80"], [names.address])
    made.gate.send(words.resolve(1, "web.test"))
    assert words.read_answer(made.gate.recv(512))[:3] == (1, 0, ["93.184.216.34"])
    made.gate.send(words.resolve(2, "turned.test"))
    assert words.read_answer(made.gate.recv(512))[:3] == (2, dns.NXDOMAIN, [])
    refused = made.refused()
    assert (refused.asked, refused.reason) == (f"turned.test ({address})", allow.NOT_PUBLIC)
    made.close()
    names.close()


def test_without_a_name_server_a_name_fails_and_nothing_hangs() -> None:
    """No resolver at all: at once. One that is not there: after its tries."""
    made = BareDialer(["web.test:80"])
    made.gate.send(words.resolve(1, "web.test"))
    assert words.read_answer(made.gate.recv(512))[:2] == (1, dns.SERVFAIL)
    made.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        made = BareDialer(["web.test:80"], ["{}:{}".format(*mute.getsockname())])
        made.gate.send(words.resolve(1, "web.test"))
        made.gate.send(words.resolve(2, "evil.test"))
        assert words.read_answer(made.gate.recv(512))[:2] == (2, dns.NXDOMAIN)
        assert words.read_answer(made.gate.recv(512))[:2] == (1, dns.SERVFAIL)
        made.close()


def test_the_rate_holds(server: ByteServer) -> None:
    """A megabyte at 500 kB a second takes its time; the control, without a rate, does not."""
    took = []
    for rate in (0, 500_000):
        made = BareDialer(["127.0.0.2:7802"], rate=rate)
        guest, accepted = knock("127.0.0.2", 7802)
        with socket.create_server(("127.0.0.2", 7802)) as far:
            hand_over(made, accepted)
            there, _ = far.accept()
            sender = threading.Thread(target=there.sendall, args=(bytes(1_000_000),))
            began = time.monotonic()
            sender.start()
            got = 0
            while got < 1_000_000:
                got += len(guest.recv(1 << 16))
            took.append(time.monotonic() - began)
            sender.join()
            there.close()
        guest.close()
        made.close()
    assert took[0] < 1 < 1.6 < took[1] < 4


def test_connections_are_counted_and_one_more_is_not_made() -> None:
    """At the limit no other is made, and the trail is told; what stands goes on."""
    made = BareDialer(["127.0.0.2:7803"])
    guest, accepted = knock("127.0.0.2", 7803)
    with contextlib.ExitStack() as stack:
        far = stack.enter_context(socket.create_server(("127.0.0.2", 7803), backlog=600))
        far.settimeout(1)
        theres = []
        with accepted:  # each copy that is handed over is a connection of its own
            for _ in range(dialer.MAX_CONNECTIONS + 1):
                socket.send_fds(made.gate, [words.CONNECT], [accepted.fileno()])
                with contextlib.suppress(TimeoutError):
                    theres.append(stack.enter_context(far.accept()[0]))
        assert len(theres) == dialer.MAX_CONNECTIONS
        assert made.refused().reason == dialer.FULL
        theres[0].sendall(b"on")
        assert guest.recv(2) == b"on"
        made.close()
    guest.close()
