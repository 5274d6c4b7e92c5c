"""Makes each domain's machine: its image, its identity, its limits, its jail, its accelerator.

The rule: an identity is taken anew for every start, so that no two incarnations share a uid.
"""

from __future__ import annotations

import asyncio
import itertools

from skerry.errors import LayerMissing, LimitReached
from skerry.image import store
from skerry.image.minimal import CMDLINE
from skerry.image.store import Image
from skerry.jail import cgroup
from skerry.jail.confinement import Confinement, Limits
from skerry.jail.errors import IdentitiesUsed, JailError, LayerOff
from skerry.jail.identity import Identity, IdentityPool, open_pool, own
from skerry.jail.root import INITRD, KERNEL, qemu_root
from skerry.label import Label
from skerry.machine.jailed import JailedLauncher
from skerry.machine.qemu.command import QemuSpec
from skerry.machine.qemu.machine import QemuMachine
from skerry.machine.qemu.tsc import tsc_khz
from skerry.monitor.protocols import Bridges, Machine
from skerry.node import paths
from skerry.node.selftest import self_test
from skerry.supervisor.client import SupervisorClient
from skerry.system.model import DomainSpec, System

MEMORY_OVERHEAD = 512 << 20
"""Bytes that a machine may use beyond its guest's memory: QEMU's code, tables and buffers."""

MAX_THREADS = 64
"""Threads and processes of one machine's jail; one more can't be made."""


class Machines:
    """The maker of a node's machines. Make it inside a running event loop, and close it."""

    def __init__(self, system: System, supervisor: SupervisorClient) -> None:
        """Load and verify the images. Raises `NotFound`, `LayerMissing`."""
        self._system = system
        self._supervisor = supervisor
        self._images: dict[str, Image] = {}
        for domain in system.domains.values():
            if domain.machine == "qemu" and domain.image not in self._images:
                image = store.load(paths.image_cache(), domain.image)
                store.verify(image)
                self._images[domain.image] = image
        self._pool = self._open_pool() if self._images else None
        self._starts = itertools.count(1)
        self._leaving: set[asyncio.Future[None]] = set()

    @staticmethod
    def _open_pool() -> IdentityPool | None:
        try:
            return open_pool()
        except JailError as error:
            raise LayerMissing(error.message, fix=error.fix) from None

    async def close(self) -> None:
        """Wait until the ended domains' control groups are gone; give the uids back."""
        await asyncio.gather(*self._leaving)
        if self._pool is not None:
            self._pool.close()

    async def self_test(self, streams: Bridges) -> dict[str, str]:
        """Probe the jail if a domain needs one. Raises `LayerMissing`, before anything starts."""
        if not self._images:
            return {}
        roots, accepted = paths.make_shared(paths.roots_dir()), self._system.accept_missing
        return await self_test(roots, self._identity("probe"), streams, accepted)

    def make(self, domain: DomainSpec, label: Label) -> Machine:
        """Return a machine for one start. Raises `Denied` where the host lacks what it needs."""
        if domain.machine == "simulator":
            from skerry.machine.simulator.machine import SimulatedMachine

            return SimulatedMachine(domain.name)
        image = self._images[domain.image]
        spec = QemuSpec(
            name=domain.name,
            label=str(label),
            kernel=image.kernel,
            bzimage=image.bzimage,
            initrd=image.initrd,
            cmdline=CMDLINE,
            memory=domain.memory,
            cpus=domain.cpus,
            board=domain.board,
            accel="tcg",
            tsc_khz=tsc_khz(),
        )
        groups = self._groups(domain)
        try:
            jail = self._jail(domain, spec, groups)
        except BaseException:
            cgroup.remove(groups)
            raise
        machine = QemuMachine(spec, JailedLauncher(self._supervisor, jail))
        machine.exited.add_done_callback(lambda _: self._leave(groups))
        return machine

    def _jail(self, domain: DomainSpec, spec: QemuSpec, groups: tuple[str, ...]) -> Confinement:
        try:
            root = qemu_root(paths.make_shared(paths.roots_dir()), spec.machine)
        except JailError as error:
            raise LayerMissing(error.message, fix=error.fix) from None
        return Confinement(
            str(root),
            self._identity(domain.name),
            binds=((str(spec.kernel), KERNEL), (str(spec.initrd), INITRD)),
            cgroups=groups,
            accepted=frozenset(self._system.accept_missing),
        )

    def _identity(self, name: str) -> Identity:
        if self._pool is None:
            return own()
        try:
            return self._pool.take(name)
        except IdentitiesUsed as error:
            raise LimitReached(error.message, fix=error.fix) from None

    def _groups(self, domain: DomainSpec) -> tuple[str, ...]:
        """Make the domain's control groups; none where the host gives none and that is accepted."""
        limits = Limits(memory=domain.memory + MEMORY_OVERHEAD, pids=MAX_THREADS)
        try:
            return cgroup.create(f"{domain.name}.{next(self._starts)}", limits)
        except LayerOff as error:
            if "cgroup" in self._system.accept_missing:
                return ()
            raise LayerMissing(error.message, fix=error.fix) from None

    def _leave(self, groups: tuple[str, ...]) -> None:
        """Remove the control groups of a machine that has ended, beside the event loop."""
        task = asyncio.ensure_future(asyncio.to_thread(cgroup.remove, groups))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
