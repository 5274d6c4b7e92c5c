"""One-way streams over real pipes and a real relay process: what crosses, what a cut leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from skerry.channel.one_way import PIPE_BYTES, OneWayBridge
from skerry.channel.stream import StreamBridges, adopt, queued
from skerry.deaths import DEATH_S
from skerry.errors import TransportError
from skerry.monitor.protocols import Overflow
from tests.support.relays import BareRelay, BareRelays

FULL = 1 << 20
"""More than both pipes hold."""


class Ends:
    """A bridge whose machines are this test: `source` writes, `sink` reads, neither blocks."""

    def __init__(self, bridge: OneWayBridge, relay: BareRelay) -> None:
        self.bridge, self.relay = bridge, relay
        self.source, self.sink = (os.dup(bridge.ends[side]) for side in ("source", "sink"))
        bridge.handed_over()
        for end in (self.source, self.sink):
            os.set_blocking(end, False)

    def write(self, data: bytes) -> int:
        """Write what goes in now; return how much."""
        try:
            return os.write(self.source, data)
        except BlockingIOError:
            return 0

    async def read(self, count: int) -> bytes:
        """Read so many bytes, as they come."""
        got = b""
        for _ in range(2000):
            with contextlib.suppress(BlockingIOError):
                got += os.read(self.sink, count - len(got))
            if len(got) == count:
                return got
            await asyncio.sleep(0.005)
        raise AssertionError(f"only {len(got)} of {count} bytes came")

    async def fill(self) -> int:
        """Write until nothing goes in any more; return how much did."""
        written, idle = 0, 0
        while idle < 20:
            more = self.write(b"x" * 65536)
            written, idle = written + more, 0 if more else idle + 1
            if written > 64 << 20:
                break
            await asyncio.sleep(0 if more else 0.01)
        return written

    def close(self) -> None:
        """Close what is left."""
        self.bridge.cut()
        for end in (self.source, self.sink):
            with contextlib.suppress(OSError):
                os.close(end)


@contextlib.asynccontextmanager
async def opened(overflow: Overflow = "block") -> AsyncIterator[Ends]:
    """Give a one-way stream that carries bytes."""
    relays = BareRelays()
    bridges = StreamBridges(relay=relays.start)
    bridge = bridges.mint(True, overflow)
    await bridge.open(1)
    ends = Ends(bridge, relays.started[1])
    try:
        ends.write(b"ready")
        assert await ends.read(5) == b"ready"
        yield ends
    finally:
        ends.close()
        bridges.close()
        await ends.relay.exited


def play(scene: Callable[[Ends], Awaitable[None]], overflow: Overflow = "block") -> None:
    """Run one scene with a stream."""

    async def run() -> None:
        async with opened(overflow) as ends:
            await scene(ends)

    asyncio.run(run())


@pytest.mark.parametrize("overflow", ["block", "drop"])
def test_bytes_cross_in_order(overflow: Overflow) -> None:
    """What is written comes out, all of it where the sink keeps up."""

    async def scene(ends: Ends) -> None:
        for n in range(50):
            piece = bytes([n]) * 4000
            assert ends.write(piece) == len(piece)
            assert await ends.read(len(piece)) == piece

    play(scene, overflow)


def test_the_kernel_lets_each_end_go_one_way_only() -> None:
    """The source's end can't be read, the sink's can't be written, and no twin can be written."""

    async def scene(ends: Ends) -> None:
        twins = ends.bridge.twins
        for end in (ends.sink, *twins.values()):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(end, b"back")
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.read(ends.source, 1)
        ends.write(b"forth")
        assert await ends.read(5) == b"forth"

    play(scene)


def test_block_lets_the_source_wait_and_loses_nothing() -> None:
    """A sink that does not read stops the source; when it reads again all comes, in order."""

    async def scene(ends: Ends) -> None:
        written = await ends.fill()
        assert written <= 3 * PIPE_BYTES, "the source was stopped"
        assert await ends.read(written) == b"x" * written
        assert ends.write(b"more") == 4
        assert await ends.read(4) == b"more"

    play(scene)


def test_drop_never_lets_the_source_wait() -> None:
    """A sink that does not read loses bytes; what comes later arrives when it reads again."""

    async def scene(ends: Ends) -> None:
        assert await ends.fill() > 64 << 20
        await asyncio.sleep(0.1)
        got = await ends.read(queued(ends.sink))
        assert 0 < len(got) <= PIPE_BYTES
        ends.write(b"later")
        assert await ends.read(5) == b"later"

    play(scene, "drop")


@pytest.mark.parametrize("overflow", ["block", "drop"])
def test_the_source_learns_nothing_of_the_sinks_end(overflow: Overflow) -> None:
    """With the sink's descriptors closed the source meets what a sink that does not read is."""

    async def scene(ends: Ends) -> None:
        os.close(ends.sink)
        written = await ends.fill()
        assert written > 64 << 20 if overflow == "drop" else written <= 3 * PIPE_BYTES
        poll = select.poll()
        poll.register(ends.source, select.POLLOUT)
        assert not [event for _, event in poll.poll(0) if event & (select.POLLERR | select.POLLHUP)]
        assert not ends.relay.exited.done()

    play(scene, overflow)


