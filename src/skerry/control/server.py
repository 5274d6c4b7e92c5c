"""The control socket's service: typed messages, bounded, one connection a call.

Nothing a client does blocks the others: a first message that is late, long or malformed closes
its own connection, and a reader that doesn't read is dropped when `SLOW_S` has passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

from skerry.control.failure import failed
from skerry.control.operators import Operators, peer_uid
from skerry.errors import LimitReached, SkerryError, WireError
from skerry.label import Label
from skerry.wire.control import Call, Done, Output, Reply, decode_call, decode_input, encode
from skerry.wire.frames import MAX_REPLY, frame, read_frame

MAX_CLIENTS = 64
"""Most connections of one operator at once; a further one is told so and closed.

Each has a limit of its own, so that none keeps the others from taking authority away.
"""

FIRST_S = 10.0
"""Seconds a client has to begin its call."""

SLOW_S = 30.0
"""Seconds after which a client that does not read what it asked for is dropped."""

TELL_S = 1.0
"""Seconds between two lines of the log about broken connections; those between are counted."""

log = logging.getLogger("skerry.control")

# From 3.13 on, asyncio would remove the socket itself.
_NO_CLEANUP: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class Session:
    """One connection: who calls, and the bytes that go both ways while the call lasts."""

    def __init__(
        self, uid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.uid = uid
        self.operator = Label(())
        self._reader = reader
        self._writer = writer

    async def output(self, stream: str, data: bytes) -> None:
        """Send bytes to the client, at most 64 KiB a message. Raises `WireError` if it is gone."""
        for start in range(0, len(data), 32 * 1024):
            piece = data[start : start + 32 * 1024]
            await self.send(Output(stream=stream, data=piece))  # type: ignore[arg-type] # checked by the receiver's decoder

    async def inputs(self) -> AsyncIterator[bytes]:
        """Yield what the client sends until it closes; an empty piece ends its input."""
        while untrusted := await read_frame(self._reader, None):
            yield decode_input(untrusted).data

    async def gone(self) -> None:
        """Return when the client has closed, discarding what it sends."""
        async for _ in self.inputs():
            pass

    async def send(self, reply: Reply) -> None:
        """Send one message. Raises `WireError` if the client is gone or does not read."""
        await self.write(framed(reply))

    async def write(self, message: bytes) -> None:
        """Send one message in its frame. Raises `WireError` as `send` does."""
        try:
            self._writer.write(message)
            await asyncio.wait_for(self._writer.drain(), SLOW_S)
        except (OSError, TimeoutError) as error:
            self._writer.transport.abort()
            raise WireError(f"the client is gone or does not read: {error}") from None


def framed(reply: Reply) -> bytes:
    """Return a reply as it is sent. Raises `WireError` if it is too long."""
    return frame(encode(reply), MAX_REPLY)


class Broken:
    """Tells the log of broken connections, which any local user can make by the thousand."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = 0.0
        self._untold = 0

    def tell(self, error: Exception) -> None:
        """Write a line, or count it for the next one."""
        self._untold += 1
        if (now := self._clock()) >= self._next:
            log.info("connections closed since the last such line: %d: %s", self._untold, error)
            self._next, self._untold = now + TELL_S, 0


Handler = Callable[[Call, Session], Awaitable[object]]


class ControlServer:
    """Listens on the control socket and gives each call to the handler."""

    def __init__(self, path: Path, operators: Operators, handle: Handler) -> None:
        self._path = path
        self._operators = operators
        self._handle = handle
        self.connections: dict[asyncio.Task[None], int] = {}
        self._owner = 0
        self._calling: Counter[int] = Counter()
        self._broken = Broken()
        self._server: asyncio.Server | None = None

    async def listen(self, owner: int) -> None:
        """Begin to listen. The socket is open to others only if the map names others.

        It takes the place of one that a dead node left in one step: who calls meanwhile waits.
        """
        self._owner = owner
        new = self._path.with_name(f"{self._path.name}~")
        new.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(new))
        self._admit(new)
        new.replace(self._path)
        self._server = await asyncio.start_unix_server(self._connected, sock=sock, **_NO_CLEANUP)

    def _admit(self, path: Path) -> None:
        path.chmod(0o600 if self._operators.uids <= {self._owner} else 0o666)

    def operators_changed(self, uids: Collection[int]) -> None:
        """Close every connection of these users but the one that asks for it: their label, which
        their calls and sessions carry, is no more theirs.
        """
        self._admit(self._path)
        mine = asyncio.current_task()
        for task, uid in self.connections.items():
            if uid in uids and task is not mine:
                task.cancel()

    async def close(self, *, keep: bool = False) -> None:
        """Stop listening, end every connection and remove the socket.

        `keep` leaves it, for those who call before the next node listens there: they wait.
        """
        if self._server is not None:
            self._server.close()
        mine = asyncio.current_task()
        others = [task for task in self.connections if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if not keep:
            self._path.unlink(missing_ok=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        try:
            uid = self.connections[task] = peer_uid(writer.get_extra_info("socket"))
            await self._serve(uid, reader, writer)
        except (WireError, ConnectionError) as error:
            self._broken.tell(error)
        finally:
            self.connections.pop(task, None)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(
        self, uid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        session = Session(uid, reader, writer)
        self._calling[uid] += 1
        try:
            await session.write(await self._answer(uid, session, reader))
        finally:
            self._calling[uid] -= 1
            if not self._calling[uid]:
                del self._calling[uid]

    async def _answer(self, uid: int, session: Session, reader: asyncio.StreamReader) -> bytes:
        try:
            session.operator = self._operators.label(uid)
            if self._calling[uid] > MAX_CLIENTS:
                raise LimitReached(f"you have {MAX_CLIENTS} calls open", fix="try again")
            untrusted = await read_frame(reader, FIRST_S)
            if not untrusted:
                return b""
            return framed(Done(await self._handle(decode_call(untrusted), session)))
        except SkerryError as error:
            return framed(failed(error))
        except Exception:
            # A defect of ours fails this call; it is never an allow, nor the service's end.
            log.exception("a call failed")
            return framed(failed(SkerryError("internal error", fix="see the service's log")))
