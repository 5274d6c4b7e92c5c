"""A restart: 100 domains and 1,000 channels that a real supervisor holds go on under a new node."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.measure import Row, say, single
from bench.place import POLICY, disk_folder
from skerry.errors import SkerryError
from skerry.label import Label
from skerry.machine.qemu.launch import KEPT
from skerry.monitor.protocols import Exit, Kind, Machine
from skerry.node import paths
from skerry.node.helpers import Helpers
from skerry.node.jails import Identities
from skerry.node.journal import read_journal
from skerry.node.machines import Machines
from skerry.node.opening import Opened, World, open_node
from skerry.node.standing import DomainEntry, Footprint
from skerry.policy.client import Notice
from skerry.policy.history import FileHistory
from skerry.policy.manager import PolicyManager
from skerry.policy.source import Policy
from skerry.supervisor.client import Process, SupervisorClient
from skerry.supervisor.main import EXIT_RESTART
from skerry.system.model import DomainSpec, System

DOMAINS = 100
CHANNELS = 1_000
SAMPLES = 7
NODE_S = 120.0
"""How long all lives together may take, in seconds."""

HOLDER = "holder.sock"
TIMES = "times"
SLEEP = "/bin/sleep"


def adopt() -> Row:
    """From the new node's question to the supervisor until all is readmitted and judged again."""
    say(f"{DOMAINS} domains with {CHANNELS} channels, {SAMPLES} restarts")
    with disk_folder() as folder, _holder(folder / HOLDER):
        (folder / "policy.toml").write_text(POLICY)
        domains = "".join(
            f'[domains.d{n}]\nlabel = "bench"\nmachine = "simulator"\nautostart = false\n'
            for n in range(DOMAINS)
        )
        (folder / "system.toml").write_text(f'name = "adopt"\npolicy = "policy.toml"\n{domains}')
        node = [sys.executable, "-m", "bench.rows.adopt", str(folder)]
        done = subprocess.run(
            [sys.executable, "-m", "skerry.supervisor.main", "--", *node],
            env={**os.environ, "SKERRY_HOME": str(folder), "PYTHONPATH": ":".join(sys.path)},
            stderr=subprocess.PIPE,
            timeout=NODE_S,
            check=False,
        )
        if done.returncode:
            raise SkerryError(f"the node ended: {done.stderr.decode()[-1000:]}")
        seconds = [float(line) for line in (folder / TIMES).read_text().split()]
    return single("adopt-s", "s", seconds, "< 1")


