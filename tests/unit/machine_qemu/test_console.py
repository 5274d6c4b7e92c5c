"""A machine that floods its console costs bounded memory, and readers are told what they lost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

import pytest

from skerry.errors import LimitReached, MachineError
from skerry.machine.console import (
    MAX_INPUT,
    MAX_SUBSCRIBERS,
    PIECE,
    RING,
    TICK_S,
    Console,
)


def _with_console(work: Callable[[Console, socket.socket], Awaitable[None]]) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        console = Console(ours)
        with theirs:
            await work(console, theirs)
        console.close()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_what_is_said_is_read_and_kept() -> None:
    """A subscriber gets what comes after it subscribed; the ring has all."""

    async def work(console: Console, far: socket.socket) -> None:
        first = console.subscribe()
        far.send(b"boot ")
        assert await first.read() == (0, b"boot ")
        reader = console.subscribe()
        far.send(b"login:")
        assert await reader.read() == (0, b"login:")
        assert console.untrusted_text == b"boot login:"
        far.close()
        assert await reader.read() == (0, b"")

    _with_console(work)


def test_a_flood_is_read_at_a_bounded_pace() -> None:
    """In half a second no more is taken than the pace allows; memory stays that of the ring."""

    async def work(console: Console, far: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = console.subscribe()
        end = loop.time() + 0.5

        async def flood() -> None:
            while loop.time() < end:
                with contextlib.suppress(BlockingIOError):
                    far.send(b"x" * 65536)
                await asyncio.sleep(0.001)

        await flood()
        assert RING < console.total <= PIECE * (0.5 / TICK_S + 2)
        assert len(console.untrusted_text) == RING
        lost, data = await reader.read()
        assert len(data) == RING
        assert lost == console.total - RING

    _with_console(work)


def test_input_waits_up_to_a_limit() -> None:
    """Input for a guest that does not read is refused beyond the limit, and none is lost."""

    async def work(console: Console, far: socket.socket) -> None:
        sent = 0
        with pytest.raises(LimitReached):
            while True:
                console.write(b"y" * 4096)
                sent += 4096
        assert sent >= MAX_INPUT
        got = 0
        while got < sent:
            with contextlib.suppress(BlockingIOError):
                got += len(far.recv(65536))
            await asyncio.sleep(0)
        console.write(b"more")

    _with_console(work)


def test_a_console_has_so_many_readers() -> None:
    """One reader too many is refused; closing one makes room and ends its wait."""

    async def work(console: Console, far: socket.socket) -> None:
        readers = [console.subscribe() for _ in range(MAX_SUBSCRIBERS)]
        with pytest.raises(LimitReached):
            console.subscribe()
        waiting = asyncio.ensure_future(readers[0].read())
        await asyncio.sleep(0)
        readers[0].close()
        assert await waiting == (0, b"")
        console.subscribe()

    _with_console(work)


def test_an_ended_console_refuses_input_and_ends_readers() -> None:
    """Nothing can be typed into a machine that is gone, and a late reader sees the end at once."""

    async def work(console: Console, far: socket.socket) -> None:
        far.close()
        await console.closed
        with pytest.raises(MachineError):
            console.write(b"?")
        assert await console.subscribe().read() == (0, b"")

    _with_console(work)
