"""Memories without machines: what is minted, when a reader may have it, what a cut leaves."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import mmap
import os
import stat
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from skerry.channel import one_way
from skerry.channel.memory import MAX_BYTES, MIN_BYTES, MemoryBridge, MemoryBridges
from skerry.channel.stream import StreamBridges
from skerry.errors import LimitReached, TransportError
from skerry.node.bridges import AllBridges
from skerry.node.resources import Resources
from skerry.node.standing import ChannelEntry
from skerry.wire import memory
from tests.support.relays import BareRelays

SIZE = 1 << 16


def play(scene: Callable[[MemoryBridges, BareRelays], Awaitable[None]]) -> None:
    """Play a scene that leaves no descriptor and no relay."""

    async def main() -> None:
        relays = BareRelays()
        streams = StreamBridges(relay=relays.start)
        await scene(MemoryBridges(streams), relays)
        await relays.ended()
        streams.close()

    one_way._nowhere()  # opened once for all
    gc.collect()  # what earlier tests left must not go meanwhile
    before = len(list(Path("/proc/self/fd").iterdir()))
    asyncio.run(main())
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_both_ends_are_of_one_file_that_has_its_length_for_ever() -> None:
    """What one end writes the other reads; nobody shortens, lengthens or seals a two-way one."""

    async def scene(makers: MemoryBridges, relays: BareRelays) -> None:
        bridge = makers.mint(False, size=SIZE)
        await bridge.open(1)
        source, sink = bridge.ends["source"], bridge.ends["sink"]
        with mmap.mmap(source, SIZE) as one, mmap.mmap(sink, SIZE) as other:
            one[SIZE - 1] = 7
            assert other[SIZE - 1] == 7
        for length in (0, 2 * SIZE):
            with pytest.raises(PermissionError):
                os.ftruncate(sink, length)
        with pytest.raises(PermissionError):
            fcntl.fcntl(sink, fcntl.F_ADD_SEALS, memory.F_SEAL_FUTURE_WRITE)
        bridge.cut()

    play(scene)


@pytest.mark.parametrize("size", [0, 1, MIN_BYTES - 1, 3 * MIN_BYTES, 2 * MAX_BYTES, -4096])
def test_a_size_that_is_no_memorys_is_refused(size: int) -> None:
    """It is said what a size may be, and nothing was made."""

    async def scene(makers: MemoryBridges, relays: BareRelays) -> None:
        with pytest.raises(TransportError, match="power of two"):
            makers.mint(False, size=size)
        makers.mint(False, size=MIN_BYTES).cut()

    play(scene)


def test_the_host_says_when_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither mint nor open leaves anything behind; the refusal says what to do."""

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    async def scene(makers: MemoryBridges, relays: BareRelays) -> None:
        bridge = makers.mint(True, size=SIZE)
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full)
            with pytest.raises(LimitReached, match="No space left"):
                await bridge.open(1)
        bridge.cut()
        with monkeypatch.context() as patch:
            patch.setattr(os, "memfd_create", full)
            with pytest.raises(LimitReached, match="No space left"):
                makers.mint(True, size=SIZE)
        assert not relays.started

    play(scene)


def test_a_reader_waits_until_the_writer_has_mapped_it() -> None:
    """Before that it has no leave; afterwards the mode and every seal stand, for both ends."""

    async def scene(makers: MemoryBridges, relays: BareRelays) -> None:
        bridge = makers.mint(True, size=SIZE)
        source, sink = bridge.ends["source"], bridge.ends["sink"]
        waiting = asyncio.create_task(memory.closed(sink, 10))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        with mmap.mmap(source, SIZE) as mapped:
            memory.close_to_reader(source)
            assert await waiting
            mapped[0] = 9
            assert os.pread(sink, 1, 0) == b"\x09", "what was mapped goes on"
        for end in (source, sink):
            assert stat.S_IMODE(os.fstat(end).st_mode) == 0o444
            with pytest.raises((PermissionError, ValueError)):
                mmap.mmap(end, SIZE)
        assert memory.is_reader(sink) and not memory.is_reader(source)
        bridge.cut()

    play(scene)


