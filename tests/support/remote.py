"""Policy managers in processes of their own, without a jail; and false ones that say anything."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from skerry.policy import messages
from skerry.policy.client import Process, RemoteManager
from skerry.policy.history import HistoryStore, MemoryHistory
from skerry.policy.messages import Answer, Begin, Order
from skerry.policy.service import SOCKET, Service
from skerry.policy.source import Policy

_RUN = (
    f"import os, sys; os.dup2(int(sys.argv[1]), {SOCKET}, inheritable=False); "
    "import skerry.policy.service as service; service.main()"
)


class Host:
    """Starts real processes, and remembers them and what was said of them."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.notes: list[tuple[str, Mapping[str, object]]] = []
        self.broken = False

    async def start(self) -> tuple[socket.socket, Process]:
        """Start a manager, or fail while `broken`."""
        if self.broken:
            raise OSError("no process can be made")
        return self._spawn()

    def _spawn(self) -> tuple[socket.socket, Process]:
        ours, theirs = socket.socketpair()
        with theirs:
            argv = [sys.executable, "-c", _RUN, str(theirs.fileno())]
            process = subprocess.Popen(argv, pass_fds=[theirs.fileno()])
        self.processes.append(process)
        return ours, process

    @property
    def pid(self) -> int:
        """The last manager's process."""
        return self.processes[-1].pid

    def note(self, event: str, fields: Mapping[str, object]) -> None:
        """Remember a notice."""
        self.notes.append((event, fields))

    def events(self) -> list[str]:
        """Return the names of the notices."""
        return [event for event, _ in self.notes]

    def close(self) -> None:
        """End every process."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, 18)  # SIGCONT
            process.kill()
            process.wait()


@contextlib.asynccontextmanager
async def managed(
    policy: Policy, store: HistoryStore | None = None, answer_s: float = 2.0
) -> AsyncIterator[tuple[RemoteManager, Host]]:
    """Give a manager that has begun; all of its processes end afterwards."""
    host = Host()
    kept = store or MemoryHistory()
    manager = RemoteManager(host.start, policy, kept, host.note, answer_s=answer_s)
    try:
        await manager.begin()
        yield manager, host
    finally:
        await manager.close()
        host.close()


class Nobody:
    """A process that isn't there."""

    def kill(self) -> None:
        """Do nothing."""


Says = Callable[[Order, Answer], bytes | None]
"""Gives what a false manager says to an order in place of the true answer; None: nothing."""


class Liar:
    """A manager in this process that begins well, and then says what `says` makes of it.

    With `begins` not even that: its answer to `Begin` is what `says` makes of it, too.
    """

    def __init__(self, says: Says, begins: bool = False) -> None:
        self.says = says
        self.begins = begins
        self.orders: list[Order] = []
        self.speaks = asyncio.Event()
        """While it is not set, what is said waits."""
        self.speaks.set()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> tuple[socket.socket, Process]:
        """Start to serve."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._tasks.append(asyncio.ensure_future(self._serve(theirs)))
        return ours, Nobody()

    async def _serve(self, sock: socket.socket) -> None:
        loop, service, untrusted = asyncio.get_running_loop(), Service(), bytearray()
        with sock, contextlib.suppress(ConnectionError):
            while chunk := await loop.sock_recv(sock, 1 << 20):
                untrusted += chunk
                while (body := messages.take(untrusted, messages.MAX_ORDER)) is not None:
                    order = messages.order(body)
                    self.orders.append(order)
                    true = service.answer(order)
                    honest = isinstance(order.what, Begin) and not self.begins
                    said = messages.packed(true) if honest else self.says(order, true)
                    await self.speaks.wait()
                    if said is not None:
                        await loop.sock_sendall(sock, said)

    async def close(self) -> None:
        """End."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def lied_to(
    policy: Policy, says: Says, answer_s: float = 2.0, store: HistoryStore | None = None
) -> AsyncIterator[tuple[RemoteManager, Liar, list[str]]]:
    """Give a manager whose process is false, and the names of its notices."""
    liar, notes = Liar(says), list[str]()

    def note(event: str, _: Mapping[str, object]) -> None:
        notes.append(event)

    kept = store or MemoryHistory()
    manager = RemoteManager(liar.start, policy, kept, note, answer_s=answer_s)
    try:
        await manager.begin()
        yield manager, liar, notes
    finally:
        await manager.close()
        await liar.close()


async def until(what: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something holds."""
    for _ in range(int(100 * seconds)):
        if what():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


def framed(body: bytes) -> bytes:
    """Return a message with its length in front."""
    return len(body).to_bytes(4, "big") + body


def kinds(orders: Sequence[Order]) -> list[str]:
    """Return what each order is."""
    return [type(order.what).__name__ for order in orders]
