"""Makes each domain's machine: its image, its jail, its accelerator.

The rule: KVM is used only where a guest of the same image was seen to run under it; a domain that
asks for KVM never gets less.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

import msgspec

from skerry.errors import MachineError, SkerryError
from skerry.image.store import Image
from skerry.label import Label
from skerry.machine.qemu.accel import PROBE_MEMORY, PROBE_S, guest_runs, kvm_runs
from skerry.machine.qemu.cloned import Clone, Source
from skerry.machine.qemu.command import Accel, Board, QemuSpec
from skerry.machine.qemu.machine import QemuMachine
from skerry.machine.qemu.root import INITRD, KERNEL
from skerry.machine.qemu.tsc import tsc_khz
from skerry.monitor.protocols import Bridges, Machine
from skerry.node import paths, prefixes
from skerry.node.images import measure, require_image, require_image_signed
from skerry.node.jails import KVM_FIX, NO_KVM, Identities, Inmate, MachineJail, MachineJails
from skerry.node.selftest import self_test
from skerry.node.standing import DomainEntry, Footprint
from skerry.node.templates import Templates, kind_of
from skerry.supervisor.client import Process, SupervisorClient
from skerry.system.model import DomainSpec, System

Report = Callable[[Mapping[str, object]], None]
"""Takes one event of a start (an object with `event`) and shows or drops it."""


def _board(domain: DomainSpec) -> Board:
    """Return the board: the quickest to start that has slots where something needs one."""
    return "pc" if domain.slots and domain.board == "auto" else domain.board


def _files(kernel: Path | None, initrd: Path | None) -> dict[str, Path]:
    """Return what of an image a machine reads, by its place in the jail."""
    return {KERNEL: kernel, INITRD: initrd} if kernel and initrd else {}


class Machines:
    """The maker of a node's machines. Make it inside a running event loop, and close it."""

    def __init__(
        self, system: System, supervisor: SupervisorClient, identities: Identities
    ) -> None:
        """Make a maker that has no images yet."""
        self._system = system
        self._supervisor = supervisor
        self._images: dict[str, Image] = {}
        self._kvm: dict[str, bool] = {}
        self._footprints: WeakKeyDictionary[Machine, Footprint] = WeakKeyDictionary()
        self._identities = identities
        self._jails: MachineJails | None = None
        self.templates = Templates(paths.templates_dir())
        self._untested = False  # there are jails that no self-test has passed
        self._make_jails()

    def _make_jails(self) -> None:
        jailed = any(domain.machine == "qemu" for domain in self._system.machines)
        if jailed and self._jails is None:
            accepted = self._system.accept_missing
            self._jails = MachineJails(self._supervisor, accepted, self._identities)

    def load_images(self) -> list[SkerryError]:
        """Load and verify the images that are not yet loaded; return what kept one from it.

        Where the system names an image key, every image that it boots must be signed with it.
        """
        key = self._system.image_signer
        failed: list[SkerryError] = []
        for name in sorted(self._system.images - self._images.keys()):
            try:
                self._images[name] = require_image(paths.image_cache(), name, key)
            except SkerryError as error:
                failed.append(error)
        return failed

    def _check_signer(self, before: System) -> None:
        """Judge what is loaded under another system's image key. Raises `ImageUnsigned`."""
        key = self._system.image_signer
        if key and key != before.image_signer:
            for name in sorted({d.image for d in self._system.machines}):
                if name in self._images:
                    require_image_signed(self._images[name], key)

    def measures(self) -> list[Mapping[str, object]]:
        """Return what the first record says of each loaded image."""
        return [
            measure(image, self._system.image_signer) for _, image in sorted(self._images.items())
        ]

    def measured(self, domain: DomainSpec) -> Mapping[str, object]:
        """Return what the record of a domain's start says of its image."""
        image = self._images.get(domain.image)
        if domain.machine != "qemu" or image is None:
            return {}
        measured = {"image": measure(image, self._system.image_signer)}
        return measured | ({"template": True} if domain.template else {})

    async def prepare(self, streams: Bridges, system: System, report: Report) -> Callable[[], None]:
        """Make ready what another system's domains run on, beside those that run.

        Returns what is to be called when that system comes into force: until then every machine is
        made as before. Raises `NotFound`, `LayerMissing`, `MachineError`.
        """
        before, kvm = self._system, dict(self._kvm)
        self._system = system
        try:
            await asyncio.to_thread(self._check_signer, before)
            for failure in await asyncio.to_thread(self.load_images):
                raise failure
            self._untested |= self._jails is None
            self._make_jails()
            if self._untested or set(system.accept_missing) != set(before.accept_missing):
                await self.self_test(streams)
                self._untested = False
            await self.choose_accel(report)
            chosen = self._kvm
        finally:
            self._system, self._kvm = before, kvm

        def taken() -> None:
            self._system, self._kvm = system, chosen
            if self._jails is not None:
                self._jails.accept(system.accept_missing)

        return taken

    async def close(self) -> None:
        """Wait until what was made for the ended machines is gone."""
        await self.templates.close()
        if self._jails is not None:
            await self._jails.close()

    async def self_test(self, streams: Bridges) -> dict[str, str]:
        """Probe the jail if a domain needs one. Raises `LayerMissing`, before anything starts."""
        if self._jails is None:
            return {}
        await self._jails.sweep()
        roots, accepted = paths.make_shared(paths.roots_dir()), self._system.accept_missing
        return await self_test(roots, self._identities.take("probe"), streams, accepted)

    async def choose_accel(self, report: Report) -> None:
        """Find out which images run under KVM, where a domain of theirs would use it.

        Without this call everything runs under TCG. Raises `MachineError` if a domain asks for
        KVM and can't have it, before anything starts.
        """
        asked = {(d.image, d.accel) for d in self._system.machines if d.machine == "qemu"}
        usable = any(accel != "tcg" for _, accel in asked) and self._has_kvm()
        for name in self._images:
            wanted = {accel for image, accel in asked if image == name}
            if "kvm" in wanted and not usable:
                raise MachineError(NO_KVM, fix=KVM_FIX)
            works = usable and wanted != {"tcg"} and await self._runs_under_kvm(name, report)
            if "kvm" in wanted and not works:
                raise MachineError(
                    f"no guest of the image {name} runs under this host's KVM",
                    fix='use accel = "auto", which takes TCG here',
                )
            self._kvm[name] = works
        # A system of its own can't be tried out: it gets KVM where one of ours runs under it.
        wanted = {accel for image, accel in asked if not image}
        if "kvm" in wanted and not usable:
            raise MachineError(NO_KVM, fix=KVM_FIX)
        self._kvm[""] = usable and ("kvm" in wanted or any(self._kvm.values()))

    def _has_kvm(self) -> bool:
        return self._jails is not None and self._jails.has_kvm()

    async def _runs_under_kvm(self, name: str, report: Report) -> bool:
        jails, image = self._jails, self._images[name]
        assert jails is not None  # there are images

        async def probe() -> bool:
            text = f"trying the image {name} under KVM: up to {PROBE_S:g} s, once per boot"
            report({"event": "note", "text": text})
            inmate = Inmate(
                "probe", "pc", _files(image.kernel, image.initrd), PROBE_MEMORY, kvm=True
            )
            jail = jails.make(inmate)
            try:
                works = await guest_runs("kvm", jail.launcher, image.kernel)
            finally:
                jails.ended(jail.groups, jail.device)
            if not works:
                report({"event": "note", "text": f"no guest of {name} runs under KVM here: TCG"})
            return works

        return await kvm_runs(image.kernel, paths.kvm_answers(), probe)

    def _accel(self, domain: DomainSpec) -> Accel:
        if domain.accel != "tcg" and self._kvm.get(domain.image, False):
            return "kvm"
        if domain.accel == "kvm":
            raise MachineError(f"KVM was not found to run {domain.image or 'a disk of its own'}")
        return "tcg"

    def make(self, domain: DomainSpec, label: Label) -> Machine:
        """Return a machine for one start. Raises `Denied` where the host lacks what it needs."""
        if domain.machine == "simulator":
            from skerry.machine.simulator.machine import SimulatedMachine

            return SimulatedMachine(domain.name)
        image, accel, jails = self._images.get(domain.image), self._accel(domain), self._jails
        if jails is None or (image is None and domain.boot == "kernel"):
            raise MachineError(f"the image {domain.image} is not there", fix="restart the node")
        board = _board(domain)
        # A PVH kernel overwrites the tables by which a guest finds its TPM on these boards.
        classical = domain.tpm and board in ("q35", "pc")
        spec = QemuSpec(
            name=domain.name,
            label=str(label),
            kernel=(image.bzimage if classical else image.kernel) if image else None,
            bzimage=image.bzimage if image else None,
            initrd=image.initrd if image else None,
            cmdline=image.cmdline if image else "",
            firmware=None if domain.boot == "kernel" else domain.boot,
            memory=domain.memory,
            cpus=domain.cpus,
            board=board,
            accel=accel,
            tsc_khz=tsc_khz() if accel == "tcg" else 0,  # under KVM the guest can ask for it
            tpm=domain.tpm,
        )
        inmate = Inmate(
            spec.name,
            spec.machine,
            _files(spec.kernel, spec.initrd),
            spec.memory,
            accel == "kvm",
            uefi=spec.firmware == "uefi",
            cpu=domain.cpu,
            tpm=spec.tpm,
            template=domain.template,
        )
        jail = jails.make(inmate)
        incarnation = f"{prefixes.DOMAIN}{domain.name}/{secrets.token_hex(4)}"
        machine = QemuMachine(spec, jail.launcher, incarnation)
        if image is not None and domain.template:
            machine = self._clone(spec, inmate, image, jail, incarnation)
        made = Footprint(incarnation, machine.kind, jail.uid, jail.groups, jail.device)
        self._watch(machine, made)
        return machine

    def _clone(
        self, spec: QemuSpec, inmate: Inmate, image: Image, jail: MachineJail, incarnation: str
    ) -> Clone:
        """Return a machine that begins from a template, which its start makes if need be."""
        jails, templates = self._jails, self.templates
        assert jails is not None  # it has one
        kind = kind_of(spec, image, jails.root(inmate).name, self._system.share_templates)

        def boot() -> Source:
            made = jails.make(msgspec.structs.replace(inmate, name="template"))
            source = Source(spec, made.launcher)
            source.exited.add_done_callback(lambda _: jails.ended(made.groups, made.device))
            return source

        find = partial(templates.find, spec.name, kind, boot)
        clone = Clone(spec, jail.launcher, incarnation, find, partial(templates.refused, kind))
        clone.exited.add_done_callback(lambda _: templates.ended(kind))
        return clone

    def heir(self, entry: DomainEntry, process: Process, kept: Mapping[str, int]) -> QemuMachine:
        """Return the machine of a domain that an earlier node started; `adopt` must follow.

        Raises `MachineError` if something of it is missing.
        """
        footprint = entry.footprint
        machine = QemuMachine.heir(
            entry.name, str(entry.label), footprint.incarnation, process, kept
        )
        self._watch(machine, footprint)
        return machine

    def footprint(self, machine: Machine) -> Footprint:
        """Return what belongs to a machine outside of the node."""
        return self._footprints.get(machine) or Footprint("", machine.kind)

    def forget(self, footprint: Footprint) -> None:
        """Remove what was made for a machine that ended while there was no node."""
        if self._jails is not None:
            self._jails.ended(footprint.groups, footprint.device)

    def _watch(self, machine: QemuMachine, footprint: Footprint) -> None:
        self._footprints[machine] = footprint
        machine.exited.add_done_callback(lambda _: self.forget(footprint))
