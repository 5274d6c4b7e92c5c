"""The jail of each QEMU machine: its identity, its limits, its root and its way to KVM.

The rules: an identity is taken anew for every start, so that no two incarnations share a uid; what
is made outside of a jail for it (control groups, a device node) goes when its machine has ended.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from skerry.errors import LayerMissing, LimitReached, MachineError
from skerry.jail import cgroup, device
from skerry.jail.confinement import Confinement, Limits
from skerry.jail.errors import IdentitiesUsed, JailError, LayerOff
from skerry.jail.filter import PROFILES
from skerry.jail.identity import Identity, IdentityPool, open_pool, own
from skerry.machine.jailed import JailedLauncher
from skerry.machine.qemu.command import Board
from skerry.machine.qemu.root import own_descriptors, qemu_root
from skerry.machine.qemu.template import clone_profile
from skerry.machine.qemu.tpm import TPM_CALLS
from skerry.node import paths
from skerry.supervisor.client import SupervisorClient

MEMORY_OVERHEAD = 512 << 20
"""Bytes that a machine may use beyond its guest's memory: QEMU's code, tables and buffers."""

MAX_THREADS = 64
"""Threads and processes of one machine's jail; one more can't be made."""


NO_KVM = "this host has no /dev/kvm that a jail can use"
KVM_FIX = 'load the KVM module and let the jails open /dev/kvm (mode 0666), or use accel = "auto"'
"""What is said where a domain asks for KVM and the jail can't have it."""


class Inmate(msgspec.Struct, frozen=True):
    """What a machine's jail is made from: `files` are those it may read, by their places inside.

    `memory` in bytes, `cpu` in hundredths of a core; `kvm`: it may use KVM, `uefi`: it needs that,
    `tpm`: it may have a TPM, `template`: its memory is that of a template.
    """

    name: str
    board: Board
    files: Mapping[str, Path]
    memory: int
    kvm: bool
    uefi: bool = False
    cpu: int = 0
    tpm: bool = False
    template: bool = False


class MachineJail(msgspec.Struct, frozen=True):
    """A jail to start one machine in; `MachineJails.ended` takes what was made for it.

    `device` is the path of a device node, empty for none.
    """

    launcher: JailedLauncher
    uid: int
    groups: tuple[str, ...]
    device: str


class Identities:
    """This node's host uids, for domains and helpers alike. Close it when all have ended."""

    def __init__(self, used: int = 0, held: int = -1) -> None:
        """Reserve them: those after `used`, in the range whose lock is `held`.

        Raises `LayerMissing`.
        """
        try:
            self._pool: IdentityPool | None = open_pool(held=held)
            if self._pool is not None:
                self._pool.skip(used)
        except JailError as error:
            raise LayerMissing(error.message, fix=error.fix) from None

    @property
    def lock(self) -> int:
        """The descriptor that reserves the identities, -1 where there is none."""
        return self._pool.fileno() if self._pool is not None else -1

    def take(self, name: str) -> Identity:
        """Return one that nobody had; the node's own where it has none. Raises `LimitReached`."""
        if self._pool is None:
            return own()
        try:
            return self._pool.take(name)
        except IdentitiesUsed as error:
            raise LimitReached(error.message, fix=error.fix) from None

    def close(self) -> None:
        """Give them back."""
        if self._pool is not None:
            self._pool.close()


