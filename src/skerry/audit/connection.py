"""The node's end of the socket to one audit writer's process, on the event loop.

The rules: sending never waits; an answer is bounded, and whatever is none ends the connection. It
ends once, after everything that the writer still said was heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from skerry.audit.messages import MAX_MESSAGE, Answer, Begin, Next, NoNext, Write, answer, packed
from skerry.errors import WireError


class Killable(Protocol):
    """A process of the writer."""

    def kill(self) -> None:
        """End it at once, if it has not ended."""


Start = Callable[[int], Awaitable[Killable]]
"""Starts `audit.service` with a copy of this descriptor as its descriptor `service.SOCKET`."""


class Connection:
    """One writer. `heard` takes its answers, `writable` is called when it has room again."""

    def __init__(
        self,
        heard: Callable[[Answer], None],
        writable: Callable[[], None],
        ended: Callable[[str], None],
    ) -> None:
        """Make both ends; `heard` may raise `WireError`, `ended` is called once with why."""
        self._loop = asyncio.get_running_loop()
        self._heard = heard
        self._room = writable
        self._tell_end = ended
        self._process: Killable | None = None
        self._over = False
        self._waiting = False
        self._sock, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock, self._readable)

    async def start(self, start: Start) -> None:
        """Start the process at the other end. Raises what `start` raises."""
        with self._theirs:
            process = self._process = await start(self._theirs.fileno())
        if self._over:  # it was given up meanwhile
            process.kill()

    def write(self, message: Write) -> bool:
        """Send records; false if there is no room now, and then `writable` follows, or nobody."""
        if self._over or self._waiting:
            return False
        try:
            self._sock.send(packed(message))
        except BlockingIOError:
            self._waiting = True
            self._loop.add_writer(self._sock, self._writable)
            return False
        except OSError:
            return False  # what it still answered comes first, then its end
        return True

    def order(self, order: Begin | Next | NoNext, fd: int = -1) -> None:
        """Send an order with a descriptor, which remains the caller's."""
        if not self._over:
            with contextlib.suppress(OSError):  # its end comes as an answer
                socket.send_fds(self._sock, [packed(order)], [fd] if fd >= 0 else [])

    def finish(self) -> None:
        """Tell the writer that nothing more comes."""
        if not self._over:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def end(self, why: str) -> None:
        """Give the writer up and kill it. Idempotent."""
        if self._over:
            return
        self._over = True
        if self._process is not None:
            self._process.kill()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._theirs.close()
        self._tell_end(why)

    def _writable(self) -> None:
        self._waiting = False
        self._loop.remove_writer(self._sock)
        self._room()

    def _readable(self) -> None:
        try:
            packet = self._sock.recv(MAX_MESSAGE)
            if not packet:
                self.end("its process ended")
                return
            self._heard(answer(packet))
        except BlockingIOError:
            return
        except OSError as error:
            self.end(error.strerror or str(error))
        except WireError as error:
            self.end(error.message)