@pytest.mark.parametrize("seals", [0, memory.F_SEAL_FUTURE_WRITE, fcntl.F_SEAL_WRITE])
def test_a_writer_that_seals_first_opens_nothing(seals: int) -> None:
    """A source's QEMU in an attacker's hands: the reader has leave only where all is in force."""

    async def scene(makers: MemoryBridges, relays: BareRelays) -> None:
        bridge = makers.mint(True, size=SIZE)
        source, sink = bridge.ends["source"], bridge.ends["sink"]
        fcntl.fcntl(source, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
        if seals == memory.F_SEAL_FUTURE_WRITE:
            assert memory.is_one_way(source) and not memory.is_closed(sink)
            memory.close_to_reader(source)
            assert await memory.closed(sink, 1)
        else:
            with pytest.raises(PermissionError):
                memory.close_to_reader(source)
            begin = time.monotonic()
            assert not await memory.closed(sink, 10)
            assert time.monotonic() - begin < 1
        bridge.cut()

    play(scene)


def test_a_memory_with_holes_is_not_for_its_reader() -> None:
    """A writer that punches, seals and sets the mode itself: the reader waits for every page.

    Also for those that the kernel has only promised: who looks at one makes it data.
    """

    async def scene(makers: MemoryBridges, relays: BareRelays) -> None:
        bridge = makers.mint(True, size=SIZE)
        source, sink = bridge.ends["source"], bridge.ends["sink"]
        fcntl.fcntl(source, fcntl.F_ADD_SEALS, memory.F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)
        os.fchmod(source, memory.CLOSED_MODE)
        waiting = asyncio.create_task(memory.closed(sink, 10))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        memory.fill(source)
        assert os.fstat(sink).st_blocks * 512 == SIZE and not memory.is_closed(sink)
        memory.close_to_reader(source)
        assert await waiting
        bridge.cut()

    play(scene)


def test_a_cancelled_opening_closes_nothing_under_its_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The descriptor that the thread fills is its own until it has ended."""
    begun, go_on, seen = threading.Event(), threading.Event(), []

    def slow(descriptor: int) -> None:
        begun.set()
        assert go_on.wait(10)
        seen.append(memory.size(descriptor))

    async def scene(makers: MemoryBridges, relays: BareRelays) -> None:
        monkeypatch.setattr(memory, "fill", slow)
        bridge = makers.mint(True, size=SIZE)
        opening = asyncio.create_task(bridge.open(1))
        await asyncio.to_thread(begun.wait, 10)
        opening.cancel()
        await asyncio.sleep(0.02)
        bridge.cut()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert seen == [SIZE] and not relays.started

    play(scene)


def test_a_writer_that_gives_up_is_not_waited_for() -> None:
    """The reader is told at once that it does not come; else it waits its time."""

    async def scene(makers: MemoryBridges, relays: BareRelays) -> None:
        bridge = makers.mint(True, size=SIZE)
        assert not await memory.closed(bridge.ends["sink"], 0.05)
        memory.give_up(bridge.ends["source"])
        async with asyncio.timeout(1):
            assert not await memory.closed(bridge.ends["sink"], 60)
        bridge.cut()

    play(scene)


@pytest.mark.parametrize("held", [True, False], ids=["held", "control"])
def test_that_a_reader_reads_is_nowhere_to_be_seen(held: bool) -> None:
    """Neither the time of access nor the pages that there are change by a first look.

    The control: in a plain memory file both do, and the writer's `fstat` sees them.
    """

    async def scene(makers: MemoryBridges, relays: BareRelays) -> None:
        bridge = makers.mint(True, size=SIZE)
        await bridge.open(1)
        plain = os.memfd_create("plain")
        os.ftruncate(plain, SIZE)
        file = bridge.ends["source"] if held else plain
        reader = bridge.ends["sink"] if held else memory.reader(plain)

        def seen() -> tuple[int, int]:
            status = os.fstat(file)
            return status.st_atime_ns, status.st_blocks

        before = seen()
        await asyncio.sleep(0.05)
        with mmap.mmap(reader, SIZE, prot=mmap.PROT_READ) as mapped:
            assert mapped[0] == 0
        os.pread(reader, 1, 0)
        after = seen()
        assert (after == before) is held
        assert all(now != then for now, then in zip(after, before, strict=True)) is not held
        if not held:
            os.close(reader)
        os.close(plain)
        bridge.cut()

    play(scene)


@pytest.mark.parametrize("directed", [True, False])
def test_a_cut_ends_the_doorbell_and_lets_go(directed: bool) -> None:
    """Rings that wait are lost, the sink sees the end, and nothing of the bridge is open."""

    async def scene(makers: MemoryBridges, relays: BareRelays) -> None:
        bridge = makers.mint(directed, size=SIZE)
        await bridge.open(1)
        source, sink = os.dup(bridge.bells["source"]), os.dup(bridge.bells["sink"])
        bridge.handed_over()
        assert not bridge.ends and not bridge.bells
        os.write(source, b"r")
        assert await asyncio.to_thread(os.read, sink, 1) == b"r", "the control: it rings"
        os.write(source, b"rr")
        assert bridge.is_whole()
        assert bridge.cut() == 2
        assert bridge.cut() == 0 and not bridge.twins and not bridge.is_whole()
        assert os.read(sink, 1) == b""
        for end in (source, sink):
            os.close(end)

    play(scene)


def test_a_one_way_doorbell_never_keeps_the_source_waiting() -> None:
    """A sink that does not listen is nothing to the source: it rings on, and the rings are lost."""

    async def scene(makers: MemoryBridges, relays: BareRelays) -> None:
        bridge = makers.mint(True, size=SIZE)
        await bridge.open(1)
        source = bridge.bells["source"]
        async with asyncio.timeout(20):
            for _ in range(64):
                await asyncio.to_thread(os.write, source, b"r" * 65536)
        bridge.cut()

    play(scene)


@pytest.mark.parametrize("directed", [True, False])
def test_a_memory_is_adopted_whole_or_only_to_be_cut(directed: bool) -> None:
    """The next node has it from its twins; where one is missing, what is there is closed."""

    async def scene(makers: MemoryBridges, relays: BareRelays) -> None:
        bridge = makers.mint(directed, size=SIZE)
        await bridge.open(1)
        identity = bridge.identity
        bridges = AllBridges(StreamBridges(), Resources({}))
        entry = ChannelEntry(1, "memory", "a", "b", "m", directed, 1, 1, 0.0, size=SIZE)
        process = relays.started[1] if directed else None
        for missing in ("", "memory", "sink"):
            twins = {name: os.dup(fd) for name, fd in bridge.twins.items()}
            if missing:
                os.close(twins.pop(missing))  # type: ignore[call-overload]
            adopted = bridges.adopt(twins, None if missing else process, entry)
            assert adopted is not None
            assert adopted.is_whole() is not bool(missing)
            if not missing:
                assert isinstance(adopted, MemoryBridge) and adopted.identity == identity
            adopted.cut()
        bridge.cut()

    play(scene)


def test_a_cut_while_it_is_opened_leaves_nothing() -> None:
    """No relay runs that nobody would end."""

    async def scene(makers: MemoryBridges, relays: BareRelays) -> None:
        bridge = makers.mint(True, size=SIZE)
        opening = asyncio.create_task(bridge.open(1))
        await asyncio.sleep(0)
        bridge.cut()
        await opening
        assert not relays.started

    play(scene)
