"""The simulated guest: ports with real descriptors, a console, and a few commands.

The rule: what crosses a port crosses a real kernel socket, so whatever holds here about cut
channels and drained queues holds by the same means as for a real guest. A guest that is paused
or frozen touches nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from skerry.errors import MachineError
from skerry.machine.ends import Direction, direction
from skerry.monitor.protocols import Exit

PIECE = 64 * 1024
"""Most bytes of one read, and of the console's unread input."""

POLL_S = 0.002
"""How often a command looks at its port while it waits, so that a frozen guest takes nothing."""

Output = Callable[[Literal["out", "err"], bytes], Awaitable[None] | None]


_ENDS = {b"ok": 0, b"denied": 3, b"failed": 1}
"""The exit code of each end of a call."""

_T = TypeVar("_T")


class End(NamedTuple):
    """The end of a channel at a port."""

    descriptor: int
    direction: Direction


class SimulatedGuest:
    """What runs inside: tests write and read its ports and its console directly."""

    def __init__(self, console: socket.socket, control: socket.socket) -> None:
        console.setblocking(False)
        control.setblocking(False)
        self._console = console
        self._control = control
        self._ports: dict[str, End] = {}
        self.running = self._frozen = False
        self.awake = asyncio.Event()

    def ports(self) -> list[str]:
        """Return the names of its ports, in the order in which they came."""
        return list(self._ports)

    def write(self, port: str, data: bytes) -> int:
        """Send without waiting; return how many bytes the channel took.

        None are taken while the guest is paused or frozen, or the channel full.
        Raises `EOFError` when the channel is over, `MachineError` if there is no such port.
        """
        end = self.end_of(port)
        if not self.awake.is_set():
            return 0
        if end.direction == "read":
            return len(data)  # a port that nothing leaves takes all and keeps nothing, as QEMU's
        try:
            return os.write(end.descriptor, data)
        except BlockingIOError:
            return 0
        except OSError:
            raise EOFError(f"the channel of port {port} is over") from None

    def read(self, port: str) -> bytes:
        """Return what has come, up to `PIECE` bytes, without waiting; empty if nothing has.

        Raises `EOFError` when the channel is over, `MachineError` if there is no such port.
        """
        end = self.end_of(port)
        if not self.awake.is_set() or end.direction == "write":
            return b""
        try:
            data = os.read(end.descriptor, PIECE)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            raise EOFError(f"the channel of port {port} is over")
        return data

    def print(self, text: str) -> None:
        """Print on the console; what does not fit into its socket is lost."""
        with contextlib.suppress(OSError):
            self._console.send(text.encode())

    def typed(self) -> bytes:
        """Return what was typed into the console and not read yet."""
        try:
            return self._console.recv(PIECE)
        except OSError:
            return b""

    def call(self, data: bytes) -> int:
        """Write to its node without waiting; return how many bytes were taken."""
        try:
            return self._control.send(data) if self.awake.is_set() else 0
        except OSError:
            return 0

    def answers(self) -> bytes:
        """Return what the node has said and was not read yet."""
        try:
            return self._control.recv(PIECE) if self.awake.is_set() else b""
        except OSError:
            return b""

    def freeze(self) -> None:
        """Stop reading and writing without a word, as a hung guest does."""
        self._frozen = True
        self._set_awake()

    def thaw(self) -> None:
        """Go on after `freeze`."""
        self._frozen = False
        self._set_awake()

    def run(self, running: bool) -> None:
        """Let the processors run or stop them (the machine's side)."""
        self.running = running
        self._set_awake()

    def moved(self) -> None:
        """Forget who waited: they may be of an event loop that is no more (the machine's side)."""
        self.awake = asyncio.Event()
        self._set_awake()

    def plug(self, port: str, descriptor: int) -> None:
        """Add a port, whose descriptor is taken over (the machine's side)."""
        os.set_blocking(descriptor, False)
        self._ports[port] = End(descriptor, direction(descriptor))

    def unplug(self, port: str) -> None:
        """Take a port away and close its descriptor (the machine's side)."""
        os.close(self._ports.pop(port).descriptor)

    def end(self) -> None:
        """Close everything (the machine's side)."""
        self.run(False)
        for port in self.ports():
            self.unplug(port)
        self._console.close()
        self._control.close()

    def end_of(self, port: str) -> End:
        """Return what a port is. Raises `MachineError` if there is no such port."""
        try:
            return self._ports[port]
        except KeyError:
            raise MachineError(f"the guest has no port {port}") from None

    def _set_awake(self) -> None:
        if self.running and not self._frozen:
            self.awake.set()
        else:
            self.awake.clear()


