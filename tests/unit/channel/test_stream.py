"""Laws 1 and 3 on stream bridges, with real processes as the machines, over both transports."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.channel import transport
from skerry.channel.stream import StreamBridge, StreamBridges, queued
from skerry.channel.transport import Transport, passes_descriptor, unix_pair_holds
from skerry.errors import LimitReached, TransportError

TRANSPORTS: list[Transport] = ["tcp"]
if unix_pair_holds():
    TRANSPORTS.append("unix")

WRITER = """
import os, sys
while True:
    try:
        os.write(0, b'x' * 65536)
    except OSError:
        sys.exit(7)
"""

READER = """
import os, sys
print('ready', flush=True)
sys.stdin.readline()
got = 0
while True:
    try:
        data = os.read(int(sys.argv[1]), 1 << 20)
    except OSError:
        break
    if not data:
        break
    got += len(data)
print(got, flush=True)
"""


@pytest.fixture(params=TRANSPORTS, scope="module")
def bridges(request: pytest.FixtureRequest) -> Iterator[StreamBridges]:
    """Makers of bridges, one for each transport that this host has."""
    made = StreamBridges(request.param)
    yield made
    made.close()


@pytest.fixture
def bridge(bridges: StreamBridges) -> Iterator[StreamBridge]:
    """One fresh stream."""
    made = bridges.mint()
    yield made
    made.cut()


def _sockets(bridge: StreamBridge) -> tuple[socket.socket, socket.socket]:
    """Take both ends over as sockets of this process."""
    ends = [socket.socket(fileno=os.dup(bridge.ends[side])) for side in ("source", "sink")]
    bridge.handed_over()
    return ends[0], ends[1]


def _wait_full(descriptor: int) -> int:
    """Wait until the queue behind a descriptor no longer grows, and say how full it is."""
    seen = -1
    deadline = time.monotonic() + 10
    while (now := queued(descriptor)) != seen or not now:
        assert time.monotonic() < deadline
        seen = now
        time.sleep(0.05)
    return seen


def _descriptors() -> set[str]:
    """The descriptors that this process holds."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def _wait_queued(descriptor: int, count: int) -> None:
    """Wait until that many bytes are queued: TCP delivers a moment later."""
    deadline = time.monotonic() + 5
    while queued(descriptor) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_bytes_cross_both_ways(bridge: StreamBridge) -> None:
    """What either end writes, the other reads."""
    one, other = _sockets(bridge)
    with one, other:
        one.sendall(b"there")
        assert other.recv(100) == b"there"
        other.sendall(b"back")
        assert one.recv(100) == b"back"


def test_cut_counts_and_takes_the_queued_bytes(bridge: StreamBridge) -> None:
    """After the cut both readers see the end and none of what was queued, either way."""
    one, other = _sockets(bridge)
    with one, other:
        one.sendall(b"x" * 1000)
        other.sendall(b"y" * 500)
        _wait_queued(other.fileno(), 1000)
        _wait_queued(one.fileno(), 500)
        assert bridge.cut() == 1500
        for end in (one, other):
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                for _ in range(3):
                    end.send(b"late")
            assert end.recv(100) == b""


