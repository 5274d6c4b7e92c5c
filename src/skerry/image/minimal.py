"""The image `minimal`: Debian's cloud kernel, busybox, Skerry's init and agent, nothing else.

Every other image stands on it: `entries` is what all of them have.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from skerry.errors import SkerryError
from skerry.image import cpio, kernel, package, waker
from skerry.image.package import Package
from skerry.image.recipe import GUEST
from skerry.image.store import Image

NAME = "minimal"
KERNEL_PACKAGE = "linux-image-cloud-amd64"

CMDLINE = (
    "console=ttyS0 quiet reboot=t panic=-1 rdinit=/init tsc=reliable mitigations=off "
    "cryptomgr.notests no_timer_check ipv6.disable=1 apparmor=0 audit=0 8250.nr_uarts=1 "
    "init_on_alloc=0 random.trust_cpu=on"
)
"""The kernel command line for a quick start. Under TCG the machine adds `tsc_early_khz=KHZ`."""

MODULES = ("virtio_pci", "virtio_mmio", "virtio_console", "qemu_fw_cfg")
DEVICE_MODULES = {"0x0001": "virtio_net", "0x0002": "virtio_blk"}
"""Loaded in the guest only where a virtio device of that id is there."""

CONFINED = "lib/skerry/confined"
"""What runs a command as the confined service of a guest with SELinux."""

_FILES = {
    "init": ("init", cpio.EXECUTABLE),
    "inittab": ("etc/inittab", cpio.PLAIN),
    "profile": ("etc/profile", cpio.PLAIN),
    "mdev.conf": ("etc/mdev.conf", cpio.PLAIN),
    "port": ("lib/skerry/port", cpio.EXECUTABLE),
    "memory": ("lib/skerry/memory", cpio.EXECUTABLE),
    "driver": ("lib/skerry/driver", cpio.EXECUTABLE),
    "link-up": ("sbin/link-up", cpio.EXECUTABLE),
    "uplink-up": ("sbin/uplink-up", cpio.EXECUTABLE),
    "lease": ("lib/skerry/lease", cpio.EXECUTABLE),
    "disk": ("lib/skerry/disk", cpio.EXECUTABLE),
    "agent": ("lib/skerry/agent", cpio.EXECUTABLE),
    "command": ("lib/skerry/command", cpio.PLAIN),
    "control": ("lib/skerry/control", cpio.EXECUTABLE),
    "serve": ("lib/skerry/serve", cpio.EXECUTABLE),
    "skerry": ("bin/skerry", cpio.EXECUTABLE),
}
SELINUX_CIL = "presets/skerry.cil"
_SELINUX = {
    "presets/selinux-init": ("lib/skerry/selinux-init", cpio.EXECUTABLE),
    "presets/confined": (CONFINED, cpio.EXECUTABLE),
    SELINUX_CIL: ("etc/selinux/skerry.cil", cpio.PLAIN),
}
_WAKER = "waker"
_PLACES = {**_FILES, **_SELINUX, _WAKER: ("lib/skerry/waker", cpio.EXECUTABLE)}
_ACCOUNTS = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": b"root:x:0:\nnogroup:x:65534:\n",
}

KEPT_APPLETS = ("sbin/init", "sbin/mdev")
"""Applets of busybox that a guest starts with: no package may bring its own under their names."""

Progress = Callable[[str, float], None]


def build_minimal(cache: Path, *, progress: Progress | None = None) -> Image:
    """Build the image, or return it from the cache; as `build.build` of its preset."""
    from skerry.image.build import build
    from skerry.image.recipe import preset

    return build(cache, preset(NAME), progress=progress)


def guest_files(*, selinux: bool = False) -> dict[str, bytes]:
    """Return what Skerry itself puts into a guest, by the name in `guest/`; one file is made."""
    names = sorted([*_FILES, *(_SELINUX if selinux else [])])
    return {name: _guest_file(name) for name in names} | {_WAKER: waker.program()}


def entries(
    busybox: Path, guest: Mapping[str, bytes], modules: Mapping[str, bytes]
) -> Iterator[cpio.Entry]:
    """Return what every image has: busybox, Skerry's init and agent, the kernel's drivers."""
    yield from _system(busybox, guest)
    yield from _modules(modules)


def _system(busybox: Path, guest: Mapping[str, bytes]) -> Iterator[cpio.Entry]:
    for path in ("dev", "proc", "sys", "tmp", "root"):
        yield cpio.directory(path, mode=0o1777 if path == "tmp" else cpio.DIRECTORY)
    yield cpio.file("bin/busybox", busybox.read_bytes(), mode=cpio.EXECUTABLE)
    applets = package.run([str(busybox), "--list-full"], package="busybox-static").decode().split()
    for applet in applets:
        if applet not in ("bin/busybox", "linuxrc"):
            yield cpio.link(applet, "/bin/busybox")
    for name, data in guest.items():
        target, mode = _PLACES[name]
        yield cpio.file(target, data, mode=mode)
    for target, data in _ACCOUNTS.items():
        yield cpio.file(target, data)


def _modules(files: Mapping[str, bytes]) -> Iterator[cpio.Entry]:
    always = kernel.modules(files, MODULES)
    chosen = {m.name: m for m in always}
    yield _order("order", always)
    for device, driver in DEVICE_MODULES.items():
        extra = [m for m in kernel.modules(files, [driver]) if m not in always]
        yield _order(device, extra)
        chosen |= {m.name: m for m in extra}
    for module in chosen.values():
        yield cpio.file(f"lib/modules/{module.name}.ko", module.data)


def _order(name: str, modules: list[kernel.Module]) -> cpio.Entry:
    return cpio.file(f"lib/modules/{name}", "".join(f"{m.name}\n" for m in modules).encode())


def busybox_program() -> Path:
    """Return the host's static busybox. Raises `SkerryError` if there is none."""
    found = shutil.which("busybox", path="/usr/bin:/bin")
    if found is None:
        raise package.missing("busybox", "busybox-static")
    path = Path(found).resolve()
    # A dynamically linked busybox names its loader; a static one has no such string.
    if b"/ld-linux" in path.read_bytes():
        raise SkerryError(f"{path} is not static", fix="apt-get install busybox-static")
    return path


def busybox_package(busybox: Path) -> Package:
    """Return what the bill of materials says of busybox; its hash is that of the program."""
    argv = ["dpkg-query", "-W", "-f=${Version}", "busybox-static"]
    try:
        version = package.run(argv, package="dpkg").decode()
    except SkerryError:
        version = "unknown"  # another one, put there by hand
    data = busybox.read_bytes()
    return Package("busybox-static", version, len(data), hashlib.sha256(data).hexdigest())


def _guest_file(name: str) -> bytes:
    try:
        return (GUEST / name).read_bytes()
    except OSError as error:
        raise SkerryError(
            f"{GUEST / name} cannot be read",
            fix="run Skerry from its source tree (pip install -e)",
        ) from error