class MachineJails:
    """The maker of a node's jails. Make it inside a running event loop, and close it."""

    def __init__(
        self, supervisor: SupervisorClient, accepted: Collection[str], identities: Identities
    ) -> None:
        self._supervisor = supervisor
        self._accepted = frozenset(accepted)
        self._identities = identities
        self._starts = itertools.count(1)
        self._leaving: set[asyncio.Future[None]] = set()
        self._roots: dict[tuple[Board, bool, bool], Path] = {}

    async def close(self) -> None:
        """Wait until what was made for the ended machines is gone."""
        await asyncio.gather(*self._leaving)

    def accept(self, missing: Collection[str]) -> None:
        """Accept from now on that these layers, and no others, are missing."""
        self._accepted = frozenset(missing)

    async def sweep(self) -> None:
        """Remove what killed nodes left behind."""
        await asyncio.to_thread(cgroup.sweep)
        await asyncio.to_thread(device.sweep, paths.devices_dir())

    def has_kvm(self) -> bool:
        """Say whether a jail of this node can open the host's KVM at all."""
        identity = self._identities.take("kvm")
        kvm = device.open_to(paths.make_shared(paths.devices_dir()), "try", identity)
        device.remove(kvm)
        return kvm is not None

    def make(self, inmate: Inmate) -> MachineJail:
        """Make the jail for one start. Raises `Denied` where the host lacks what it needs, and
        `MachineError` where the jail can have no KVM."""
        identity = self._identities.take(inmate.name)
        groups = self._groups(inmate)
        kvm: Path | None = None
        try:
            if inmate.kvm:
                kvm = device.open_to(paths.make_shared(paths.devices_dir()), inmate.name, identity)
                if kvm is None:
                    raise MachineError(NO_KVM, fix=KVM_FIX)
            jail = self._confine(inmate, identity, groups, kvm)
        except BaseException:
            _undo(groups, kvm)
            raise
        launcher = JailedLauncher(self._supervisor, jail)
        return MachineJail(launcher, identity.uid, groups, str(kvm or ""))

    def ended(self, groups: tuple[str, ...], kvm: str) -> None:
        """Remove what was made for a jail whose machine has ended, beside the event loop."""
        task = asyncio.ensure_future(asyncio.to_thread(_undo, groups, Path(kvm) if kvm else None))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _confine(
        self, inmate: Inmate, identity: Identity, groups: tuple[str, ...], kvm: Path | None
    ) -> Confinement:
        profile = PROFILES["qemu-kvm" if kvm else "qemu"]
        if inmate.template:
            profile = clone_profile(profile)
        return Confinement(
            str(self.root(inmate)),
            identity,
            profile=(*profile, *TPM_CALLS) if inmate.tpm else profile,
            binds=(
                *((str(file), inside) for inside, file in inmate.files.items()),
                *own_descriptors(inmate.board, inmate.template),
            ),
            devices=((str(kvm), str(device.KVM)),) if kvm else (),
            cgroups=groups,
            accepted=self._accepted,
        )

    def root(self, inmate: Inmate) -> Path:
        """Return QEMU's root, compared with the host's files once in the life of a node.

        A root never changes, and to read all that goes into it costs as much as the whole jail.
        """
        kind = inmate.board, inmate.kvm, inmate.uefi
        if kind not in self._roots or not self._roots[kind].is_dir():
            try:
                self._roots[kind] = qemu_root(paths.make_shared(paths.roots_dir()), *kind)
            except JailError as error:
                raise LayerMissing(error.message, fix=error.fix) from None
        return self._roots[kind]

    def _groups(self, inmate: Inmate) -> tuple[str, ...]:
        # What a clone touches first is its template's page and its own copy: both are its charge.
        memory = inmate.memory * (2 if inmate.template else 1) + MEMORY_OVERHEAD
        limits = Limits(memory=memory, pids=MAX_THREADS, cpu=inmate.cpu)
        return make_groups(f"{inmate.name}.{next(self._starts)}", limits, self._accepted)


def make_groups(name: str, limits: Limits, accepted: Collection[str]) -> tuple[str, ...]:
    """Make the control groups of one jail; none where the host gives none and that is accepted.

    Raises `LayerMissing`.
    """
    try:
        return cgroup.create(name, limits)
    except LayerOff as error:
        if "cgroup" in accepted:
            return ()
        raise LayerMissing(error.message, fix=error.fix) from None


def _undo(groups: tuple[str, ...], kvm: Path | None) -> None:
    device.remove(kvm)
    cgroup.remove(groups)