def test_a_cut_leaves_no_byte_for_the_sink() -> None:
    """Both pipes full and the sink frozen: after the cut it finds the end, and nothing before."""

    async def scene(ends: Ends) -> None:
        written = await ends.fill()
        assert queued(ends.sink) > 0, "the control: bytes wait for the sink"
        assert ends.bridge.cut() == written
        assert os.read(ends.sink, FULL) == b""
        with pytest.raises(BrokenPipeError):
            os.write(ends.source, b"late")

    play(scene)


def test_no_byte_crosses_after_a_cut_under_fire() -> None:
    """A source that writes all the while: whatever is read after the cut is the end."""

    async def scene(ends: Ends) -> None:
        stop = asyncio.Event()

        def flood() -> None:
            os.set_blocking(ends.source, True)
            with contextlib.suppress(BrokenPipeError):
                while not stop.is_set():
                    os.write(ends.source, b"y" * 4096)

        flooding = asyncio.ensure_future(asyncio.to_thread(flood))
        await asyncio.sleep(0.05)
        with contextlib.suppress(BlockingIOError):
            os.read(ends.sink, 10 * PIPE_BYTES)
        ends.bridge.cut()
        assert os.read(ends.sink, FULL) == b""
        stop.set()
        await flooding

    for _ in range(20):
        play(scene)


def test_a_stopped_relay_is_cut_all_the_same() -> None:
    """A relay that does not run can't hold up a cut."""

    async def scene(ends: Ends) -> None:
        os.kill(ends.relay.process.pid, signal.SIGSTOP)
        ends.write(b"held")
        begin = time.monotonic()
        assert ends.bridge.cut() == 4
        assert time.monotonic() - begin < DEATH_S
        assert os.read(ends.sink, 10) == b""

    play(scene)


def test_a_sink_that_lets_reads_block_does_not_hold_up_the_cut() -> None:
    """The sink shares its end's flags with the twin; a cut does not rely on them."""

    async def scene(ends: Ends) -> None:
        os.set_blocking(ends.sink, True)
        begin = time.monotonic()
        assert ends.bridge.cut() == 0
        assert time.monotonic() - begin < DEATH_S

    play(scene)


def test_a_cut_while_the_relay_starts_leaves_nothing_running() -> None:
    """The relay that comes too late is ended, and the cut did not wait for it."""

    async def run() -> None:
        relays = BareRelays()
        bridge = StreamBridges(relay=relays.start).mint(True)

        async def late(*what: object) -> object:
            bridge.cut()
            return await relays.start(*what)  # type: ignore[arg-type] # what it was called with

        bridge._start = late  # type: ignore[assignment] # a start that a cut overtakes
        await bridge.open(1)
        assert await asyncio.wait_for(relays.started[1].exited, 5) == -signal.SIGKILL
        assert not bridge.twins
        assert not bridge.ends

    asyncio.run(run())


def test_the_relay_ends_with_the_source_and_the_sink_gets_all_before_it() -> None:
    """A source that closes its end ends the relay; the sink reads to the end."""

    async def scene(ends: Ends) -> None:
        ends.write(b"last words")
        os.close(ends.source)
        assert await asyncio.wait_for(asyncio.shield(ends.relay.exited), 5) == 0
        assert os.read(ends.sink, 100) == b"last words"
        assert os.read(ends.sink, 100) == b""
        assert not ends.bridge.is_whole()

    play(scene)


def test_a_bridge_that_was_handed_over_is_cut_like_any_other() -> None:
    """The next owner has the twins and the relay, and needs nothing else."""

    async def scene(ends: Ends) -> None:
        twins = {side: os.dup(twin) for side, twin in ends.bridge.twins.items()}
        heir = adopt(twins, ends.bridge._relay, "block")
        assert isinstance(heir, OneWayBridge)
        assert heir.is_whole()
        ends.write(b"queued")
        for _ in range(500):
            if queued(ends.sink) == 6:
                break
            await asyncio.sleep(0.01)
        assert heir.cut() == 6
        assert os.read(ends.sink, 10) == b""

    play(scene)


def test_without_a_relay_there_is_no_one_way_stream() -> None:
    """It is refused, never made as a two-way one."""
    with pytest.raises(TransportError, match="relay"):
        StreamBridges().mint(True)
