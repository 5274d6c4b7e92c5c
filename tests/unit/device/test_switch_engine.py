"""The process of a switch: who gets a frame, and what one member can't do to the others."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterator

import pytest

from skerry.channel.transport import TcpPairs
from skerry.device.switch import engine
from skerry.device.switch.engine import FRAME_BOUND, MAX_FRAME, MEMBER, OUT, REPORT, Switch
from skerry.device.switch.table import PORT_ADDRESSES, Table

ALL = b"\xff" * 6


def mac(number: int) -> bytes:
    """Return a station's address."""
    return b"\x02\0\0\0" + number.to_bytes(2, "big")


def frame(to: bytes, source: bytes, text: bytes = b"", length: int = 60) -> bytes:
    """Return a frame as QEMU sends it."""
    body = (to + source + b"\x08\0" + text).ljust(length, b"\0")
    return len(body).to_bytes(4, "big") + body


class Lan:
    """A switch with members 1, 2, 3 …, whose machines' ends are `ends`."""

    def __init__(self, members: int, transport: str = "unix") -> None:
        self._tcp = TcpPairs() if transport == "tcp" else None
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setblocking(False)
        self.switch = Switch(theirs)
        self.ends: dict[int, socket.socket] = {}
        for number in range(1, members + 1):
            self.join(number)

    def join(self, number: int) -> None:
        """Hand a member over as the node does."""
        ours, theirs = self._tcp.pair() if self._tcp else socket.socketpair()
        ours.setblocking(False)
        self.ends[number] = ours
        with theirs:
            socket.send_fds(self.control, [MEMBER.pack(number)], [theirs.fileno()])
        self.turn()

    def turn(self, turns: int = 4) -> None:
        """Let the switch work."""
        for _ in range(turns):
            self.switch.turn(0)

    def send(self, number: int, data: bytes) -> None:
        """Send as a member's machine, and let the switch work."""
        self.ends[number].send(data)
        self.turn()

    def got(self, number: int) -> bytes:
        """Return all that has come for a member."""
        found = b""
        with contextlib.suppress(BlockingIOError):
            while piece := self.ends[number].recv(1 << 20):
                found += piece
        return found

    def said(self) -> list[tuple[int, int]]:
        """Return the reports that have come."""
        found: list[tuple[int, int]] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(REPORT.unpack(self.control.recv(100)))
        return found

    def close(self) -> None:
        """Close everything."""
        for sock in (self.control, *self.ends.values()):
            sock.close()
        for port in self.switch.ports.values():
            port.sock.close()
        if self.switch._control is not None:
            self.switch._control.close()
        if self._tcp is not None:
            self._tcp.close()


@contextlib.contextmanager
def lan(members: int = 3, transport: str = "unix") -> Iterator[Lan]:
    """Run one."""
    made = Lan(members, transport)
    try:
        yield made
    finally:
        made.close()


def test_a_frame_for_a_known_station_goes_to_its_member_only() -> None:
    """Unknown and broadcast goes to all but the sender; once heard, an address has one port."""
    with lan() as net:
        first = frame(mac(2), mac(1))
        net.send(1, first)
        assert (net.got(1), net.got(2), net.got(3)) == (b"", first, first)
        answer = frame(mac(1), mac(2))
        net.send(2, answer)
        assert (net.got(1), net.got(2), net.got(3)) == (answer, b"", b"")
        net.send(1, first)
        assert (net.got(2), net.got(3)) == (first, b"")
        everyone = frame(ALL, mac(3))
        net.send(3, everyone)
        assert (net.got(1), net.got(2), net.got(3)) == (everyone, everyone, b"")
        net.send(1, frame(mac(1), mac(1)))
        assert not net.got(2) + net.got(3), "its own station's frames stay at home"


def test_frames_of_one_buffer_go_each_its_way_whole_and_in_order() -> None:
    """Many at once, to one and to others in between."""
    with lan() as net:
        net.send(2, frame(ALL, mac(2)))
        net.send(3, frame(ALL, mac(3)))
        for number in (1, 2, 3):
            net.got(number)
        two = [frame(mac(2), mac(1), b"%d" % n, 60 + n) for n in range(200)]
        three = [frame(mac(3), mac(1), b"%d" % n, 1500) for n in range(20)]
        for n in range(20):
            net.ends[1].send(b"".join(two[n * 10 : n * 10 + 10]) + three[n])
        net.turn(40)
        assert net.got(2) == b"".join(two)
        assert net.got(3) == b"".join(three)


def test_a_frame_that_comes_in_pieces_waits_and_keeps_nobody_busy() -> None:
    """Half a frame is not polled for: a turn then lasts as long as the pause. Control: whole."""
    with lan() as net:
        whole = frame(ALL, mac(1))
        net.send(1, whole[:30])
        assert not net.got(2)
        begin = time.monotonic()
        net.turn(20)
        assert time.monotonic() - begin >= 10 * engine._PAUSE_MS / 1000
        net.send(1, whole[30:])
        assert net.got(2) == whole


