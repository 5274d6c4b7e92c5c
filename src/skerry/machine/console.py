"""Bounded readers of what a machine says: its serial console and its standard error.

The rule it keeps: a machine that floods costs bounded memory and little processor time. At most
`PIECE` bytes are read per `TICK_S`; what is older than the ring is forgotten; a subscriber that is
slow loses its oldest bytes and is told how many.
"""

from __future__ import annotations

import asyncio
import socket

from skerry.errors import LimitReached, MachineError

RING = 64 * 1024
"""Bytes of the past that a console keeps, and that wait for one subscriber at most."""

PIECE = 16 * 1024
"""Most bytes taken from a machine in one tick of the loop."""

TICK_S = 0.01
"""The pause after a piece: with `PIECE`, some 1.6 MB/s, far above what a serial line carries."""

MAX_SUBSCRIBERS = 16
"""Readers of one console at a time; one more is refused."""

MAX_INPUT = 64 * 1024
"""Bytes of input that wait for a guest which does not read them; more is refused."""


RESTARTED = b"[what came before the service was restarted is not shown]\r\n"
"""What the console of an adopted machine begins with."""


class Tail:
    """Reads a socket at a bounded pace and keeps the last bytes that came.

    `closed` is done when the other side has ended and all of it was read. Owns the socket. What
    is kept begins with `note`. Must be made inside a running event loop.
    """

    def __init__(self, sock: socket.socket, limit: int = RING, note: bytes = b"") -> None:
        sock.setblocking(False)
        self._sock = sock
        self._limit = limit
        self._kept = bytearray(note)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.total = 0
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._watch()

    @property
    def untrusted_text(self) -> bytes:
        """The last bytes that the machine sent, as it sent them."""
        return bytes(self._kept)

    def close(self) -> None:
        """Stop reading and close the socket; what was kept stays. Idempotent."""
        if self.closed.done():
            return
        if self._timer is not None:
            self._timer.cancel()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._sock)
        self._sock.close()
        self.closed.set_result(None)

    def _watch(self) -> None:
        self._timer = None
        self._loop.add_reader(self._sock, self._readable)

    def _readable(self) -> None:
        try:
            untrusted = self._sock.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            untrusted = b""
        if not untrusted:
            self.close()
            return
        self.total += len(untrusted)
        self._kept += untrusted
        del self._kept[: -self._limit]
        self._came(untrusted)
        self._loop.remove_reader(self._sock)
        self._timer = self._loop.call_later(TICK_S, self._watch)

    def _came(self, untrusted: bytes) -> None:
        """Hook for what wants each piece as it comes."""


class Subscription:
    """One reader of a console, from the moment it subscribed. Close it when done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._waiting = bytearray()
        self._wake = asyncio.Event()
        self._lost = 0
        self._ended = False

    async def read(self) -> tuple[int, bytes]:
        """Wait for output; return how many bytes were lost before it, and it.

        Empty bytes mean that the console has ended.
        """
        while not self._waiting and not self._ended:
            self._wake.clear()
            await self._wake.wait()
        lost, self._lost = self._lost, 0
        untrusted, self._waiting = bytes(self._waiting), bytearray()
        return lost, untrusted

    def close(self) -> None:
        """Stop reading; a `read` that waits returns the end. Idempotent."""
        self._console.unsubscribe(self)
        self.end()

    def put(self, untrusted: bytes) -> None:
        """Add output (the console's side); the oldest is lost when the reader is slow."""
        self._waiting += untrusted
        excess = len(self._waiting) - RING
        if excess > 0:
            self._lost += excess
            del self._waiting[:excess]
        self._wake.set()

    def end(self) -> None:
        """Say that nothing more comes (the console's side)."""
        self._ended = True
        self._wake.set()


class Console(Tail):
    """A domain's serial console: its last output, its readers, and its input."""

    def __init__(self, sock: socket.socket, note: bytes = b"") -> None:
        self._subscribers: set[Subscription] = set()
        self._input = bytearray()
        super().__init__(sock, note=note)

    def subscribe(self) -> Subscription:
        """Read the console from now on; what came before is in `untrusted_text`.

        Raises `LimitReached` when it has `MAX_SUBSCRIBERS` readers.
        """
        if len(self._subscribers) >= MAX_SUBSCRIBERS:
            raise LimitReached(f"the console has its {MAX_SUBSCRIBERS} readers", fix="close one")
        made = Subscription(self)
        if self.closed.done():
            made.end()
        else:
            self._subscribers.add(made)
        return made

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a reader; an unknown one is no error."""
        self._subscribers.discard(subscription)

    def write(self, data: bytes) -> None:
        """Type into the console. Never blocks.

        Raises `LimitReached` when `MAX_INPUT` bytes wait already, `MachineError` once it is over.
        """
        if self.closed.done():
            raise MachineError("the console has ended with its machine")
        if len(self._input) + len(data) > MAX_INPUT:
            raise LimitReached(f"{MAX_INPUT} bytes of input wait for a guest that reads none")
        self._input += data
        self._flush()

    def close(self) -> None:
        """Stop reading, end every reader, forget the input, close the socket. Idempotent."""
        if not self.closed.done() and not self._loop.is_closed():
            self._loop.remove_writer(self._sock)
        super().close()
        self._input.clear()
        while self._subscribers:
            self._subscribers.pop().end()

    def _came(self, untrusted: bytes) -> None:
        for subscriber in self._subscribers:
            subscriber.put(untrusted)

    def _flush(self) -> None:
        try:
            del self._input[: self._sock.send(self._input)]
        except BlockingIOError:
            pass
        except OSError:  # the machine has ended, which the reading side reports
            self._input.clear()
        if self._input:
            self._loop.add_writer(self._sock, self._flush)
        else:
            self._loop.remove_writer(self._sock)