class SimulatedAgent:
    """Runs `echo`, `send`, `recv`, `ports`, `call`, `true`, `false`, as `machine.agent` does."""

    def __init__(self, guest: SimulatedGuest, exited: asyncio.Future[Exit]) -> None:
        self._guest = guest
        self._exited = exited
        self._closed = False
        self._calls = 0

    def close(self) -> None:
        """End the commands under way, as those of an earlier host are ended."""
        self._closed = True

    async def ready(self, timeout_s: float) -> None:
        """Wait until the guest runs. Raises `MachineError` when the time is over."""
        await self._unless_over(self._guest.awake.wait(), timeout_s)

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        output: Output,
        timeout_s: float | None = None,
    ) -> int:
        """Run a command and return its exit code; `recv PORT` waits until something comes.

        Raises `MachineError` when the time is over or the machine gone.
        """
        words = [word.encode("utf-8", "surrogateescape") for word in argv]

        async def work() -> int:
            await self._guest.awake.wait()
            self._check()
            code, stream, data = await self._command(words)
            self._check()
            if data and (waiting := output(stream, data)) is not None:
                await waiting
            return code

        return await self._unless_over(work(), timeout_s)

    async def _command(self, words: list[bytes]) -> tuple[int, Literal["out", "err"], bytes]:
        try:
            match words:
                case [b"true"]:
                    return 0, "out", b""
                case [b"false"]:
                    return 1, "out", b""
                case [b"echo", *rest]:
                    return 0, "out", b" ".join(rest) + b"\n"
                case [b"ports"]:
                    return 0, "out", "".join(f"{p}\n" for p in self._guest.ports()).encode()
                case [b"send", port, text]:
                    await self._send(port.decode(), text)
                    return 0, "out", b""
                case [b"recv", port]:
                    return 0, "out", await self._receive(port.decode())
                case [b"call", *rest]:
                    return await self._call(rest)
        except (MachineError, EOFError, UnicodeError) as error:
            return 1, "err", f"{error}\n".encode()
        known = b"echo TEXT, send PORT TEXT, recv PORT, ports, call VERB [NAME], true, false"
        return 127, "err", b"not a command here; the simulator knows: " + known + b"\n"

    async def _call(self, words: list[bytes]) -> tuple[int, Literal["out", "err"], bytes]:
        """Call the node, and return the answer as it came; what it says unasked is left out."""
        self._calls += 1
        head = b"1 s%d " % self._calls
        self._guest.call(b"%b%b\n" % (head, b" ".join(words)))
        said, answer = b"", b""
        while True:
            *lines, said = (said + self._guest.answers()).split(b"\n")
            for line in lines:
                if line.startswith(head):
                    answer += line.removeprefix(head) + b"\n"
                    if (end := line.split()[2]) in _ENDS:
                        return _ENDS[end], "out", answer
            await asyncio.sleep(POLL_S)
            self._check()

    async def _send(self, port: str, data: bytes) -> None:
        while data := data[self._guest.write(port, data) :]:
            await asyncio.sleep(POLL_S)
            self._check()

    async def _receive(self, port: str) -> bytes:
        while not (data := self._guest.read(port)):
            await asyncio.sleep(POLL_S)
            self._check()
        return data

    def _check(self) -> None:
        if self._closed:
            raise MachineError("the connection to the guest's agent was closed")

    async def _unless_over(self, work: Coroutine[Any, Any, _T], timeout_s: float | None) -> _T:
        task = asyncio.ensure_future(work)
        try:
            waiting: set[asyncio.Future[Any]] = {task, self._exited}
            await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return await task
            if self._exited.done():
                raise MachineError(f"the machine has ended: {self._exited.result().reason}")
            raise MachineError(f"the guest did not answer in {timeout_s:g} s")
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
