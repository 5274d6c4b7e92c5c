"""One domain in one QEMU process: made stopped, driven over QMP, ended by its pidfd.

The rules it keeps: everything that leads outside is a descriptor handed over here (law 1); ending
a machine never asks it (law 4); whatever QEMU and its guest do, each call ends by a deadline and
costs bounded memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping

from skerry.errors import LimitReached, MachineError, SkerryError, StateError
from skerry.machine.agent import Agent
from skerry.machine.console import Console, Tail
from skerry.machine.qemu.command import (
    AGENT_FD,
    AGENT_PORT,
    CONSOLE_FD,
    MAX_PORTS,
    QMP_FD,
    QemuSpec,
    command,
)
from skerry.machine.qemu.ending import reason
from skerry.machine.qemu.launch import Launcher, Process
from skerry.machine.qemu.qmp import QemuRefused, Qmp
from skerry.monitor.protocols import Exit, Kind

STDERR_KEPT = 4096
"""Bytes of QEMU's error output that are kept for the reason of its end."""

DETACH_S = 5.0
"""How long QEMU may take to give a port up; a frozen one holds a descriptor that was cut."""

LAST_WORDS_S = 1.0
"""How long the sockets of an ended QEMU may take to be read to their end."""


class _Port:
    """A channel's end in the machine: its name in QEMU, and whether the device is gone again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.plugged = False
        self.deleted = asyncio.Event()


class QemuMachine:
    """Implements `monitor.protocols.Machine`. Make it inside a running event loop.

    `console` and `agent` exist once `prepare` has returned.
    """

    console: Console
    agent: Agent

    def __init__(self, spec: QemuSpec, launcher: Launcher, incarnation: str = "") -> None:
        """Describe a machine that is to be started.

        With an `incarnation` its process and our ends of its sockets are kept by the supervisor
        from the start on, under `launch.kept_names(incarnation)`, until they are dropped.
        """
        self._spec = spec
        self._launcher = launcher
        self._exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._process: Process | None = None
        self._qmp = Qmp(spec.name, self._event)
        self._ports: dict[int, _Port] = {}
        self._begun = self._killed = False
        self._shutdown_cause = ""
        self._watcher: asyncio.Task[None] | None = None

    @property
    def kind(self) -> str:
        """`qemu/tcg` or `qemu/kvm`."""
        return f"qemu/{self._spec.accel}"

    @property
    def pid(self) -> int:
        """The number of the process (its jail's, where it has one); 0 before there is one."""
        return self._process.pid if self._process else 0

    @property
    def exited(self) -> asyncio.Future[Exit]:
        """Done when the process has ended, whoever ended it, with the reason in words."""
        return self._exited

    async def prepare(self) -> None:
        """Start QEMU in its jail with its processors stopped.

        Raises `MachineError` with QEMU's own words if it did not start; then nothing is left.
        """
        if self._begun or self._killed:
            raise StateError(f"{self._spec.name}: a machine is prepared once, before its end")
        self._begun = True
        with contextlib.ExitStack() as theirs:
            pairs = {fd: socket.socketpair() for fd in (QMP_FD, CONSOLE_FD, AGENT_FD, 2)}
            for _, far in pairs.values():
                theirs.enter_context(far)
            ours = {fd: near for fd, (near, _) in pairs.items()}
            self.console = Console(ours[CONSOLE_FD])
            self.agent = Agent(ours[AGENT_FD])
            stderr = Tail(ours[2], STDERR_KEPT)
            try:
                await self._launch({fd: far.fileno() for fd, (_, far) in pairs.items()}, stderr)
            except BaseException as error:
                ours[QMP_FD].close()
                self._never_ran(stderr, str(error))
                raise
        try:
            await self._qmp.connect(ours[QMP_FD])
        except MachineError as error:
            await asyncio.wait({self._exited}, timeout=LAST_WORDS_S)  # it may say why itself
            self.kill()
            end = await asyncio.shield(self._exited)
            raise MachineError(f"{self._spec.name}: QEMU did not start: {end.reason}") from error
        except BaseException:
            self.kill()
            raise

    @classmethod
    def heir(
        cls, name: str, incarnation: str, process: Process, kept: Mapping[str, int]
    ) -> QemuMachine:
        """Take over a machine that an earlier node started; `adopt` must follow.

        `kept` holds, among others, our ends of its sockets by the names of `kept_names`; these
        four belong to the machine from now on. `exited`, `kill`, `console` and `agent` work at
        once. Raises `MachineError` if one is missing; then kill the process.
        """
        raise NotImplementedError

    async def adopt(self) -> None:
        """Take up the control of a machine made by `heir`; what an earlier node left is undone.

        Then `running` and `attached` are known, and all works as after `prepare`; the agent must
        be greeted again (`agent.ready`). Raises `MachineError` if QEMU has ended or does not
        answer as it should by a deadline; then kill it.
        """
        raise NotImplementedError

    @property
    def running(self) -> bool:
        """Whether the processors run, as far as this object has ordered or asked it."""
        raise NotImplementedError

    @property
    def attached(self) -> frozenset[int]:
        """The channels of which QEMU may hold a descriptor; `detach` works for each of them."""
        return frozenset(self._ports)

    async def resume(self) -> None:
        """Let the processors run."""
        await self._qmp.execute("cont")

    async def pause(self) -> None:
        """Stop the processors; memory and ports stay."""
        await self._qmp.execute("stop")

    async def shutdown(self, deadline_s: float) -> None:
        """Ask the guest's agent to switch off; kill the process when the deadline has passed."""
        if self._process is not None:
            with contextlib.suppress(SkerryError, TimeoutError):
                async with asyncio.timeout(deadline_s):
                    await self.agent.poweroff()
                    await asyncio.shield(self._exited)
        self.kill()
        await asyncio.shield(self._exited)

    def kill(self) -> None:
        """End the process at once: SIGKILL through its pidfd."""
        if self._exited.done():
            return
        self._killed = True
        if self._process is not None:
            self._process.kill()
        elif not self._begun:
            self._exited.set_result(Exit(0, "ended before it was started"))

    async def attach(self, channel: int, kind: Kind, port: str, end: int) -> None:
        """Give QEMU a descriptor of a stream, and the guest a port of that name.

        Works before `resume` (the port is there at boot) and after it. Raises `MachineError`,
        `LimitReached`; then the guest has no such port.
        """
        if kind != "stream":
            raise MachineError(f"this machine has no channels of the kind {kind}")
        if port == AGENT_PORT:
            raise MachineError(f"the port {AGENT_PORT} is the agent's", fix="choose another name")
        if channel in self._ports:
            raise StateError(f"{self._spec.name}: channel {channel} is attached already")
        if len(self._ports) >= MAX_PORTS:
            raise LimitReached(f"{self._spec.name} has its {MAX_PORTS} channels (MAX_PORTS)")
        made = self._ports[channel] = _Port(f"channel{channel}")
        try:
            await self._add(made, port, end)
        except BaseException:
            with contextlib.suppress(MachineError):
                await self.detach(channel)
            raise

    async def detach(self, channel: int) -> None:
        """Take the port away and have QEMU close its descriptor. Idempotent.

        Raises `MachineError` if QEMU did not do so in `DETACH_S`; may then be called again.
        """
        port = self._ports.get(channel)
        if port is None:
            return
        if not self._exited.done():
            try:
                async with asyncio.timeout(DETACH_S):
                    await self._remove(port)
            except TimeoutError:
                raise MachineError(
                    f"{self._spec.name}: QEMU did not give up the port of channel {channel}",
                    fix="it may be frozen; nothing crosses a channel that was cut",
                ) from None
        self._ports.pop(channel, None)

    async def _add(self, made: _Port, port: str, end: int) -> None:
        await self._qmp.give(made.name, end)
        address = {"type": "fd", "data": {"str": made.name}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        await self._qmp.execute("chardev-add", {"id": made.name, "backend": backend})
        device = {"driver": "virtserialport", "bus": "ports.0", "name": port}
        made.plugged = True  # unless refused: QEMU may do late what it did not answer in time
        try:
            await self._qmp.execute(
                "device_add", device | {"id": f"{made.name}-port", "chardev": made.name}
            )
        except QemuRefused:
            made.plugged = False
            raise

    async def _remove(self, port: _Port) -> None:
        """Undo `_add`, from any point that it has reached."""
        if port.plugged:
            with contextlib.suppress(QemuRefused):  # asked before, and done late
                await self._qmp.execute("device_del", {"id": f"{port.name}-port"})
            await port.deleted.wait()
        try:
            await self._qmp.execute("chardev-remove", {"id": port.name})
        except QemuRefused:
            there = await self._qmp.execute("query-chardev")
            if isinstance(there, list) and any(item.get("label") == port.name for item in there):
                raise
        with contextlib.suppress(QemuRefused):  # held only if `chardev-add` never took it
            await self._qmp.execute("closefd", {"fdname": port.name})

    async def _launch(self, fds: Mapping[int, int], stderr: Tail) -> None:
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            self._process = await self._launcher.launch(
                self._spec.name,
                command(self._spec, self._launcher.path),
                {0: null, 1: fds[2], **fds},
            )
        finally:
            os.close(null)
        if self._killed:
            self._process.kill()
        self._watcher = asyncio.get_running_loop().create_task(self._watch(self._process, stderr))

    async def _watch(self, process: Process, stderr: Tail) -> None:
        """Wait for the end, read the last words, and say why it ended."""
        status = await asyncio.shield(process.exited)
        await asyncio.wait({stderr.closed, self.console.closed}, timeout=LAST_WORDS_S)
        await self._qmp.drained(LAST_WORDS_S)
        await self._qmp.close()
        self._let_go(stderr)
        words = reason(
            status,
            killed=self._killed,
            cause=self._shutdown_cause,
            untrusted_stderr=stderr.untrusted_text,
            untrusted_console=self.console.untrusted_text,
        )
        self._exited.set_result(Exit(status, words))

    def _never_ran(self, stderr: Tail, why: str) -> None:
        """Settle a machine whose process was not started."""
        if self._process is None and not self._exited.done():
            self._let_go(stderr)
            self._exited.set_result(Exit(1, f"QEMU was not started: {why}"))

    def _let_go(self, stderr: Tail) -> None:
        stderr.close()
        self.console.close()
        self.agent.close()

    def _event(self, name: str, untrusted_data: Mapping[str, object]) -> None:
        if name == "SHUTDOWN":
            self._shutdown_cause = str(untrusted_data.get("reason"))[:64]
        elif name == "DEVICE_DELETED":
            for port in self._ports.values():
                if untrusted_data.get("device") == f"{port.name}-port":
                    port.deleted.set()
