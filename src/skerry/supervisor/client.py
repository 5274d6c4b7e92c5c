"""The node's side of the supervisor's socket, for asyncio.

The rules: a supervisor that is gone or does not answer in time is a refusal, and whatever it starts
after that is killed on arrival; a process can be killed without the supervisor, through its pidfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from skerry.supervisor import wire

ANSWER_SECONDS = 10.0
"""How long the supervisor may take to answer a request."""
STATUS_SECONDS = 1.0
"""How long a dead process waits for its status from the supervisor before it counts as unknown."""
STATUS_UNKNOWN = 256
"""The exit status of a process whose end the supervisor did not report in time."""


class SupervisorGone(Exception):
    """The supervisor ended, broke the protocol or did not answer; what it held is stopped."""


class SpawnFailed(Exception):
    """The supervisor could not do what was asked; nothing was started or kept. `errno` or 0."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class Process:
    """A process that the supervisor started.

    `exited` resolves to the exit code, negative for a signal, STATUS_UNKNOWN if nobody can tell.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        loop = asyncio.get_running_loop()
        self.pid = pid
        self.pidfd = pidfd
        self.exited: asyncio.Future[int] = loop.create_future()
        # The pidfd tells of the end even when the supervisor is frozen.
        if pidfd >= 0:
            loop.add_reader(pidfd, self._dead)

    def kill(self) -> None:
        """End the process at once; nothing happens if it has ended."""
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens if the process has ended."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def _dead(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.pidfd)
        loop.call_later(STATUS_SECONDS, self._ended, STATUS_UNKNOWN)

    def _ended(self, status: int) -> None:
        if not self.exited.done():
            self.exited.set_result(status)
        if self.pidfd >= 0:
            self.exited.get_loop().remove_reader(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1


class Inherited(NamedTuple):
    """What the supervisor held when a node began, by name; ended processes too."""

    processes: Mapping[str, Process]
    kept: Mapping[str, int]


_Answer = Process | Inherited | None


class SupervisorClient:
    """Speaks to the supervisor over `sock`, which it takes over. Make it inside a running loop."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[_Answer]] = {}
        self._processes: dict[int, Process] = {}
        self._heritage = Inherited({}, {})
        self._sending = asyncio.Lock()
        self.gone: asyncio.Future[str] = self._loop.create_future()
        self._loop.add_reader(sock.fileno(), self._readable)

    async def spawn(
        self,
        name: str,
        argv: Sequence[str],
        fds: Mapping[int, int],
        *,
        env: Mapping[str, str] | None = None,
        cgroup: str = "",
        keep: Mapping[str, int] | None = None,
    ) -> Process:
        """Start a program with exactly the descriptors in `fds` (its number to ours).

        `argv[0]` is an absolute path, `env` its whole environment, `cgroup` directories joined
        first, separated by colons. Descriptors in `keep` (name to ours) are kept as `keep` does
        it, if and only if the program was forked; its exit status then waits to be dropped, else
        for nobody. Our descriptors stay open. Raises SpawnFailed with the cause, SupervisorGone.
        """
        held = keep or {}
        order: dict[str, Any] = {"op": "spawn", "name": name, "argv": list(argv), "fds": list(fds)}
        order |= {"env": dict(env or {}), "cgroup": cgroup, "keep": list(held)}
        process = await self._ask(order, [*fds.values(), *held.values()])
        if not isinstance(process, Process):
            raise SupervisorGone("the supervisor broke the protocol")
        return process

    async def keep(self, fds: Mapping[str, int]) -> None:
        """Have the supervisor hold copies of descriptors, by name: all of them or none.

        At most `wire.MAX_FDS`. Raises SpawnFailed, SupervisorGone.
        """
        await self._ask({"op": "keep", "names": list(fds)}, list(fds.values()))

    async def drop(self, *names: str) -> None:
        """Have the supervisor close what it keeps under these names, and forget ended processes.

        An unknown name is no error; a process that lives is forgotten when it has ended.
        """
        for start in range(0, len(names), wire.MAX_FDS):
            await self._ask({"op": "drop", "names": names[start : start + wire.MAX_FDS]}, [])

    async def inherit(self) -> Inherited:
        """Take over what the supervisor holds: processes and copies of descriptors.

        The descriptors are the caller's to close. To be called first, and once.
        """
        found = await self._ask({"op": "inherit"}, [])
        if not isinstance(found, Inherited):
            raise SupervisorGone("the supervisor broke the protocol")
        return found

    def close(self) -> None:
        """Close the socket: the supervisor of `--peer` then kills everything and ends."""
        self._lost("closed")

    async def _ask(self, message: dict[str, Any], fds: Sequence[int]) -> _Answer:
        number = next(self._numbers)
        answer: asyncio.Future[_Answer] = self._loop.create_future()
        try:
            data = wire.encode(message | {"id": number})
            async with asyncio.timeout(ANSWER_SECONDS), self._sending:
                await self._send(data, fds)
                self._answers[number] = answer
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        except TimeoutError:
            self._abandon(answer)
            raise SupervisorGone("the supervisor does not answer") from None
        except asyncio.CancelledError:
            self._abandon(answer)
            raise
        except wire.WireFault as error:
            raise SpawnFailed(str(error)) from None
        finally:
            self._answers.pop(number, None)

    def _abandon(self, answer: asyncio.Future[_Answer]) -> None:
        """Kill what was started for a caller that no longer waits."""
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            process = answer.result()
            if isinstance(process, Process):
                process.kill()

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        while True:
            if self.gone.done():
                raise SupervisorGone(f"the supervisor is gone: {self.gone.result()}")
            try:
                return wire.send(self._sock, data, fds)
            except BlockingIOError:
                await asyncio.sleep(0.01)
            except (BrokenPipeError, ConnectionResetError) as error:
                self._lost(str(error))

    def _readable(self) -> None:
        """Take every message that is there; keep an exit in order behind its start."""
        try:
            while not self.gone.done():
                self._take(*wire.receive(self._sock))
        except BlockingIOError:
            return
        except wire.Closed:
            self._lost("it ended")
        except (wire.WireFault, OSError, KeyError, TypeError) as error:
            self._lost(str(error))

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        operation = message["op"]
        if operation == "exited":
            process = self._processes.pop(message["pid"], None)
            if process is not None:
                process._ended(message["status"])
            return
        answer = self._answers.get(message["id"])
        if answer is None or answer.done():
            for pidfd in fds:  # nobody waits for this process any more
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)
        elif operation == "failed":
            answer.set_exception(SpawnFailed(message["error"], message["errno"]))
        elif operation == "spawned":
            answer.set_result(self._process(message["pid"], fds[0]))
        elif operation == "inherited":
            self._inherit(message, fds)
            if message["last"]:
                answer.set_result(self._heritage)
        else:
            answer.set_result(None)

    def _process(self, pid: int, pidfd: int) -> Process:
        process = self._processes[pid] = Process(pid, pidfd)
        return process

    def _inherit(self, message: dict[str, Any], fds: list[int]) -> None:
        """Take one batch: a descriptor for each name, then one for each process that lives."""
        names = message["kept"]
        processes, kept = dict(self._heritage.processes), dict(self._heritage.kept)
        kept |= zip(names, fds, strict=False)
        pidfds = iter(fds[len(names) :])
        for name, pid, status in message["processes"]:
            process = self._process(pid, next(pidfds) if status is None else -1)
            if status is not None:
                self._processes.pop(pid)
                process._ended(status)
            processes[name] = process
        self._heritage = Inherited(processes, kept)

    def _lost(self, reason: str) -> None:
        """The supervisor is gone: fail what waits; its processes are dead, their status unknown."""
        if self.gone.done():
            return
        self.gone.set_result(reason)
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(SupervisorGone(f"the supervisor is gone: {reason}"))
        for process in self._processes.values():
            process.kill()
            process._ended(STATUS_UNKNOWN)
        self._processes.clear()
