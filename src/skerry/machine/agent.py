"""The host's side of the guest agent: runs commands in a domain over one socket.

The rule it keeps: a guest costs bounded memory and no processor time, whatever it sends. Nothing
is read while nobody waits for an answer; one piece (`READ_MAX` bytes) is read when all of the
last was handed on, so a slow reader slows the guest and not the host. Garbage closes the socket.

One connection carries all commands in order, so a caller that is slow to take its output also
holds up the others of the same domain, and nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import secrets
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from skerry.errors import LimitReached, MachineError, SkerryError, StateError, WireError
from skerry.wire import agent as wire

READ_MAX = 16 << 10
"""Bytes read from a guest at once; the rest waits in the guest until these are handed on."""
STALE_PAUSE_S = 0.02
"""The pause after each piece that an earlier host left: its commands, which would fill the port
for ever, leave the guest the time to read the greeting that ends them."""
COMMANDS_MAX = 16
"""Commands that run in one domain at a time; one more is refused."""
STRAY_MAX = 1 << 20
"""Bytes of output that nobody runs a command for; beyond it the agent's port is given up."""

Output = Callable[[wire.Stream, bytes], Awaitable[None] | None]


class _Run:
    """A command under way: what came for it and was not taken yet."""

    def __init__(self) -> None:
        self.inbox: deque[wire.Output | wire.Exit] = deque()
        self.wake = asyncio.Event()
        self.started = False
        self.ended = False


