"""QEMU's control socket: commands with deadlines, and descriptors handed over one at a time.

The rules it keeps: whatever a QEMU answers, or does not answer, is a result or a `MachineError`
by a deadline; and no other command comes between a descriptor and the `getfd` that names it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING

from skerry.errors import MachineError

if TYPE_CHECKING:
    from qemu.qmp import Message, QMPClient

COMMAND_S = 10.0
"""How long a QEMU may take for one command."""

MAX_REPLY = 1 << 20
"""Longest line that is taken from a QEMU, in bytes; a longer one ends the connection."""

Event = Callable[[str, Mapping[str, object]], None]


class QemuRefused(MachineError):
    """QEMU answered a command with an error: it had no effect."""


class Qmp:
    """One QMP session. `on_event` gets each event as it comes; nothing is queued."""

    def __init__(self, name: str, on_event: Event) -> None:
        self._name = name
        self._on_event = on_event
        self._lock = asyncio.Lock()
        self._client: QMPClient | None = None

    async def connect(self, sock: socket.socket) -> None:
        """Take over our end of QEMU's control socket and greet. Raises `MachineError`."""
        # Imported here: the commands of the CLI must not pay for it.
        from qemu.qmp import QMPClient, QMPError

        client = QMPClient(self._name, readbuflen=MAX_REPLY)
        client.events.event_filter = self._event
        try:
            async with asyncio.timeout(COMMAND_S):
                await client.connect(sock)
        except (QMPError, TimeoutError, OSError) as error:
            sock.close()
            raise MachineError(f"{self._name}: QEMU did not greet: {error!r}") from error
        self._client = client

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, wait_s: float = 0.0
    ) -> object:
        """Run a command and return its result. Raises `MachineError` with QEMU's own words."""
        async with self._deadline(command, wait_s), self._lock:
            return await self._execute(command, arguments)

    async def give(self, name: str, descriptor: int) -> None:
        """Give QEMU a descriptor under a name. Raises `MachineError`; then it has none."""
        async with self._deadline("getfd", 0.0), self._lock:
            # The lock was free, so the last command was answered and asyncio's buffer is empty.
            while True:
                try:
                    self._connected().send_fd_scm(descriptor)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.01)
                except OSError as error:
                    raise MachineError(f"{self._name}: QEMU is gone: {error}") from error
            await self._execute("getfd", {"fdname": name})

    async def close(self) -> None:
        """End the session; what waits for an answer fails. Idempotent, raises nothing."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):  # every way in which a dead peer ends a session
                async with asyncio.timeout(1):
                    await client.disconnect()

    async def drained(self, wait_s: float) -> None:
        """Wait until all that a dead QEMU had sent was taken, or the time is over."""
        from qemu.qmp import Runstate

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while self._client is not None and self._client.runstate == Runstate.RUNNING:
                    await self._client.runstate_changed()

    @contextlib.asynccontextmanager
    async def _deadline(self, command: str, wait_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(wait_s or COMMAND_S):
                yield
        except TimeoutError:
            raise MachineError(
                f"{self._name}: QEMU did not answer {command} in time",
                fix="it may be frozen; kill the domain if it stays so",
            ) from None

    async def _execute(self, command: str, arguments: Mapping[str, object] | None) -> object:
        from qemu.qmp import ExecuteError, QMPError, StateError

        try:
            return await self._connected().execute(command, dict(arguments or {}) or None)
        except ExecuteError as error:
            raise QemuRefused(f"{self._name}: QEMU refused {command}: {error}") from error
        except (QMPError, StateError) as error:
            raise MachineError(f"{self._name}: QEMU ended during {command}") from error

    def _connected(self) -> QMPClient:
        if self._client is None:
            raise MachineError(f"{self._name}: QEMU is not connected")
        return self._client

    def _event(self, message: Message) -> bool:
        """Hand an event on as it comes; returning False keeps the library from queueing it."""
        untrusted_data = message.get("data")
        data = untrusted_data if isinstance(untrusted_data, dict) else {}
        self._on_event(str(message.get("event")), data)
        return False