@pytest.mark.parametrize("transport", ["unix", "tcp"])
@pytest.mark.parametrize("seed", range(5))
def test_however_a_stream_is_cut_up_the_same_frames_come_out(seed: int, transport: str) -> None:
    """Pieces of any length from two members at once; each stream arrives whole and in order."""
    chance = random.Random(seed)
    with lan(3, transport) as net:
        for number in (1, 2, 3):
            net.send(number, frame(ALL, mac(number)))
        deadline = time.monotonic() + 10
        while len(net.switch.table) < 3 and time.monotonic() < deadline:
            net.turn()
        time.sleep(0.05)  # what was sent to all is on its way
        net.got(1), net.got(2), net.got(3)
        streams = {
            sender: b"".join(
                frame(mac(3), mac(sender), chance.randbytes(8), chance.randint(60, 3000))
                for _ in range(30)
            )
            for sender in (1, 2)
        }
        left, got = dict(streams), b""
        while any(left.values()):
            sender = chance.choice([number for number, data in left.items() if data])
            size = chance.randint(1, 5000)
            net.ends[sender].send(left[sender][:size])
            left[sender] = left[sender][size:]
            net.turn(chance.randint(0, 3))
            got += net.got(3)
        while len(got) < sum(map(len, streams.values())) and time.monotonic() < deadline:
            net.turn()
            got += net.got(3)
        for sender, data in streams.items():
            assert b"".join(_frames(got, mac(sender))) == data
        assert not net.got(1) + net.got(2)


def _frames(data: bytes, source: bytes) -> Iterator[bytes]:
    """Yield the frames of one sender."""
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        if data[10:16] == source:
            yield data[:end]
        data = data[end:]


def test_a_member_that_does_not_read_costs_the_others_nothing() -> None:
    """What does not fit into its queue is dropped and counted; a third gets everything."""
    with lan() as net:
        for number in (2, 3):
            net.send(number, frame(ALL, mac(number)))
        net.got(1), net.got(2), net.got(3)
        data = frame(mac(2), mac(1), length=1500)
        for _ in range(2000):
            net.ends[1].send(data)
            net.turn(1)
        assert net.switch.ports[2].dropped > 0
        other = frame(mac(3), mac(1))
        net.send(1, other)
        assert net.got(3) == other
        kept = net.got(2)
        assert kept == data * (len(kept) // len(data)), "what came is whole frames"
        net.switch._reported = 0.0
        net.turn()
        dropped = net.switch.ports[2].dropped
        assert dropped + len(kept) // len(data) == 2000
        assert (2, dropped) in net.said()


BAD = {
    "too short": (13).to_bytes(4, "big") + b"x" * 13,
    "too long": (FRAME_BOUND + 1).to_bytes(4, "big") + b"x" * 60,
    "no length": b"\xff" * 64,
}


@pytest.mark.parametrize("what", BAD)
def test_who_sends_what_is_no_frame_is_shut_out(what: str) -> None:
    """Its socket is shut down and the node told; what it had sent before went its way."""
    with lan() as net:
        good = frame(ALL, mac(1))
        net.send(1, good + BAD[what])
        assert net.got(2) == good
        assert (1, OUT) in net.said()
        with pytest.raises(ConnectionResetError):
            net.ends[1].recv(1)
        more = frame(ALL, mac(2))
        net.send(2, more)
        assert net.got(3).endswith(more)


def test_a_frame_that_is_too_long_to_pass_on_is_dropped_alone() -> None:
    """Between the limit and QEMU's own bound it is counted, and the next one goes on."""
    with lan() as net:
        short = frame(ALL, mac(1))
        net.send(1, short + frame(ALL, mac(1), length=MAX_FRAME + 1) + short)
        net.turn(10)
        assert net.got(2) == 2 * short
        assert net.switch.ports[1].dropped == 1
        longest = frame(ALL, mac(1), length=MAX_FRAME)
        net.send(1, longest)
        assert net.got(2) == longest


def test_a_member_that_was_cut_is_gone_from_the_switch() -> None:
    """Nothing more comes from it or to it, and its addresses are forgotten."""
    with lan() as net:
        net.send(2, frame(ALL, mac(2)))
        net.ends[2].shutdown(socket.SHUT_RDWR)
        net.turn()
        assert set(net.switch.ports) == {1, 3}
        assert len(net.switch.table) == 0
        net.got(3)
        lost = frame(mac(2), mac(1))
        net.send(1, lost)
        assert net.got(3) == lost, "nobody is known there, so all others get it"


def test_the_switch_goes_on_without_its_node_and_another_process_after_it() -> None:
    """The control socket ends and frames go on; whole frames are left to whoever comes next."""
    with lan() as net:
        net.control.close()
        data = frame(ALL, mac(1))
        net.send(1, data)
        assert net.got(2) == data
        net.ends[1].send(data[:40])
        net.turn()
        net.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        heir = Switch(theirs)
        for number, port in net.switch.ports.items():
            heir.add(number, port.sock.detach())
        net.switch.ports.clear()
        net.switch = heir
        net.ends[1].send(data[40:])
        net.turn()
        assert net.got(2) == data


def test_a_port_fills_its_own_part_of_the_table_only() -> None:
    """A flood of addresses at one port leaves what was heard at another."""
    table = Table()
    table.hear(mac(1), 1)
    for number in range(100, 1000):
        table.hear(mac(number), 2)
    assert table.port_of(mac(1)) == 1
    assert len(table) == PORT_ADDRESSES + 1
    assert table.port_of(mac(999)) == 2
    table.hear(mac(999), 1)
    assert table.port_of(mac(999)) == 1
    table.hear(ALL, 1)
    assert table.port_of(ALL) is None
    table.remove(2)
    assert len(table) == 2