class Agent:
    """Talks to the agent in one guest; owns the socket. Everything runs on one event loop.

    A method that fails because the guest, its machine or the connection does raises the same
    error from then on.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._parser: wire.Parser | None = None
        self._greeted: asyncio.Future[None] | None = None
        self._answered = False
        self._runs: dict[int, _Run] = {}
        # Ids of an earlier host's commands must not be mistaken for ours.
        self._next = secrets.randbelow(10**8)
        self._undelivered = 0
        self._strays = 0
        self._unsent = bytearray()
        self._drained = asyncio.Event()
        self._drained.set()
        self._reading = self._paused = False
        self._failure: SkerryError | None = None

    async def ready(self, timeout_s: float) -> None:
        """Wait until the agent answers; commands of an earlier host in this guest are ended.

        The guest need not have booted. May be called again, after a timeout or to start afresh.
        Raises `MachineError` when the time is over or the machine gone, `WireError` for garbage,
        `StateError` while commands run.
        """
        self._check()
        if self._runs or self._greeted:
            raise StateError("the agent is in use: wait until its commands have ended")
        nonce = f"{secrets.randbelow(10**16):016}"
        self._answered = False
        self._parser = wire.Parser(nonce)
        self._greeted = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self._send(wire.hello(nonce))
                self._watch()
                await self._greeted
        except TimeoutError:
            raise MachineError(
                f"the guest's agent did not answer in {timeout_s:g} s", fix="look at its console"
            ) from None
        finally:
            self._greeted = None
            self._watch()
        self._answered = True

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        output: Output,
        timeout_s: float | None = None,
    ) -> int:
        """Run a command in the guest; return its exit code (0 to 255; 128 + signal).

        `output` gets each piece of output as it comes; the next is read when it has returned.
        Time out, cancellation and an error of `output` end the command in the guest. `argv` and
        `stdin` are bounded by `wire.agent.ARGV_MAX` and `STDIN_MAX`.
        Raises `MachineError` (time over, machine gone), `WireError` (garbage from the guest),
        `LimitReached` (`COMMANDS_MAX` at a time), `StateError` before `ready`.
        """
        self._check()
        if not self._answered:
            raise StateError("the agent is not ready; call ready() first")
        if len(self._runs) >= COMMANDS_MAX:
            raise LimitReached(f"{COMMANDS_MAX} commands run in this domain already")
        number = self._number()
        lines = wire.command(number, argv, stdin)
        run = self._runs[number] = _Run()
        self._strays = 0
        timer = asyncio.timeout(timeout_s)
        try:
            async with timer:
                for line in lines:
                    await self._send(line, run)
                self._watch()
                return await self._collect(run, output)
        except TimeoutError:
            if not timer.expired():
                raise
            raise MachineError(
                f"the command did not end in {timeout_s:g} s and was ended"
            ) from None
        finally:
            self._forget(number, run)

    def wake(self, name: str, label: str) -> None:
        """Tell the guest who it is, if it is a clone that has not awoken. Never waits.

        What is sent later finds it awake. Raises `MachineError` if its machine is gone.
        """
        self._check()
        self._unsent += wire.wake(int(time.time()), secrets.token_bytes(wire.SEED), name, label)
        self._flush()

    async def poweroff(self) -> None:
        """Ask the guest to switch itself off. Returns when the request is on its way."""
        self._check()
        await self._send(wire.poweroff())

    def close(self) -> None:
        """Give up the connection; commands under way fail. Idempotent."""
        self._fail(MachineError("the connection to the guest's agent was closed"))

    async def _collect(self, run: _Run, output: Output) -> int:
        while True:
            while run.inbox:
                message = run.inbox.popleft()
                self._undelivered -= 1
                if isinstance(message, wire.Exit):
                    run.ended = True
                    return message.code
                answer = output(message.stream, message.untrusted_data)
                if inspect.isawaitable(answer):
                    await answer
            self._check()
            run.wake.clear()
            self._watch()
            await run.wake.wait()

    def _forget(self, number: int, run: _Run) -> None:
        del self._runs[number]
        self._undelivered -= len(run.inbox)
        if run.started and not run.ended and self._failure is None:
            self._unsent += wire.kill(number)
            self._flush()
        self._watch()

    def _number(self) -> int:
        while True:
            self._next = (self._next + 1) % 10**8
            if self._next not in self._runs:
                return self._next

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _watch(self) -> None:
        """Read from the socket only while somebody waits and all that came was handed on."""
        want = (
            self._failure is None
            and not self._paused
            and self._undelivered == 0
            and (self._greeted is not None or bool(self._runs))
        )
        if want == self._reading:
            return
        self._reading = want
        loop = asyncio.get_running_loop()
        if want:
            loop.add_reader(self._sock, self._readable)
        else:
            loop.remove_reader(self._sock)

    def _readable(self) -> None:
        try:
            untrusted = self._sock.recv(READ_MAX)
        except BlockingIOError:
            return
        except OSError:
            untrusted = b""
        if not untrusted:
            self._fail(MachineError("the machine closed its agent's port"))
            return
        try:
            assert self._parser is not None
            for message in self._parser.feed(untrusted):
                self._deliver(message)
        except WireError as error:
            self._fail(error)
        if self._greeted is not None and not self._greeted.done():
            self._paused = True
            asyncio.get_running_loop().call_later(STALE_PAUSE_S, self._go_on)
        self._watch()

    def _go_on(self) -> None:
        self._paused = False
        self._watch()

    def _deliver(self, message: wire.Message) -> None:
        if isinstance(message, wire.Hello):
            if self._greeted is not None and not self._greeted.done():
                self._greeted.set_result(None)
            return
        run = self._runs.get(message.id)
        if run is None:
            # A command that was given up may have output on the way, but not for ever.
            self._strays += len(message.untrusted_data) if isinstance(message, wire.Output) else 1
            if self._strays > STRAY_MAX:
                raise WireError("the guest's agent sends output of commands that nobody runs")
            return
        run.inbox.append(message)
        self._undelivered += 1
        run.wake.set()

    async def _send(self, line: bytes, run: _Run | None = None) -> None:
        """Queue one line once the last is gone, so that at most one waits in memory."""
        while not self._drained.is_set():
            await self._drained.wait()
        self._check()
        if run is not None:
            run.started = True
        self._unsent += line
        self._flush()

    def _flush(self) -> None:
        try:
            del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._fail(MachineError("the machine closed its agent's port"))
            return
        loop = asyncio.get_running_loop()
        if self._unsent:
            self._drained.clear()
            loop.add_writer(self._sock, self._flush)
        else:
            loop.remove_writer(self._sock)
            self._drained.set()

    def _fail(self, error: SkerryError) -> None:
        if self._failure is not None:
            return
        self._failure = error
        with contextlib.suppress(RuntimeError):
            # Without a running loop nothing is registered with one.
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._sock)
            loop.remove_writer(self._sock)
        self._reading = False
        self._sock.close()
        self._unsent.clear()
        self._drained.set()
        for run in self._runs.values():
            run.wake.set()
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(error)
