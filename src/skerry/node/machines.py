"""Makes each domain's machine: its image, its identity, its jail, its accelerator.

The rule: an identity is taken anew for every start, so that no two incarnations share a uid.
"""

from __future__ import annotations

from types import TracebackType

from skerry.errors import LayerMissing, LimitReached
from skerry.image import store
from skerry.image.minimal import CMDLINE
from skerry.image.store import Image
from skerry.jail.confinement import Confinement
from skerry.jail.errors import IdentitiesUsed, JailError
from skerry.jail.identity import Identity, IdentityPool, open_pool, own
from skerry.jail.root import INITRD, KERNEL, qemu_root
from skerry.label import Label
from skerry.machine.jailed import JailedLauncher
from skerry.monitor.protocols import Machine
from skerry.node import paths
from skerry.supervisor.client import SupervisorClient
from skerry.system.model import DomainSpec, System


class Machines:
    """The maker of a node's machines; a context manager that gives back what it held."""

    def __init__(self, system: System, supervisor: SupervisorClient) -> None:
        """Load and verify the images. Raises `NotFound`, `LayerMissing`."""
        self._system = system
        self._supervisor = supervisor
        self._images: dict[str, Image] = {}
        for domain in system.domains.values():
            if domain.machine == "qemu" and domain.image not in self._images:
                self._images[domain.image] = self._load(domain)
        self._pool = self._open_pool() if self._images else None

    def _load(self, domain: DomainSpec) -> Image:
        image = store.load(paths.image_cache(), domain.image)
        store.verify(image)
        return image

    @staticmethod
    def _open_pool() -> IdentityPool | None:
        try:
            return open_pool()
        except JailError as error:
            raise LayerMissing(error.message, fix=error.fix) from None

    def __enter__(self) -> Machines:
        """Return the maker."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the uids back to other nodes."""
        if self._pool is not None:
            self._pool.close()

    def make(self, domain: DomainSpec, label: Label) -> Machine:
        """Return a machine for one start. Raises `Denied` where the host lacks what it needs."""
        if domain.machine == "simulator":
            from skerry.machine.simulator.machine import SimulatedMachine

            return SimulatedMachine(domain.name)
        return self._qemu(domain, label)

    def _qemu(self, domain: DomainSpec, label: Label) -> Machine:
        from skerry.machine.qemu.command import QemuSpec
        from skerry.machine.qemu.machine import QemuMachine
        from skerry.machine.qemu.tsc import tsc_khz

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
        return QemuMachine(
            spec, JailedLauncher(self._supervisor, self._jail(domain, spec.machine, image))
        )

    def _jail(self, domain: DomainSpec, board: str, image: Image) -> Confinement:
        try:
            root = qemu_root(paths.make_shared(paths.roots_dir()), board)
            return Confinement(
                str(root),
                self._identity(domain.name),
                binds=((str(image.kernel), KERNEL), (str(image.initrd), INITRD)),
                accepted=frozenset(self._system.accept_missing),
            )
        except JailError as error:
            raise LayerMissing(error.message, fix=error.fix) from None

    def _identity(self, name: str) -> Identity:
        if self._pool is None:
            return own()
        try:
            return self._pool.take(name)
        except IdentitiesUsed as error:
            raise LimitReached(error.message, fix=error.fix) from None
