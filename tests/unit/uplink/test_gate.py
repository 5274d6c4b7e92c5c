"""The gate's loop, on sockets of the loopback; the test is its dialer and its guest."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator

import msgspec
import pytest

from skerry.device.uplink import dns, gate, words
from skerry.device.uplink.gate import Bucket, Gate
from skerry.device.uplink.report import Refused, Reports

WAIT_S = 5.0


class Around:
    """A gate in a thread, and everything around it."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        def udp() -> socket.socket:
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind(("127.0.0.1", 0))
            return sock

        self.dialer, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(theirs)
        resolver, attempts, datagrams = udp(), udp(), udp()
        self.guest = udp()
        for sock in (self.dialer, self.guest):
            sock.settimeout(WAIT_S)
        self.guest.connect(resolver.getsockname())
        self.attempts = attempts.getsockname()
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listener: tuple[str, int] = listener.getsockname()
        for sock in (theirs, resolver, attempts, datagrams, listener):
            sock.setblocking(False)
        self.reports, writing = os.pipe2(os.O_DIRECT)
        stack.callback(os.close, self.reports)
        stack.callback(os.close, writing)
        made = Gate(theirs, Reports(writing), resolver, (attempts, datagrams), [listener])
        self.thread = threading.Thread(target=made.run)
        self.thread.start()
        stack.callback(self.thread.join)
        stack.callback(self.dialer.close)

    def refused(self) -> Refused:
        """Wait for what it tells next."""
        return msgspec.json.decode(os.read(self.reports, 4096), type=Refused)


@pytest.fixture
def around() -> Iterator[Around]:
    """A gate."""
    with contextlib.ExitStack() as stack:
        yield Around(stack)


def question(name: str, kind: int = dns.A) -> bytes:
    """A query for records of a kind."""
    return dns.write_question(5, name)[:-4] + struct.pack(">HH", kind, 1)


def test_a_question_goes_to_the_dialer_and_its_answer_to_the_guest(around: Around) -> None:
    """The host's loopback is the gateway to the guest."""
    around.guest.send(question("Web.Test"))
    found = words.read_resolve(around.dialer.recv(512))
    assert found is not None
    assert found[1] == "web.test"
    around.dialer.send(words.answer(found[0], 0, [words.HOST, "93.184.216.34"], 60))
    answer = dns.read_answer(around.guest.recv(512), 5, "web.test")
    assert answer == ((words.GATEWAY, "93.184.216.34"), 60, 0)


@pytest.mark.parametrize(("kind", "told"), [(dns.AAAA, False), (16, True)])
def test_questions_for_anything_else_get_nothing(around: Around, kind: int, told: bool) -> None:
    """No records; for what is no address it is told, which name of what type."""
    around.guest.send(question("web.test", kind))
    found = words.read_resolve(around.dialer.recv(512))
    assert found is not None
    around.dialer.send(words.answer(found[0], 0, ["93.184.216.34"], 60))
    answer = around.guest.recv(512)
    assert struct.unpack(">6H", answer[:12])[3] == 0
    if told:
        assert around.refused() == Refused("web.test (type 16)", gate.KIND)


def test_what_is_no_question_is_answered_so_and_told(around: Around) -> None:
    """Bytes of any kind; it goes on."""
    around.guest.send(b"\0\1" + bytes(20))
    assert around.guest.recv(512)[3] & 15 == dns.FORMERR
    assert around.refused().reason == gate.BAD
    around.guest.send(b"x")
    around.guest.send(question("web.test"))
    assert words.read_resolve(around.dialer.recv(512)) is not None


def test_an_answer_that_nobody_waits_for_is_dropped(around: Around) -> None:
    """Also one twice."""
    around.dialer.send(words.answer(77, 0, ["93.184.216.34"], 60))
    around.guest.send(question("web.test"))
    found = words.read_resolve(around.dialer.recv(512))
    assert found is not None
    for _ in range(2):
        around.dialer.send(words.answer(found[0], dns.NXDOMAIN, [], 0))
    assert around.guest.recv(512)[3] & 15 == dns.NXDOMAIN
    around.guest.settimeout(0.3)
    with pytest.raises(TimeoutError):
        around.guest.recv(512)


def test_more_questions_than_are_answered_are_dropped_and_told(around: Around) -> None:
    """The bucket's size at once; the rest is not even asked for."""
    for _ in range(gate.QUERIES_BURST + 50):
        around.guest.send(question("web.test"))
    assert around.refused().reason == gate.SLOW
    around.dialer.settimeout(0.3)
    asked = 0
    with contextlib.suppress(TimeoutError):
        while around.dialer.recv(512):
            asked += 1
    assert 0 < asked <= gate.QUERIES_BURST + gate.QUERIES_S


def test_a_connection_is_handed_over_as_it_is(around: Around) -> None:
    """With the address that it was meant for; the gate keeps no copy that would hold it open."""
    with socket.create_connection(around.listener) as guest:
        guest.settimeout(WAIT_S)
        said, (descriptor,), _, _ = socket.recv_fds(around.dialer, 16, 1)
        assert said == words.CONNECT
        with socket.socket(fileno=descriptor) as accepted:
            assert accepted.getsockname() == around.listener
        assert guest.recv(1) == b""


def test_what_comes_for_a_port_that_nobody_listens_on_is_told(around: Around) -> None:
    """Of a packet its destination; one for a port that is listened on is none."""
    head = bytes([0x45]) + bytes(11) + socket.inet_aton("192.0.2.2")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as kernel:
        for port in (around.listener[1], 7):
            packet = head + socket.inet_aton(words.GATEWAY) + struct.pack(">HH", 4000, port)
            kernel.sendto(packet + bytes(16), around.attempts)
    assert around.refused() == Refused(f"{words.HOST}:7", gate.PORT)


def test_it_ends_with_its_dialer(around: Around) -> None:
    """So that nothing of a use is left."""
    around.dialer.close()
    around.thread.join(WAIT_S)
    assert not around.thread.is_alive()


def test_a_bucket_fills_again_with_time() -> None:
    """So many at once, then so many a second; a long pause adds no more than a bucket."""
    bucket = Bucket(2, 3)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(100.5), bucket.take(100.5)] == [True, False]
    assert sum(bucket.take(1000.0) for _ in range(9)) == 3
