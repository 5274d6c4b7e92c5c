"""Finds the place in a control socket that another process used before, and was killed at.

The rules it keeps: whatever was half said, in either direction, is over when this returns, and
no answer to an earlier command is still to come; a descriptor that QEMU was sent and did not use
is closed; what QEMU says is untrusted, at most `SYNC_MAX` bytes, and what it said of its own
accord (events) is passed on. The caller sets the deadline.

QEMU runs one command at a time and answers in order, so the answer to a command with an id that
nobody can know ends everything before it. It reads ahead, though, and a new descriptor takes the
place of one that no `getfd` has named yet: so none is sent before that answer has come.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable, Mapping

from skerry.errors import MachineError

SYNC_MAX = 1 << 20
"""Most bytes that a QEMU may say before it has answered; one that says more is given up."""

TAIL_MAX = 4096
"""Longest event that may be under way behind the last answer, in bytes."""

GIVEN = "given"
"""What QEMU calls a descriptor that it was given, until the command that uses it."""

_PIECE = 16 << 10

_FLUSH = b"\xff\n"
"""A byte that is in no JSON text: QEMU forgets the unfinished command before it, with an error
that bears no id. The newline ends its search for the next beginning."""

Message = Mapping[str, object]


class EarlierSession:
    """Our end of a control socket as an earlier process left it.

    `on_event` gets each event as it comes. The socket stays the caller's.
    """

    def __init__(
        self, name: str, sock: socket.socket, on_event: Callable[[Message], object]
    ) -> None:
        sock.setblocking(False)
        self._name = name
        self._sock = sock
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._token = secrets.token_hex(16)
        self._taken = 0
        self._untrusted_lines: deque[bytes] = deque()
        self._untrusted_rest = b""

    async def synchronise(self) -> None:
        """Bring QEMU and the socket to where the next byte either way begins a message.

        Raises `MachineError` if QEMU has ended, says too much, or refuses what it cannot.
        """
        # An error if the earlier process had done it; else QEMU takes no other command.
        await self._send(_FLUSH + self._line("qmp_capabilities"))
        await self._answer("qmp_capabilities")
        # A descriptor waits in QEMU for the next `getfd`, and a name for its command: this one
        # takes the place of both, and is closed.
        name = {"fdname": GIVEN}
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            await self._send(self._line("getfd", name), null)
        finally:
            os.close(null)
        await self._send(self._line("closefd", name))
        for command in ("getfd", "closefd"):
            if "return" not in await self._answer(command):
                raise MachineError(f"{self._name}: QEMU refused {command}")
        await self._finish()

    async def events_to_the_end(self) -> None:
        """Pass on the events that a QEMU which has ended had sent."""
        with contextlib.suppress(MachineError):
            while True:
                self._message(await self._next_line())

    def _line(self, command: str, arguments: Message | None = None) -> bytes:
        message: dict[str, object] = {"execute": command, "id": f"{self._token}-{command}"}
        if arguments:
            message["arguments"] = arguments
        return json.dumps(message).encode() + b"\n"

    async def _send(self, data: bytes, descriptor: int = -1) -> None:
        """Send all of it, the descriptor with the first byte. QEMU's end is seen by the reader."""
        try:
            while descriptor >= 0:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
                try:
                    data = data[self._sock.sendmsg([data], [rights], socket.MSG_NOSIGNAL) :]
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.01)
            await self._loop.sock_sendall(self._sock, data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    async def _answer(self, command: str) -> Message:
        """Read up to the answer to our command; what is not one is an event or is dropped."""
        while True:
            message = self._message(await self._next_line())
            if message.get("id") == f"{self._token}-{command}":
                return message

    async def _finish(self) -> None:
        """Pass on what was read too far, and read the line under way to its end, no further."""
        while self._untrusted_lines:
            self._message(self._untrusted_lines.popleft())
        line = self._untrusted_rest
        while line and not line.endswith(b"\n"):
            if len(line) > TAIL_MAX:
                raise MachineError(f"{self._name}: QEMU said more than {TAIL_MAX} bytes at once")
            line += await self._receive(1)
        self._message(line)

    async def _next_line(self) -> bytes:
        while not self._untrusted_lines:
            untrusted = self._untrusted_rest + await self._receive(_PIECE)
            *lines, self._untrusted_rest = untrusted.split(b"\n")
            self._untrusted_lines.extend(lines)
            await asyncio.sleep(0)  # a flood must not hold the loop
        return self._untrusted_lines.popleft()

    async def _receive(self, most: int) -> bytes:
        try:
            untrusted = await self._loop.sock_recv(self._sock, most)
        except ConnectionResetError:
            untrusted = b""
        if not untrusted:
            raise MachineError(f"{self._name}: QEMU has ended")
        self._taken += len(untrusted)
        if self._taken > SYNC_MAX:
            raise MachineError(f"{self._name}: QEMU said {SYNC_MAX} bytes and did not answer")
        return untrusted

    def _message(self, untrusted_line: bytes) -> Message:
        """Return what a line says if it is an answer; pass on an event; the rest says nothing."""
        if not untrusted_line.startswith(b"{"):
            return {}
        try:
            message = json.loads(untrusted_line)
        except (ValueError, RecursionError):
            return {}
        if "event" not in message:
            return message if isinstance(message, dict) else {}
        self._on_event(message)
        return {}
