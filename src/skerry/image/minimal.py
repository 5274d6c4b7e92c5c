"""The image `minimal`: Debian's cloud kernel, busybox, Skerry's init and agent, nothing else.

The rule it keeps: the same inputs (kernel package, busybox, the files in `guest/`) give the same
bytes, and a build whose inputs are in the cache already does no work.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from skerry.errors import SkerryError
from skerry.image import cpio, kernel, package, store
from skerry.image.store import Image

NAME = "minimal"
KERNEL_PACKAGE = "linux-image-cloud-amd64"
FORMAT = 1
"""Part of the cache's key: raised when the same inputs are to give other bytes."""

CMDLINE = (
    "console=ttyS0 quiet reboot=t panic=-1 rdinit=/init tsc=reliable mitigations=off "
    "cryptomgr.notests no_timer_check ipv6.disable=1 apparmor=0 audit=0 8250.nr_uarts=1 "
    "init_on_alloc=0 random.trust_cpu=on"
)
"""The kernel command line for a quick start. Under TCG the machine adds `tsc_early_khz=KHZ`."""

MODULES = ("virtio_pci", "virtio_mmio", "virtio_console", "qemu_fw_cfg")
DEVICE_MODULES = {"0x0001": "virtio_net", "0x0002": "virtio_blk"}
"""Loaded in the guest only where a virtio device of that id is there."""

_GUEST = Path(__file__).resolve().parents[3] / "guest"
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
}
_ACCOUNTS = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": b"root:x:0:\nnogroup:x:65534:\n",
}

Progress = Callable[[str, float], None]


def build_minimal(cache: Path, *, progress: Progress | None = None) -> Image:
    """Build the image, or return it from the cache if its inputs are unchanged.

    Works as an ordinary user; a second builder on one cache waits for the first. `progress` is
    called with the name of the stage and the fraction of the whole, 0 to 1. Raises `SkerryError`
    naming what is missing (package, apt's lists, write access).
    """
    tell: Progress = progress or (lambda _stage, _fraction: None)
    with store.locked(cache):
        tell("look up", 0.0)
        deb = package.resolve_cached(cache, KERNEL_PACKAGE)
        busybox = _busybox()
        guest = {name: _guest_file(name) for name in sorted(_FILES)}
        sources = {
            f"{deb.name}={deb.version}": deb.sha256,
            "busybox": store.sha256(busybox),
            **{f"guest/{n}": hashlib.sha256(data).hexdigest() for n, data in guest.items()},
        }
        key = hashlib.sha256(repr((FORMAT, NAME, sorted(sources.items()))).encode()).hexdigest()
        image = store.find(cache, NAME, key)
        if image is None:
            image = _build(cache, key, deb, busybox, guest, sources, tell)
        tell("done", 1.0)
        return image


def _build(
    cache: Path,
    key: str,
    deb: package.Package,
    busybox: Path,
    guest: dict[str, bytes],
    sources: dict[str, str],
    tell: Progress,
) -> Image:
    path = package.fetch(cache, deb, lambda part: tell("fetch kernel", 0.05 + 0.55 * part))
    with store.workspace(cache) as work:
        tell("unpack kernel", 0.6)
        package.unpack(path, work / "root")
        version = kernel.version(work / "root")
        files = {name: work / name for name in (store.KERNEL, store.BZIMAGE, store.INITRD)}
        (work / f"root/boot/vmlinuz-{version}").rename(files[store.BZIMAGE])
        kernel.vmlinux(files[store.BZIMAGE], files[store.KERNEL])
        tell("pack initrd", 0.85)
        entries = [*_system(busybox, guest), *_modules(kernel.module_tree(work / "root", version))]
        files[store.INITRD].write_bytes(cpio.archive(entries))
        tell("store", 0.95)
        return store.add(cache, NAME, key, files, version=version, sources=sources)


def _system(busybox: Path, guest: dict[str, bytes]) -> Iterator[cpio.Entry]:
    for path in ("dev", "proc", "sys", "tmp", "root"):
        yield cpio.directory(path, mode=0o1777 if path == "tmp" else cpio.DIRECTORY)
    yield cpio.file("bin/busybox", busybox.read_bytes(), mode=cpio.EXECUTABLE)
    applets = package.run([str(busybox), "--list-full"], package="busybox-static").decode().split()
    for applet in applets:
        if applet not in ("bin/busybox", "linuxrc"):
            yield cpio.link(applet, "/bin/busybox")
    for name, data in guest.items():
        target, mode = _FILES[name]
        yield cpio.file(target, data, mode=mode)
    for target, data in _ACCOUNTS.items():
        yield cpio.file(target, data)


def _modules(tree: Path) -> Iterator[cpio.Entry]:
    always = kernel.modules(tree, MODULES)
    chosen = {m.name: m for m in always}
    yield _order("order", always)
    for device, driver in DEVICE_MODULES.items():
        extra = [m for m in kernel.modules(tree, [driver]) if m not in always]
        yield _order(device, extra)
        chosen |= {m.name: m for m in extra}
    for module in chosen.values():
        yield cpio.file(f"lib/modules/{module.name}.ko", module.data)


def _order(name: str, modules: list[kernel.Module]) -> cpio.Entry:
    return cpio.file(f"lib/modules/{name}", "".join(f"{m.name}\n" for m in modules).encode())


def _busybox() -> Path:
    found = shutil.which("busybox", path="/usr/bin:/bin")
    if found is None:
        raise package.missing("busybox", "busybox-static")
    path = Path(found).resolve()
    # A dynamically linked busybox names its loader; a static one has no such string.
    if b"/ld-linux" in path.read_bytes():
        raise SkerryError(f"{path} is not static", fix="apt-get install busybox-static")
    return path


def _guest_file(name: str) -> bytes:
    try:
        return (_GUEST / name).read_bytes()
    except OSError as error:
        raise SkerryError(
            f"{_GUEST / name} cannot be read",
            fix="run Skerry from its source tree (pip install -e)",
        ) from error
