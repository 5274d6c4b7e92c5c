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
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from skerry.errors import MachineError, SkerryError, StateError
from skerry.machine.agent import Agent
from skerry.machine.console import RESTARTED, Console, Tail
from skerry.machine.control import ControlPort
from skerry.machine.qemu.blocks import Blocks
from skerry.machine.qemu.command import Accel, QemuSpec, command
from skerry.machine.qemu.devices import Devices
from skerry.machine.qemu.ending import reason
from skerry.machine.qemu.firmware import VARIABLES_FD, open_variables
from skerry.machine.qemu.late import Late
from skerry.machine.qemu.launch import Launcher, Process
from skerry.machine.qemu.nics import CARDS, Nics
from skerry.machine.qemu.ports import Ports
from skerry.machine.qemu.qmp import QemuRefused, Qmp
from skerry.machine.qemu.shared import SharedMemories
from skerry.machine.qemu.sockets import SOCKETS, Pairs, socket_pairs
from skerry.machine.qemu.tpm import Tpms
from skerry.monitor.protocols import Exit, Kind
from skerry.wire.memory import Identity
from skerry.wire.rights import refuse_descriptors

STDERR_KEPT = 4096
"""Bytes of QEMU's error output that are kept for the reason of its end."""

LAST_WORDS_S = 1.0
"""How long the sockets of an ended QEMU may take to be read to their end."""


class Start(NamedTuple):
    """What a machine is started from."""

    spec: QemuSpec
    launcher: Launcher
    incarnation: str


