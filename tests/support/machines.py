"""Real QEMU machines for tests: a supervisor, an image, and one event loop for the whole run.

No QEMU outlives its run: the supervisor is the parent of all, and ends when its socket does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from skerry.channel.stream import StreamBridge, StreamBridges
from skerry.image.minimal import CMDLINE, build_minimal
from skerry.image.store import Image
from skerry.jail.confinement import Confinement
from skerry.jail.filter import PROFILES
from skerry.jail.identity import open_pool, own
from skerry.machine.jailed import JailedLauncher
from skerry.machine.qemu.command import QemuSpec
from skerry.machine.qemu.launch import Launcher
from skerry.machine.qemu.machine import QemuMachine
from skerry.machine.qemu.root import INITRD, KERNEL, own_descriptors, qemu_root
from skerry.machine.qemu.template import clone_profile
from skerry.machine.qemu.tsc import tsc_khz
from skerry.supervisor.client import Inherited, Process, SupervisorClient
from tests.support.supervisor import running_supervisor

BOOT_S = 60.0

_T = TypeVar("_T")


def cache() -> Path:
    """The folder of the tests' images: one that the domains' uids can reach."""
    named = os.environ.get("SKERRY_TEST_CACHE")
    return Path(named) if named else Path(f"/var/tmp/skerry-test-{os.getuid()}")


class BareLauncher:
    """The control: starts QEMU by the supervisor and without a jail."""

    def __init__(self, client: SupervisorClient) -> None:
        self._client = client

    def path(self, file: Path) -> str:
        """Every file of the host is there."""
        return str(file)

    async def launch(
        self,
        name: str,
        argv: Sequence[str],
        fds: Mapping[int, int],
        *,
        keep: Mapping[str, int] | None = None,
    ) -> Process:
        """Start it as it is."""
        return await self._client.spawn(name, argv, fds, keep=keep)


class Host:
    """What the tests of one run share. `run` runs a coroutine on its loop."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._supervisor = running_supervisor()
        self.client = self.run(self._supervisor.__aenter__())
        self.image: Image = build_minimal(cache())
        self.bridges = StreamBridges()
        self._identities = open_pool()
        self._machines: list[QemuMachine] = []

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run to the end, on the loop that all machines live on."""
        return self._runner.run(work)

    def close(self) -> None:
        """End everything that was started, and wait until it is gone."""
        for machine in self._machines:
            machine.kill()
        self.run(self._ended())
        self.bridges.close()
        if self._identities is not None:
            self._identities.close()
        self.run(self._supervisor.__aexit__(None, None, None))
        self._runner.close()

    async def _ended(self) -> None:
        await asyncio.gather(*(machine.exited for machine in self._machines))

    def spec(self, name: str, **changes: object) -> QemuSpec:
        """Describe a machine of the minimal image."""
        spec = QemuSpec(
            name=name,
            label=f"label-of-{name}",
            kernel=self.image.kernel,
            bzimage=self.image.bzimage,
            initrd=self.image.initrd,
            cmdline=CMDLINE,
            tsc_khz=tsc_khz(),
        )
        return msgspec.structs.replace(spec, **changes)

    def confinement(self, spec: QemuSpec, template: bool = False) -> Confinement:
        """Confine a machine as the product does, accepting only what this host cannot give."""
        files = {} if spec.firmware else {KERNEL: spec.kernel, INITRD: spec.initrd}
        profile = PROFILES["qemu"]
        return Confinement(
            root=str(qemu_root(cache() / "roots", spec.machine, uefi=spec.firmware == "uefi")),
            identity=self._identities.take(spec.name) if self._identities else own(),
            profile=clone_profile(profile) if template else profile,
            binds=(
                *((str(file), inside) for inside, file in files.items()),
                *own_descriptors(spec.machine, template),
            ),
            accepted=frozenset({"cgroup"} if self._identities else {"cgroup", "uid"}),
        )

    def launcher(self, spec: QemuSpec, jailed: bool = True) -> Launcher:
        """Start a machine as the product does, or without its jail."""
        if not jailed:
            return BareLauncher(self.client)
        return JailedLauncher(self.client, self.confinement(spec))

    def clones(self, spec: QemuSpec) -> JailedLauncher:
        """Start a clone, or the source of a template, as the product does."""
        return JailedLauncher(self.client, self.confinement(spec, template=True))

    def watch(self, machine: QemuMachine) -> None:
        """End a machine that somebody else has made, with the run."""
        self._machines.append(machine)

    async def make(
        self, name: str, *, jailed: bool = True, incarnation: str = "", **changes: object
    ) -> QemuMachine:
        """Prepare a machine: QEMU runs, its guest does not yet."""
        spec = self.spec(name, **changes)
        machine = QemuMachine(spec, self.launcher(spec, jailed), incarnation)
        self._machines.append(machine)
        await machine.prepare()
        return machine

    async def boot(
        self, name: str, *, jailed: bool = True, incarnation: str = "", **changes: object
    ) -> QemuMachine:
        """Start a machine and wait for its agent."""
        machine = await self.make(name, jailed=jailed, incarnation=incarnation, **changes)
        await machine.resume()
        await machine.agent.ready(BOOT_S)
        return machine

    async def abandon(self, machine: QemuMachine) -> None:
        """Be killed, as far as the machine can see: every descriptor to it is closed."""
        assert machine._watcher
        machine._watcher.cancel()
        await machine._let_go()
        self._machines.remove(machine)

    async def inherit(self, incarnation: str) -> tuple[Process, dict[str, int]]:
        """Be the next node: a process, and what the supervisor keeps of its machine."""
        found = await self.inherit_all()
        kept = {name: fd for name, fd in found.kept.items() if name.startswith(f"{incarnation}.")}
        for name in found.kept.keys() - kept.keys():
            os.close(found.kept[name])
        return found.processes[incarnation], kept

    async def inherit_all(self) -> Inherited:
        """Ask the supervisor for all that it has; unlike a node, more than once."""
        self.client._heritage = Inherited({}, {})
        return await self.client.inherit()

    async def heir(self, name: str, incarnation: str) -> QemuMachine:
        """Be the next node, and take the machine over."""
        machine = QemuMachine.heir(
            name, f"label-of-{name}", incarnation, *await self.inherit(incarnation)
        )
        self._machines.append(machine)
        return machine


async def connect(
    bridges: StreamBridges, channel: int, port: str, one: QemuMachine, other: QemuMachine
) -> StreamBridge:
    """Attach a fresh stream to two machines under one port name."""
    bridge = bridges.mint()
    await one.attach(channel, "stream", port, bridge.ends["source"])
    await other.attach(channel, "stream", port, bridge.ends["sink"])
    bridge.handed_over()
    return bridge


async def sh(machine: QemuMachine, script: str, timeout_s: float = 30.0) -> tuple[int, str]:
    """Run a shell script in a guest; return its code and all of its output."""
    output = bytearray()
    code = await machine.agent.run(
        ["sh", "-c", script], output=lambda _stream, data: output.extend(data), timeout_s=timeout_s
    )
    return code, output.decode()


def descendants(pid: int) -> list[int]:
    """A process and all below it, parents first: a jail and the QEMU in it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found
