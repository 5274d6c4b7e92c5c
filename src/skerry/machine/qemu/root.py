"""The root of a QEMU's jail: the program, its accelerator, the firmware of one board.

The rule: nothing is there that this board does not need; what is missing names its package.
"""

from __future__ import annotations

from pathlib import Path

from skerry.jail.device import KVM
from skerry.jail.errors import JailError
from skerry.jail.root import build
from skerry.machine.qemu.command import BINARY
from skerry.machine.qemu.firmware import CODE

_MODULES = Path("/usr/lib/x86_64-linux-gnu/qemu")
_FIRMWARE = (Path("/usr/share/qemu"), Path("/usr/share/seabios"))
_BLOBS = {
    "microvm": ("bios-microvm.bin", "pvh.bin", "linuxboot_dma.bin"),
    "pc": ("bios-256k.bin", "kvmvapic.bin", "pvh.bin", "linuxboot_dma.bin"),
}
_BLOBS["q35"] = _BLOBS["pc"]
KERNEL, INITRD = "/k/kernel", "/k/initrd"
"""Mount points in QEMU's root."""

DESCRIPTORS = "/proc/self/fd"
"""Where a QEMU that may have to map a memory finds its own descriptors by name: one with slots, or
of a template. Nothing else of /proc is there. Bound from the jail's own process, so it needs no
/proc of its own."""


def own_descriptors(machine: str, template: bool = False) -> tuple[tuple[str, str], ...]:
    """Return what a jail with this root binds so that `DESCRIPTORS` is there, if it is to be."""
    return ((DESCRIPTORS, DESCRIPTORS),) if machine == "pc" or template else ()


def qemu_root(directory: Path, machine: str, kvm: bool = False, uefi: bool = False) -> Path:
    """Return the root for QEMU with one machine type: `microvm`, `q35` or `pc`.

    With `kvm` it has a mount point for the device, with `uefi` that firmware.

    Raises JailError, naming the file, where the package qemu-system-x86 is not installed.
    """
    accelerator = _MODULES / "accel-tcg-x86_64.so"
    programs = [Path(BINARY), *([accelerator] if accelerator.exists() else [])]
    blobs = [_firmware(name) for name in _BLOBS[machine]]
    if uefi:
        if not CODE.exists():
            raise JailError(f"{CODE} is not installed", fix="install ovmf")
        blobs.append(CODE)
    points = (KERNEL, INITRD, *([str(KVM)] if kvm else []))
    points += (f"{DESCRIPTORS}/",)
    name = f"qemu-{machine}{'-uefi' if uefi else ''}"
    return build(directory, name, programs, blobs, points)


def _firmware(name: str) -> Path:
    """Find a firmware file; QEMU looks in its own folder first, whatever the link there says."""
    for folder in _FIRMWARE:
        if (folder / name).exists():
            return folder / name
    raise JailError(f"firmware {name} is not installed", fix="install qemu-system-x86 and seabios")
