"""A real node in this process: monitor, trail, supervisor and jailed machines, without its CLI.

It is put together as the service does it, so that a row can time what happens inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from bench.place import home, image
from skerry.audit.writer import AuditTrail
from skerry.channel.link import LinkBridges
from skerry.channel.memory import MemoryBridges
from skerry.channel.stream import StreamBridges
from skerry.image.minimal import CMDLINE
from skerry.machine.agent import Agent
from skerry.machine.qemu.command import Accel, QemuSpec
from skerry.machine.qemu.machine import QemuMachine
from skerry.machine.qemu.tsc import tsc_khz
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Bridges, Kind
from skerry.node import paths
from skerry.node.helpers import Helpers, accepted_layers
from skerry.node.jails import Identities
from skerry.node.machines import Machines
from skerry.node.makers import all_makers
from skerry.node.node import Node
from skerry.node.relays import Relays
from skerry.node.resources import Resources
from skerry.node.setup import load_setup
from skerry.policy.history import FileHistory
from skerry.policy.manager import PolicyManager
from tests.support.cli import Cli
from tests.support.supervisor import running_supervisor

BOOT_S = 60.0

_T = TypeVar("_T")


class RunningNode:
    """A node whose domains are not started; `run` runs a coroutine on its loop."""

    def __init__(self, node: Node, streams: StreamBridges, runner: asyncio.Runner) -> None:
        self.node = node
        self.streams = streams
        self._runner = runner

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run to the end on the loop that the node lives on."""
        return self._runner.run(work)

    def machine(self, name: str) -> QemuMachine:
        """Return the machine of a domain that runs."""
        machine = self.node.monitor.domain(name).machine
        assert isinstance(machine, QemuMachine)
        return machine

    async def start(self, name: str) -> None:
        """Start a domain of the file with its channels."""
        await self.node.start(self.node.setup.owner, name)

    async def kill(self, name: str) -> None:
        """End a domain and wait until it is gone."""
        await self.node.kill(name)

    async def agent(self, name: str) -> Agent:
        """Return the agent in a running domain, which answers."""
        await self.node.answered(name, BOOT_S)
        return self.machine(name).agent

    def spec(self, name: str) -> QemuSpec:
        """Describe the machine of a running domain, for one that is started by hand."""
        domain = self.node.setup.system.domains[name]
        files = image()
        accel: Accel = "kvm" if self.machine(name).kind.endswith("kvm") else "tcg"
        return QemuSpec(
            name=name,
            label=str(self.node.setup.labels[name]),
            kernel=files.kernel,
            bzimage=files.bzimage,
            initrd=files.initrd,
            cmdline=CMDLINE,
            memory=domain.memory,
            cpus=domain.cpus,
            board=domain.board,
            accel=accel,
            tsc_khz=tsc_khz(),
        )


@contextlib.contextmanager
def running(text: str) -> Iterator[RunningNode]:
    """Run a node on the system file `text`; everything it started has ended afterwards."""
    image()
    with home(text) as cli, asyncio.Runner() as runner, _environment(cli):
        exits = contextlib.AsyncExitStack()
        try:
            yield runner.run(_open(cli.home / "system.toml", exits, runner))
        finally:
            runner.run(exits.aclose())


async def _open(
    system: Path, exits: contextlib.AsyncExitStack, runner: asyncio.Runner
) -> RunningNode:
    setup = load_setup(system)
    trail = AuditTrail.open(paths.make_private(paths.state_dir()) / paths.audit_file().name)
    exits.callback(trail.close)
    supervisor = await exits.enter_async_context(running_supervisor())
    identities = Identities()
    exits.callback(identities.close)
    machines = Machines(setup.system, supervisor, identities)
    for error in machines.load_images():
        raise error
    exits.push_async_callback(machines.close)
    helpers = Helpers(supervisor, identities.take, accepted_layers(setup.system))
    exits.push_async_callback(helpers.close)
    relays = Relays(helpers, identities.take)
    streams = StreamBridges(relay=relays.start)
    exits.callback(streams.close)
    manager = PolicyManager(setup.stack, FileHistory(paths.history_file()))
    kinds: dict[Kind, Bridges] = {
        "stream": streams,
        "link": LinkBridges(streams),
        "memory": MemoryBridges(streams),
    }
    monitor = Monitor(manager, trail, kinds, time.monotonic)
    resources = Resources(all_makers(relays.serve))
    exits.callback(resources.close)
    resources.follow(monitor, setup)
    node = Node(setup, monitor, machines.make, time.monotonic, resources=resources)
    exits.push_async_callback(node.down, 0.0)
    return RunningNode(node, streams, runner)


@contextlib.contextmanager
def _environment(cli: Cli) -> Iterator[None]:
    """Let this process be the node of a home."""
    names = ("SKERRY_HOME", "SKERRY_SHARE")
    before = {name: os.environ.get(name) for name in names}
    os.environ |= {name: cli.env[name] for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value