@contextlib.contextmanager
def _holder(path: Path) -> Iterator[None]:
    """Run a process that keeps the machines' ends of channels, as a QEMU keeps its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        child = os.fork()
        if child == 0:
            _raise_limit()
            while True:
                connection, _ = listener.accept()
                while socket.recv_fds(connection, 1, 1)[0]:  # the descriptors stay open
                    connection.send(b"+")
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _raise_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Held:
    """A machine that is a sleeping process; it answers its node at once."""

    kind = "sleep"
    running = True

    def __init__(self, makers: _HeldMachines, incarnation: str) -> None:
        self.incarnation = incarnation
        self.attached: frozenset[int] = frozenset()
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.process: Process | None = None
        self._makers = makers

    async def prepare(self) -> None:
        """Have the supervisor start it, and keep what it keeps of a QEMU."""
        null = os.open(os.devnull, os.O_RDONLY)
        keep = {f"{self.incarnation}.{part}": null for part in KEPT}
        argv = [SLEEP, "infinity"]
        self.process = await self._makers.supervisor.spawn(self.incarnation, argv, {}, keep=keep)
        os.close(null)

    async def adopt(self) -> None:
        """It answers."""

    async def resume(self) -> None:
        """Do nothing."""

    async def pause(self) -> None:
        """Do nothing."""

    async def shutdown(self, deadline_s: float) -> None:
        """End."""
        self.kill()

    def kill(self) -> None:
        """End."""
        if self.process is not None and not self.exited.done():
            self.process.kill()
            self.exited.set_result(Exit(-9, "killed"))

    async def attach(self, channel: int, kind: Kind, port: str, *ends: int) -> None:
        """Hand the end to the process that holds them all."""
        socket.send_fds(self._makers.holder, [b"e"], list(ends))
        self._makers.holder.recv(1)

    async def detach(self, channel: int) -> None:
        """Do nothing."""


class _HeldMachines(Machines):
    """Makes such machines, and their heirs."""

    def __init__(
        self, system: System, supervisor: SupervisorClient, identities: Identities
    ) -> None:
        super().__init__(system, supervisor, identities)
        self.supervisor = supervisor
        self.holder = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.holder.connect(str(system.path.with_name(HOLDER)))
        self._ends = self._attached()

    def make(self, domain: DomainSpec, label: Label) -> Machine:
        """Return a machine for one start."""
        return _Held(self, f"d/{domain.name}/{secrets.token_hex(4)}")

    def heir(  # type: ignore[override] # another kind of machine
        self, entry: DomainEntry, process: Process, kept: Mapping[str, int]
    ) -> _Held:
        """Return the machine of an earlier node."""
        for descriptor in kept.values():
            os.close(descriptor)
        machine = _Held(self, entry.footprint.incarnation)
        machine.process = process
        machine.attached = frozenset(self._ends[machine.incarnation])
        return machine

    def footprint(self, machine: Machine) -> Footprint:
        """Return what is found outside."""
        assert isinstance(machine, _Held)
        return Footprint(machine.incarnation, machine.kind)

    def _attached(self) -> dict[str, set[int]]:
        """Return what each machine holds; they have nothing to be asked with."""
        ends: dict[str, set[int]] = {}
        standing = read_journal(paths.journal_file())
        for channel in standing.channels.values() if standing else ():
            for end in (channel.source, channel.sink):
                ends.setdefault(end, set()).add(channel.number)
        return ends


class _Manager(PolicyManager):
    """The policy manager in the node's own process."""

    state = "running"

    async def close(self) -> None:
        """Do nothing."""


async def _manager(_: Helpers, policy: Policy, __: Notice, generation: int) -> _Manager:
    return _Manager(policy.stack, FileHistory(paths.history_file()), generation)


class _NoIdentities(Identities):
    """No uids are needed."""

    def __init__(self) -> None:
        self._pool = None


async def _live(folder: Path) -> int:
    """Be one node; return its exit code."""
    supervisor = SupervisorClient(socket.socket(fileno=int(os.environ["SKERRY_SUPERVISOR"])))
    world = World(machines=_HeldMachines, identities=lambda *_: _NoIdentities(), manager=_manager)
    exits = contextlib.AsyncExitStack()
    begin = time.perf_counter()
    opened = await open_node(folder / "system.toml", supervisor, lambda _: None, exits, world)
    if opened.recovery is None:
        await _fill(opened)
        os.kill(os.getpid(), signal.SIGKILL)
    assert opened.recovery is not None
    await opened.recovery.adopt()
    seconds = time.perf_counter() - begin
    found = opened.recovery.found
    if (len(found.domains), len(found.channels)) != (DOMAINS, CHANNELS):
        raise SkerryError(f"{len(found.domains)} and {len(found.channels)} go on")
    with (folder / TIMES).open("a") as file:
        file.write(f"{seconds}\n")
    await opened.journal.close()
    return EXIT_RESTART if len((folder / TIMES).read_text().split()) < SAMPLES else 0


async def _fill(opened: Opened) -> None:
    node = opened.node
    names = list(node.setup.system.domains)
    for name in names:
        await node.start(node.setup.owner, name)
    pairs = itertools.cycle(zip(names, names[1:] + names[:1], strict=True))
    for _ in range(CHANNELS // DOMAINS):
        batch = list(itertools.islice(pairs, DOMAINS))
        await asyncio.gather(*(node.monitor.bind(*pair) for pair in batch))


if __name__ == "__main__":
    _raise_limit()
    os._exit(asyncio.run(_live(Path(sys.argv[1]))))
