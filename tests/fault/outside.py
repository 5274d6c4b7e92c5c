"""What outlives a node: the supervisor's store, the machines' processes, the ends they were given.

The rule: everything a node did outside of itself is found here, whatever the node says of it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from typing import NamedTuple

from skerry.errors import MachineError
from skerry.label import Label
from skerry.machine.qemu.launch import KEPT
from skerry.machine.simulator.machine import SimulatedMachine
from skerry.machine.simulator.process import SimulatedProcess
from skerry.monitor.protocols import Kind, Machine
from skerry.node.jails import Identities
from skerry.node.machines import Machines
from skerry.node.standing import DomainEntry, Footprint
from skerry.supervisor.client import Inherited, Process, SpawnFailed, SupervisorClient
from skerry.system.model import DomainSpec, System


class End(NamedTuple):
    """An end that a machine was given: a twin of it, and which socket it is."""

    incarnation: str
    descriptor: int
    inode: int


class Outside:
    """The world around the nodes of one run.

    `happened` hears of every effect on it, `moment` tells the time.
    """

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}
        self.processes: dict[str, SimulatedProcess] = {}
        self.all: dict[str, SimulatedProcess] = {}  # also those that the store forgot
        self.helpers: dict[int, SimulatedProcess] = {}  # by their channels
        self.labels: dict[str, Label] = {}
        self.ends: dict[int, list[End]] = {}
        self.machines: list[KeptMachine] = []
        self.begun: dict[str, int] = {}
        self.happened: Callable[[], None] = lambda: None
        self.moment: Callable[[], int] = lambda: 0
        self.full = False
        self._numbers = itertools.count(1)

    def release(self) -> None:
        """Leave every machine as a node that is killed leaves it."""
        machines, self.machines = self.machines, []
        for machine in machines:
            machine.release()

    def start(self, incarnation: str, process: SimulatedProcess, label: Label) -> None:
        """Hold a process and what is kept with it, in one step."""
        null = os.open(os.devnull, os.O_RDONLY)
        self.kept |= {f"{incarnation}.{part}": os.dup(null) for part in KEPT}
        os.close(null)
        self.processes[incarnation] = self.all[incarnation] = process
        self.labels[incarnation], self.begun[incarnation] = label, self.moment()
        self.happened()

    def gave(self, channel: int, incarnation: str, end: int) -> None:
        """Remember an end that a machine has taken."""
        inode = os.fstat(end).st_ino
        assert stat.S_ISSOCK(os.fstat(end).st_mode)
        self.ends.setdefault(channel, []).append(End(incarnation, os.dup(end), inode))

    def alive(self) -> set[str]:
        """Return the incarnations whose process runs, whether or not anybody knows of it."""
        return {name for name, process in self.all.items() if process.exit is None}


class Store(SupervisorClient):
    """The supervisor as one node sees it."""

    def __init__(self, outside: Outside) -> None:
        self._outside = outside

    async def keep(self, fds: Mapping[str, int]) -> None:
        """Hold copies, all of them or none."""
        await asyncio.sleep(0)
        kept = self._outside.kept
        if self._outside.full or kept.keys() & fds.keys():
            raise SpawnFailed("the store is full, or has such a name")
        self._outside.kept = kept | {name: os.dup(fd) for name, fd in fds.items()}
        self._outside.happened()
        await asyncio.sleep(0)

    async def drop(self, *names: str) -> None:
        """Close them, and forget processes that have ended."""
        await asyncio.sleep(0)
        for name in names:
            if name in self._outside.kept:
                os.close(self._outside.kept.pop(name))
            process = self._outside.processes.get(name)
            if process is not None and process.exit is not None:
                del self._outside.processes[name]
        self._outside.happened()
        await asyncio.sleep(0)

    async def inherit(self) -> Inherited:
        """Hand over what is held."""
        processes = {n: Handle(p) for n, p in self._outside.processes.items()}
        return Inherited(processes, {name: os.dup(fd) for name, fd in self._outside.kept.items()})


class Handle(Process):
    """A process of the store, to be watched and killed."""

    def __init__(self, process: SimulatedProcess) -> None:
        super().__init__(0, -1)
        self.process = process
        if process.exit is not None:
            self.exited.set_result(process.exit.status)

    def kill(self) -> None:
        """End it."""
        self.process.end(-9, "killed")
        if not self.exited.done():
            self.exited.set_result(-9)


class KeptMachine(SimulatedMachine):
    """A simulated machine whose process the store holds."""

    def __init__(
        self,
        outside: Outside,
        name: str,
        incarnation: str,
        label: Label,
        process: SimulatedProcess | None = None,
    ) -> None:
        super().__init__(name, process=process)
        self.incarnation = incarnation
        self._outside = outside
        self._label = label
        outside.machines.append(self)

    async def prepare(self) -> None:
        """Have the process started, then make the guest."""
        await asyncio.sleep(0)
        if self.exited.done():
            raise MachineError("it was ended before it was started")
        self._outside.start(self.incarnation, self.process, self._label)
        await asyncio.sleep(0)
        await super().prepare()
        await asyncio.sleep(0)

    async def attach(self, channel: int, kind: Kind, port: str, *ends: int) -> None:
        """Take the end, sooner or later."""
        await asyncio.sleep(0)
        await super().attach(channel, kind, port, *ends)
        self._outside.gave(channel, self.incarnation, *ends)
        self._outside.happened()
        await asyncio.sleep(0)

    async def detach(self, channel: int) -> None:
        """Drop it, later."""
        await asyncio.sleep(0)
        await super().detach(channel)


class NoIdentities(Identities):
    """A node without uids of its own: nothing here is a process."""

    def __init__(self) -> None:
        self._pool = None


class KeptMachines(Machines):
    """Makes such machines, and their heirs."""

    def __init__(
        self,
        outside: Outside,
        system: System,
        supervisor: SupervisorClient,
        identities: Identities,
    ) -> None:
        super().__init__(system, supervisor, identities)
        self._outside = outside

    def make(self, domain: DomainSpec, label: Label) -> Machine:
        """Return a machine for one start."""
        incarnation = f"d/{domain.name}/{secrets.token_hex(4)}"
        return KeptMachine(self._outside, domain.name, incarnation, label)

    def heir(  # type: ignore[override] # another kind of machine
        self, entry: DomainEntry, process: Process, kept: Mapping[str, int]
    ) -> KeptMachine:
        """Return the next node's machine."""
        incarnation = entry.footprint.incarnation
        if len(kept) != len(KEPT) or not isinstance(process, Handle):
            raise MachineError(f"of {entry.name} only {sorted(kept)} was handed over")
        for descriptor in kept.values():
            os.close(descriptor)
        return KeptMachine(self._outside, entry.name, incarnation, entry.label, process.process)

    def footprint(self, machine: Machine) -> Footprint:
        """Return what is found outside."""
        assert isinstance(machine, KeptMachine)
        return Footprint(machine.incarnation, machine.kind)