class QemuMachine:
    """Implements `monitor.protocols.Machine`. Make it inside a running event loop.

    `console`, `agent` and `control` exist once `prepare` has returned.
    """

    console: Console
    agent: Agent
    control: ControlPort
    _start: Start | None = None

    def __init__(self, spec: QemuSpec, launcher: Launcher, incarnation: str = "") -> None:
        """Describe a machine that is to be started.

        With an `incarnation` its process and our ends of its sockets are kept by the supervisor
        from the start on, under `launch.kept_names(incarnation)`, until they are dropped.
        """
        self._set_up(spec.name, spec.accel, spec.label)
        self._has_agent = spec.firmware is None
        self._start = Start(spec, launcher, incarnation)

    def _set_up(self, name: str, accel: Accel, label: str) -> None:
        self._name = name
        self._label = label
        self._accel = accel
        self._exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._late = Late(self._exited)
        self._process: Process | None = None
        self._qmp = Qmp(name, self._event)
        self._readers: tuple[Tail | Agent | ControlPort, ...] = ()
        ports = Ports(name, self._qmp)
        self._memories = SharedMemories(
            name, self._qmp, ports, lambda: self._process, self._condemn
        )
        self._devices: dict[Kind, Devices] = {"stream": ports, "memory": self._memories}
        self._tpms = Tpms(name, self._qmp)
        self._devices["tpm"] = self._tpms
        self._devices |= dict.fromkeys(CARDS, Nics(name, self._qmp))
        self._devices["disk"] = Blocks(name, self._qmp)
        self._running = self._killed = False
        self._asleep = False  # it may be a clone whose guest does not know who it is
        self._has_agent = True
        self._shutdown_cause = self._condemned = ""
        self._watcher: asyncio.Task[None] | None = None

    @property
    def kind(self) -> str:
        """`qemu/tcg` or `qemu/kvm`."""
        return f"qemu/{self._accel}"

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

        Raises `MachineError` with QEMU's own words if it did not start, or the host's if it could
        not be tried; then nothing is left.
        """
        start, self._start = self._start, None
        if start is None or self._killed:
            raise StateError(f"{self._name}: a machine is prepared once, before its end")
        with contextlib.ExitStack() as theirs:
            try:
                pairs = socket_pairs(theirs)
                self._take({kept: pairs[fd][0] for kept, fd in SOCKETS.items()})
                await self._launch(start, pairs)
            except OSError as error:
                await self._never_ran(str(error))
                raise MachineError(
                    f"{self._name}: QEMU was not started: {error}",
                    fix="stop a domain, or raise the service's limit of open files",
                ) from error
            except BaseException as error:
                await self._never_ran(str(error))
                raise
        try:
            await self._qmp.connect()
        except MachineError as error:
            await asyncio.wait({self._exited}, timeout=LAST_WORDS_S)  # it may say why itself
            self._kill()
            end = await asyncio.shield(self._exited)
            raise MachineError(f"{self._name}: QEMU did not start: {end.reason}") from error
        except BaseException:
            self._kill()
            raise

    @classmethod
    def heir(
        cls, name: str, label: str, incarnation: str, process: Process, kept: Mapping[str, int]
    ) -> QemuMachine:
        """Take over a machine of an earlier node's, whose domain has this label; then `adopt` it.

        `kept` holds, among others, our ends of its sockets by the names of `kept_names`; these
        belong to the machine from now on. `exited`, `kill`, `console`, `agent` and `control` work
        at once. Raises `MachineError` if one is missing; then kill the process.
        """
        machine = cls.__new__(cls)
        machine._set_up(name, "tcg", label)
        machine._asleep = True
        ours = {item: kept.get(f"{incarnation}.{item}", -1) for item in SOCKETS}
        if missing := [item for item, fd in ours.items() if fd < 0]:
            for fd in ours.values():
                if fd >= 0:
                    os.close(fd)
            raise MachineError(f"{name}: the supervisor did not keep its {', '.join(missing)}")
        machine._take({item: socket.socket(fileno=fd) for item, fd in ours.items()}, RESTARTED)
        machine._run(process)
        return machine

    async def adopt(self) -> None:
        """Take up the control of a machine made by `heir`; what an earlier node left is undone.

        Then `running` and `attached` are known, and all works as after `prepare`; the agent must
        be greeted again (`agent.ready`). Raises `MachineError` if QEMU has ended or does not
        answer as it should by a deadline; then kill it.
        """
        try:
            await self._qmp.adopt()
            await self._ask()
        except MachineError as error:
            await asyncio.wait({self._exited}, timeout=LAST_WORDS_S)
            if not self._exited.done():
                raise
            words = f"{self._name} has ended: {self._exited.result().reason}"
            raise MachineError(words) from error

    async def _ask(self) -> None:
        """Ask an adopted QEMU what it is and does."""
        untrusted_kvm = await self._qmp.execute("query-kvm")
        untrusted_status = await self._qmp.execute("query-status")
        untrusted_sockets = await self._qmp.execute("query-chardev")
        if not isinstance(untrusted_kvm, dict) or not isinstance(untrusted_status, dict):
            raise MachineError(f"{self._name}: QEMU does not say what it does")
        sockets = untrusted_sockets if isinstance(untrusted_sockets, list) else []
        labels = [item.get("label") for item in sockets if isinstance(item, dict)]
        self._has_agent = "agent" in labels
        self._accel = "kvm" if untrusted_kvm.get("enabled") is True else "tcg"
        self._running = untrusted_status.get("running") is True
        for devices in self._each():
            await devices.find()
        if self._running:
            self._wake()

    @property
    def running(self) -> bool:
        """Whether the processors run, as far as this object has ordered or asked it."""
        return self._running

    @property
    def attached(self) -> frozenset[int]:
        """The channels of which QEMU may hold a descriptor; `detach` works for each of them."""
        return frozenset().union(*(devices.channels for devices in self._each()))

    def _each(self) -> Iterable[Devices]:
        """All devices, the memories first: what keeps one is ended, and then keeps nothing."""
        return dict.fromkeys([self._memories, *self._devices.values()])

    async def resume(self) -> None:
        """Let the processors run."""
        self._wake()
        await self._qmp.execute("cont")
        self._running = True

    def _wake(self) -> None:
        """Have a clone awake before it hears anything else; a guest that is awake stays so."""
        with contextlib.suppress(SkerryError):  # without its agent nobody hears of it again
            if self._asleep and self._has_agent:
                self.agent.wake(self._name, self._label)
        self._asleep = False

    async def pause(self) -> None:
        """Stop the processors; memory and ports stay."""
        try:
            await self._qmp.execute("stop")
        except QemuRefused:
            raise
        except MachineError:
            # QEMU may do late what it did not answer in time.
            self._late.again("cont", self._go_on)
            raise
        self._running = False

    async def shutdown(self, deadline_s: float) -> None:
        """Ask the guest's agent to switch off; kill the process when the deadline has passed.

        A guest without an agent has its power button pressed.
        """
        if self._process is not None:
            with contextlib.suppress(SkerryError, TimeoutError):
                async with asyncio.timeout(deadline_s):
                    # Its channels are cut; what it shares it gives up before it has its time.
                    for channel in self._memories.channels:
                        await self.detach(channel)
                    await self._ask_to_end()
                    await asyncio.shield(self._exited)
        self.kill()
        await asyncio.shield(self._exited)

    async def _ask_to_end(self) -> None:
        if self._has_agent:
            await self.agent.poweroff()
        else:
            await self._qmp.execute("system_powerdown")

    def kill(self) -> None:
        """End the process at once: SIGKILL through its pidfd."""
        self._kill()

    def _kill(self) -> None:
        if self._exited.done():
            return
        self._killed = True
        if self._process is not None:
            self._process.kill()
        elif self._start is not None:
            self._tpms.close()
            self._exited.set_result(Exit(0, "ended before it was started"))

    def _condemn(self, why: str) -> None:
        """End the process at once, for a reason that its end shall have."""
        if self._process is not None and self._process.pidfd >= 0 and not self._killed:
            self._condemned = why
        self.kill()

    async def attach(self, channel: int, kind: Kind, port: str, *ends: int) -> None:
        """Give QEMU the descriptors of a channel, and the guest what it is to it, of that name.

        Works before `resume` (it is there at boot) and after it; a TPM only before `prepare`.
        Raises `MachineError`, `LimitReached`; then the guest has nothing of it.
        """
        if kind not in self._devices:
            raise MachineError(f"this machine has no channels of the kind {kind}")
        await self._devices[kind].add(channel, port, *ends)

    async def detach(self, channel: int) -> None:
        """Take the port away and have QEMU close its descriptor. Idempotent.

        Raises `MachineError` if QEMU did not do so in `ports.DETACH_S`; then it is tried again when
        QEMU answers again. A memory QEMU does not hold on return, or has been ended.
        """
        try:
            await self._drop(channel)
        except MachineError:
            self._late.again(channel, lambda: self._drop(channel))
            raise
        self._late.done(channel)

    async def _drop(self, channel: int) -> None:
        for devices in self._each():
            if channel in devices.channels:
                if self._exited.done() or self._condemned:
                    devices.forget(channel)
                else:
                    await devices.remove(channel)

    def expect(self, channel: int, memory: Identity) -> None:
        """Learn, after `adopt`, which file the memory of a channel is that goes on."""
        self._memories.expect(channel, memory)

    async def verify(self) -> None:
        """Look from outside, after `expect`, whether it holds another memory; then it is ended."""
        await self._memories.verify()

    def _take(self, ours: Mapping[str, socket.socket], note: bytes = b"") -> None:
        """Take over our ends of the machine's sockets."""
        for sock in ours.values():
            refuse_descriptors(sock)
        self._qmp.hold(ours["qmp"])
        self.console = Console(ours["console"], note)
        self.agent = Agent(ours["agent"])
        self.control = ControlPort(ours["control"])
        self._stderr = Tail(ours["stderr"], STDERR_KEPT)
        self._readers = self._stderr, self.console, self.agent, self.control

    async def _launch(self, start: Start, pairs: Pairs) -> None:
        near = {kept: pairs[fd][0].fileno() for kept, fd in SOCKETS.items()}
        fds = {fd: far.fileno() for fd, (_, far) in pairs.items()}
        names = {f"{start.incarnation}.{kept}": fd for kept, fd in near.items()}
        more, given = self._at_launch(start.spec, max(fds) + 1)
        fds |= given
        argv = [*command(start.spec, start.launcher.path), *more]
        null = os.open(os.devnull, os.O_RDONLY)
        variables = -1
        try:
            fds |= {0: null, 1: fds[2]}
            if start.spec.firmware == "uefi":
                variables = fds[VARIABLES_FD] = open_variables()
            process = await start.launcher.launch(
                start.incarnation or self._name, argv, fds, keep=names if start.incarnation else {}
            )
        finally:
            os.close(null)
            if variables >= 0:
                os.close(variables)
        self._tpms.launched()
        self._run(process)

    def _at_launch(self, spec: QemuSpec, first: int) -> tuple[list[str], Mapping[int, int]]:
        """Return what else QEMU is started with: arguments, and descriptors from `first` on."""
        return self._tpms.at_launch(first)

    def _run(self, process: Process) -> None:
        """Be the machine of this process from now on."""
        self._process = process
        if self._killed:
            process.kill()
        self._watcher = asyncio.get_running_loop().create_task(self._watch(process))

    async def _watch(self, process: Process) -> None:
        """Wait for the end, read the last words, and say why it ended."""
        status = await asyncio.shield(process.exited)
        await asyncio.wait({self._stderr.closed, self.console.closed}, timeout=LAST_WORDS_S)
        await self._qmp.drained(LAST_WORDS_S)
        await self._let_go()
        words = reason(
            status,
            killed=self._killed,
            cause=self._shutdown_cause,
            untrusted_stderr=self._stderr.untrusted_text,
            untrusted_console=self.console.untrusted_text,
        )
        self._exited.set_result(Exit(status, self._condemned or words))

    async def _never_ran(self, why: str) -> None:
        """Settle a machine whose process was not started."""
        if self._process is None and not self._exited.done():
            await self._let_go()
            self._exited.set_result(Exit(1, f"QEMU was not started: {why}"))

    async def _let_go(self) -> None:
        await self._qmp.close()
        self._tpms.close()
        for reader in self._readers:
            reader.close()

    async def _go_on(self) -> None:
        """Have the processors run on after a pause that failed. Raises `MachineError`."""
        if self._running:
            await self._qmp.execute("cont")

    def _event(self, name: str, untrusted_data: Mapping[str, object]) -> None:
        if name == "SHUTDOWN":
            self._shutdown_cause = str(untrusted_data.get("reason"))[:64]
        elif name == "DEVICE_DELETED":
            for devices in self._each():
                devices.deleted(untrusted_data.get("device"))