def test_cut_takes_the_urgent_byte(bridge: StreamBridge) -> None:
    """A byte sent out of band does not survive the cut beside the queue."""
    one, other = _sockets(bridge)
    with one, other:
        other.send(b"mark")
        one.send(b"!", socket.MSG_OOB)
        _wait_queued(one.fileno(), 4)
        bridge.cut()
        with contextlib.suppress(OSError):
            assert other.recv(1, socket.MSG_OOB | socket.MSG_DONTWAIT) == b""
        assert other.recv(100) == b""


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "control"])
def test_a_frozen_sink_reads_nothing_after_the_cut(bridges: StreamBridges, cut: bool) -> None:
    """A sink frozen before a full queue gets zero bytes after its thaw; uncut it gets them."""
    bridge = bridges.mint()
    source, sink = bridge.ends["source"], bridge.ends["sink"]
    with (
        subprocess.Popen([sys.executable, "-c", WRITER], stdin=source) as writer,
        subprocess.Popen(
            [sys.executable, "-c", READER, str(sink)],
            pass_fds=[sink],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as reader,
    ):
        try:
            assert reader.stdout is not None
            assert reader.stdin is not None
            assert reader.stdout.readline() == b"ready\n"
            reader.send_signal(signal.SIGSTOP)
            full = _wait_full(sink)
            assert full > 1000
            bridge.handed_over()
            if cut:
                assert bridge.cut() >= full
                assert writer.wait(10) == 7
            reader.send_signal(signal.SIGCONT)
            reader.stdin.write(b"\n")
            reader.stdin.flush()
            time.sleep(0.1)
            writer.kill()
            writer.wait()
            bridge.cut()
            got = int(reader.stdout.readline())
            assert (got == 0) is cut
        finally:
            writer.kill()
            reader.kill()


def test_cut_ends_a_stream_in_full_flow(bridges: StreamBridges) -> None:
    """While one process writes and another reads at full speed, cut returns, both see the end."""
    for _ in range(5):
        bridge = bridges.mint()
        sink = bridge.ends["sink"]
        with (
            subprocess.Popen([sys.executable, "-c", WRITER], stdin=bridge.ends["source"]) as writer,
            subprocess.Popen(
                [sys.executable, "-c", READER, str(sink)],
                pass_fds=[sink],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as reader,
        ):
            bridge.handed_over()
            try:
                assert reader.stdin is not None
                reader.stdin.write(b"\n")
                reader.stdin.flush()
                time.sleep(0.1)
                started = time.monotonic()
                bridge.cut()
                assert time.monotonic() - started < 1
                assert writer.wait(10) == 7
                assert reader.wait(10) == 0
            finally:
                writer.kill()
                reader.kill()


def test_no_descriptor_passes(bridge: StreamBridge) -> None:
    """A memfd sent over a stream does not arrive, in either direction."""
    one, other = _sockets(bridge)
    with one, other:
        assert not passes_descriptor(one, other)
        assert not passes_descriptor(other, one)


def test_control_a_plain_pair_passes_a_descriptor() -> None:
    """The same attempt succeeds over a plain Unix pair."""
    one, other = socket.socketpair()
    with one, other:
        assert passes_descriptor(one, other)


def test_cut_is_idempotent_and_closes_everything(bridges: StreamBridges) -> None:
    """The second cut takes nothing, and no descriptor is left behind."""
    bridges.mint().cut()
    before = _descriptors()
    bridge = bridges.mint()
    assert len(_descriptors()) == len(before) + 4
    bridge.cut()
    assert bridge.cut() == 0
    assert not bridge.ends
    assert _descriptors() == before


def test_cut_before_hand_over_closes_the_ends(bridge: StreamBridge) -> None:
    """A bridge that no machine took is cut as well, with what was queued in it."""
    os.write(bridge.ends["source"], b"abc")
    _wait_queued(bridge.ends["sink"], 3)
    assert bridge.cut() == 3


def test_each_tcp_pair_has_a_namespace_of_its_own() -> None:
    """Two pairs have the same address and port range, and neither is reachable from here."""
    bridges = StreamBridges("tcp")
    try:
        made = bridges.mint()
        with socket.socket(fileno=os.dup(made.ends["sink"])) as end:
            address = end.getsockname()
        with socket.socket() as outside, pytest.raises(ConnectionRefusedError):
            outside.connect(address)
        cookies = set()
        other = bridges.mint()
        for bridge in (made, other):
            with socket.socket(fileno=os.dup(bridge.ends["sink"])) as end:
                cookies.add(end.getsockopt(socket.SOL_SOCKET, 71, 8))  # SO_NETNS_COOKIE
            bridge.cut()
        assert len(cookies) == 2
    finally:
        bridges.close()


def test_the_maker_of_tcp_pairs_starts_again() -> None:
    """When the maker was killed, one stream is refused and the next is made."""
    bridges = StreamBridges("tcp")
    try:
        bridges.mint().cut()
        process = bridges._tcp._process
        assert process is not None
        process.kill()
        process.wait()
        with pytest.raises(TransportError):
            bridges.mint()
        bridges.mint().cut()
    finally:
        bridges.close()


def test_without_the_socket_option_auto_is_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an older kernel `auto` takes TCP and `unix` is refused, never weakened."""
    monkeypatch.setattr(transport, "SO_PASSRIGHTS", 9999)
    assert StreamBridges().transport == "tcp"
    with pytest.raises(TransportError, match="can carry descriptors"):
        StreamBridges("unix")


def test_a_pair_that_passes_descriptors_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe tries for real: an option that is accepted and does nothing does not count."""
    monkeypatch.setattr(transport, "SO_PASSRIGHTS", socket.SO_BROADCAST)
    assert StreamBridges().transport == "tcp"


def test_out_of_descriptors_is_a_named_limit() -> None:
    """With no descriptor left a mint is `LimitReached` and leaves nothing behind."""
    code = """
import os, resource
from skerry.channel.stream import StreamBridges
from skerry.errors import LimitReached
bridges = StreamBridges()
resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
held = []
try:
    while True:
        held.append(bridges.mint())
except LimitReached:
    for b in held: b.cut()
    bridges.mint().cut()
    print('limit', len(held))
"""
    root = Path(transport.__file__).parents[2]
    got = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert got.stdout.startswith("limit")
    assert issubclass(LimitReached, Exception)
