"""The host's side of the port by which a guest calls its node: one socket, read when asked.

The rule it keeps: nothing is read unless somebody waits for it, nor more than `READ_MAX` bytes at
once, so that who reads decides what a guest's flood costs.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

READ_MAX = 4096
"""Bytes read from a guest at once; the rest waits in the guest until they are done with."""


class ControlPort:
    """Owns the socket. One task may read and one may write at a time, on one event loop."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._is_open = True
        self._waiting: set[asyncio.Future[None]] = set()

    async def read(self) -> bytes:
        """Return what came next; empty once the machine has ended or the port was closed."""
        loop = asyncio.get_running_loop()
        while self._is_open:
            try:
                return self._sock.recv(READ_MAX)
            except BlockingIOError:
                await self._ready(loop.add_reader, loop.remove_reader)
            except OSError:
                break
        return b""

    async def write(self, data: bytes) -> None:
        """Return when the machine has taken all; nothing is kept for one that has ended."""
        loop = asyncio.get_running_loop()
        while data and self._is_open:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                await self._ready(loop.add_writer, loop.remove_writer)
            except OSError:
                return

    async def _ready(self, add: Callable[..., object], remove: Callable[[Any], object]) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        add(self._sock, _done, future)
        try:
            await future
        finally:
            self._waiting.discard(future)
            if self._is_open:
                remove(self._sock)

    def close(self) -> None:
        """Give the port up; who waits goes on. Idempotent, also without a running loop."""
        if not self._is_open:
            return
        self._is_open = False
        for future in list(self._waiting):
            loop = future.get_loop()
            if not loop.is_closed():
                loop.remove_reader(self._sock)
                loop.remove_writer(self._sock)
                _done(future)
        self._sock.close()


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
