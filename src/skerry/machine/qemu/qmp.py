"""QEMU's control socket: commands with deadlines, and descriptors handed over one at a time.

The rules it keeps: whatever a QEMU answers, or does not answer, is a result or a `MachineError`
by a deadline; no other command comes between a descriptor and the one that uses it; and an
answer to a command of an earlier process is never taken for one to ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING

from skerry.errors import MachineError
from skerry.machine.qemu.sync import GIVEN, EarlierSession
from skerry.wire.escape import escape

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

COMMAND_S = 10.0
"""How long a QEMU may take for one command."""

MAX_WORDS = 300
"""Characters of what a QEMU says about a refusal that are kept, each of them harmless."""

Event = Callable[[str, Mapping[str, object]], None]
Order = tuple[str, Mapping[str, object]]
"""A command and its arguments."""


class QemuRefused(MachineError):
    """QEMU answered a command with an error: it had no effect. `absent`: no such device."""

    def __init__(self, message: str, *, absent: bool) -> None:
        super().__init__(message)
        self.absent = absent


class Qmp:
    """One QMP session over our end of QEMU's control socket, which it owns from `hold` on.

    `on_event` gets each event as it comes; nothing is queued.
    """

    def __init__(self, name: str, on_event: Event) -> None:
        self._name = name
        self._on_event = on_event
        self._lock = asyncio.Lock()
        self._sock: socket.socket | None = None
        self._client: QMPClient | None = None

    def hold(self, sock: socket.socket) -> None:
        """Take over the socket; `connect` or `adopt` comes next."""
        self._sock = sock

    async def connect(self) -> None:
        """Greet a QEMU that nobody has spoken to. Raises `MachineError`."""
        async with self._lock:
            await self._open(greet=True)

    async def adopt(self) -> None:
        """Go on where an earlier process was killed, in the middle of anything.

        Its unfinished command and what it was not answered are dropped, and a descriptor that it
        sent and did not use is closed. Raises `MachineError`, also if QEMU does not follow in
        `COMMAND_S`.
        """
        async with self._deadline("the node that adopts it", 0.0), self._lock:
            await self._earlier().synchronise()
            await self._open(greet=False)

    def _earlier(self) -> EarlierSession:
        if self._sock is None:
            raise MachineError(f"{self._name}: QEMU is not connected")
        return EarlierSession(self._name, self._sock, self._event)

    async def _open(self, greet: bool) -> None:
        # Imported here: the commands of the CLI must not pay for it.
        from qemu.qmp import QMPError

        from skerry.machine.qemu.client import Client

        client = Client(self._name)
        client.events.event_filter = self._event
        client.await_greeting = client.negotiate = greet
        # The library counts its ids from 0, and so did an earlier process: its late answers
        # must not fit.
        client._execute_id = secrets.randbits(64)
        sock, self._sock = self._sock, None
        assert sock is not None
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

    async def give(self, descriptor: int, *orders: Order) -> None:
        """Give QEMU a descriptor, called `sync.GIVEN`, and run the commands that use it.

        All are on their way before the first is answered: one that needs what an earlier one
        makes is refused if that was. Raises the `MachineError` of the first that failed; if it is
        `QemuRefused` QEMU has closed the descriptor, or the first command has it; else `take_back`
        must follow.
        """
        async with self._deadline(orders[0][0], 0.0), self._lock:
            await self._send(descriptor)
            orders = ("getfd", {"fdname": GIVEN}), *orders
            answers = await asyncio.gather(
                *(self._execute(*order) for order in orders), return_exceptions=True
            )
            failed = [answer for answer in answers if isinstance(answer, BaseException)]
            for error in failed:
                if not isinstance(error, QemuRefused):
                    raise error
            if isinstance(answers[1], QemuRefused):
                with contextlib.suppress(QemuRefused):  # used, and refused for something else
                    await self._execute("closefd", {"fdname": GIVEN})
            if failed:
                raise failed[0]

    async def give_set(self, descriptor: int, number: int) -> str:
        """Give QEMU a descriptor that it can open as a file; return that file's name.

        It stays until `take_back_set`; what has opened it by then keeps it. Raises `MachineError`.
        """
        await self.give_number(descriptor, number)
        return f"/dev/fdset/{number}"

    async def give_number(self, descriptor: int, number: int) -> int:
        """Do the same, and return the number of the descriptor in QEMU."""
        async with self._deadline("add-fd", 0.0), self._lock:
            await self._send(descriptor)
            untrusted = await self._execute("add-fd", {"fdset-id": number})
        given = untrusted.get("fd") if isinstance(untrusted, dict) else None
        if not isinstance(given, int):
            raise MachineError(f"{self._name}: QEMU does not say what it was given")
        return given

    async def take_back_set(self, number: int) -> None:
        """Have QEMU close what was given as a file and is not open, if there is such a one."""
        with contextlib.suppress(QemuRefused):
            await self.execute("remove-fd", {"fdset-id": number})

    async def _send(self, descriptor: int) -> None:
        """Send a descriptor for the next command, under the lock."""
        from qemu.qmp import QMPError

        # The lock was free, so the last command was answered and asyncio's buffer is empty.
        while True:
            try:
                self._connected().send_fd_scm(descriptor)
                return
            except BlockingIOError:
                await asyncio.sleep(0.01)
            except (OSError, QMPError) as error:  # the process, or its session alone
                raise MachineError(f"{self._name}: QEMU is gone: {error}") from error

    async def take_back(self) -> None:
        """Have QEMU close a descriptor that was given and not used, if there is one."""
        with contextlib.suppress(QemuRefused):
            await self.execute("closefd", {"fdname": GIVEN})

    async def close(self) -> None:
        """End the session; what waits for an answer fails. Idempotent, raises nothing."""
        client, self._client = self._client, None
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()
        if client is not None:
            with contextlib.suppress(Exception):  # every way in which a dead peer ends a session
                async with asyncio.timeout(1):
                    await client.disconnect()

    async def drained(self, wait_s: float) -> None:
        """Wait until all that a dead QEMU had sent was taken, or the time is over."""
        from qemu.qmp import Runstate

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s), self._lock:
                if self._sock is not None:  # nobody has adopted it
                    await self._earlier().events_to_the_end()
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
            untrusted = str(error)[:MAX_WORDS]
            words = f"{self._name}: QEMU refused {command}: {escape(untrusted)}"
            raise QemuRefused(words, absent=error.error_class == "DeviceNotFound") from error
        except (QMPError, StateError) as error:
            raise MachineError(f"{self._name}: QEMU ended during {command}") from error

    def _connected(self) -> QMPClient:
        if self._client is None:
            raise MachineError(f"{self._name}: QEMU is not connected")
        return self._client

    def _event(self, message: Mapping[str, object]) -> bool:
        """Hand an event on as it comes; returning False keeps the library from queueing it."""
        untrusted_name, untrusted_data = message.get("event"), message.get("data")
        data = untrusted_data if isinstance(untrusted_data, dict) else {}
        if isinstance(untrusted_name, str):
            self._on_event(untrusted_name, data)
        return False
