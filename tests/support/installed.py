"""An installed Debian on a disk of its own: its packages, its kernel, its boot loader, systemd.

Made as an installation is: `dpkg` unpacks and configures the packages in a root of their own (in a
namespace, so that no privilege is needed but subordinate uids), the kernel's own hook makes the
initramfs, and syslinux is put on the disk for BIOS and for UEFI alike. Nothing in it knows Skerry.

It is made once and kept: a minute, and some 60 MB of packages from apt.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import BinaryIO

from tests.support.machines import cache

LOGGED_IN = b"root@unmodified"
"""What the serial console shows when the system is up and the console has logged itself in."""

_PACKAGES = (
    *("?essential", "usr-is-merged", "systemd-sysv", "udev", "dbus", "kmod"),
    *("initramfs-tools", "linux-image-cloud-amd64"),
)
_TOOLS = ("mtools", "syslinux", "syslinux-common", "syslinux-efi")

_SECTOR = 512
_BOOT_START, _BOOT_SECTORS = 2048, 96 << 11
_ROOT_SECTORS = 640 << 11

_COMMANDS = (
    "console=ttyS0 root=/dev/vda2 rw net.ifnames=0 mitigations=off systemd.show_status=1 loglevel=7"
)

_INSTALL = r"""
set -eu
work=$1
root=$work/root
mkdir "$root"
mount -t tmpfs -o mode=755,size=1G root "$root"   # dpkg waits for the disk after each step
for name in bin sbin lib lib64; do mkdir -p "$root/usr/$name"; ln -s "usr/$name" "$root/$name"; done
# Extracted first, so that the packages' scripts find a shell; then installed as ever.
for deb in "$work"/debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -p -C "$root" --keep-directory-symlink
done
mkdir -p "$root/debs" "$root/etc/initramfs-tools/conf.d" "$root/etc/systemd/system" \
    "$root/var/lib/dpkg/info" "$root/var/lib/dpkg/updates"
: >"$root/var/lib/dpkg/status"
echo MODULES=list >"$root/etc/initramfs-tools/conf.d/modules"
printf 'virtio_pci\nvirtio_blk\next4\n' >"$root/etc/initramfs-tools/modules"
echo unmodified >"$root/etc/hostname"
echo '/dev/vda2 / ext4 errors=remount-ro 0 1' >"$root/etc/fstab"
mount --bind "$work/debs" "$root/debs"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 \
    chroot "$root" sh -eu <<'INSIDE'
dpkg --force-depends --force-confold --force-unsafe-io --install /debs/*.deb
dpkg --audit
passwd -d root
mkdir -p /etc/systemd/system/serial-getty@ttyS0.service.d
cat >/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf <<'UNIT'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 %I linux
UNIT
systemctl mask systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer
INSIDE
umount "$root/proc" "$root/debs"
umount -l "$root/dev"
rmdir "$root/debs"
rm -rf "$root/usr/share/doc" "$root/usr/share/man" "$root/usr/share/locale" \
    "$root/usr/share/info" "$root/var/cache/apt" "$root/var/lib/apt/lists"
cp "$root"/boot/vmlinuz-* "$work/vmlinuz"
cp "$root"/boot/initrd.img-* "$work/initrd.img"
mke2fs -q -t ext4 -O ^has_journal -d "$root" -F "$work/root.ext4" "$2k"
"""


def disk() -> Path:
    """Return the disk's image, raw; made if the cache does not hold it. Copy it before use."""
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    shelf = cache()
    shelf.mkdir(mode=0o755, parents=True, exist_ok=True)
    made = shelf / f"installed-{key}.raw"
    with (shelf / "installed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests share one cache
        if not made.exists():
            for old in shelf.glob("installed-*.raw"):
                old.unlink()
            _make(made)
    return made


def _make(target: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix=".installed-", dir=target.parent))
    try:
        _download(work)
        _namespace(["sh", "-c", _INSTALL, "sh", str(work), str(_ROOT_SECTORS // 2)])
        _assemble(work, work / "disk.raw")
        (work / "disk.raw").rename(target)
    finally:
        _namespace(["rm", "-rf", str(work)])


def _download(work: Path) -> None:
    """Fetch what an empty system would have to install, and unpack the tools that write disks."""
    (work / "debs").mkdir()
    (work / "status").touch()
    empty = ["-o", f"Dir::State::status={work / 'status'}", "-o", "APT::Install-Recommends=0"]
    plan = _run(["apt-get", "-s", "-q", *empty, "install", *_PACKAGES])
    wanted = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    root = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    _run(["apt-get", "-q", *root, "download", *wanted], work / "debs")
    (work / "tools").mkdir()
    _run(["apt-get", "-q", *root, "download", *_TOOLS], work / "tools")
    for deb in (work / "tools").glob("*.deb"):
        _run(["dpkg-deb", "-x", str(deb), str(work / "tools")])


def _assemble(work: Path, disk: Path) -> None:
    """Write a disk with two partitions: what the firmware reads, and the system."""
    tools = work / "tools/usr"
    env = {**os.environ, "PATH": f"{tools}/bin:{os.environ['PATH']}", "MTOOLS_SKIP_CHECK": "1"}
    fat = work / "boot.fat"
    with fat.open("wb") as file:
        file.truncate(_BOOT_SECTORS * _SECTOR)
    config = work / "syslinux.cfg"
    config.write_text(
        "SERIAL 0 115200\nDEFAULT debian\nPROMPT 0\nLABEL debian\n"
        f"  LINUX /vmlinuz\n  INITRD /initrd.img\n  APPEND {_COMMANDS}\n"
    )
    hidden = str(_BOOT_START)
    size = ["-T", str(_BOOT_SECTORS), "-h", "64", "-s", "32", "-H", hidden]
    _run(["mformat", "-i", str(fat), *size, "-v", "BOOT", "::"], env=env)
    _run(["mmd", "-i", str(fat), "::/EFI", "::/EFI/BOOT"], env=env)
    efi = tools / "lib/SYSLINUX.EFI/efi64/syslinux.efi"
    e64 = tools / "lib/syslinux/modules/efi64/ldlinux.e64"
    for source, name in (
        (work / "vmlinuz", "vmlinuz"),
        (work / "initrd.img", "initrd.img"),
        (config, "syslinux.cfg"),
        (efi, "EFI/BOOT/BOOTX64.EFI"),
        (e64, "EFI/BOOT/ldlinux.e64"),
    ):
        _run(["mcopy", "-i", str(fat), str(source), f"::/{name}"], env=env)
    _run(["syslinux", "--install", str(fat)], env=env)
    start = _BOOT_START + _BOOT_SECTORS
    record = bytearray((tools / "lib/syslinux/mbr/mbr.bin").read_bytes().ljust(_SECTOR, b"\0"))
    record[446:462] = _partition(True, 0xEF, _BOOT_START, _BOOT_SECTORS)
    record[462:478] = _partition(False, 0x83, start, _ROOT_SECTORS)
    record[510:512] = b"\x55\xaa"
    with disk.open("wb") as file:
        file.write(record)
        for part, sector in ((fat, _BOOT_START), (work / "root.ext4", start)):
            _copy(part, file, sector * _SECTOR)
        file.truncate((start + _ROOT_SECTORS) * _SECTOR)


def _copy(part: Path, disk: BinaryIO, place: int) -> None:
    """Copy a partition's content, and leave holes where it has nothing."""
    with part.open("rb") as content:
        while piece := content.read(1 << 16):
            if piece.count(0) < len(piece):
                disk.seek(place)
                disk.write(piece)
            place += len(piece)


def _partition(active: bool, kind: int, start: int, sectors: int) -> bytes:
    far = b"\xfe\xff\xff"  # beyond what cylinders can name: the sectors count
    return struct.pack("<B3sB3sII", 0x80 if active else 0, far, kind, far, start, sectors)


def _namespace(argv: list[str]) -> None:
    """Run a command as root of a namespace, with mounts of its own that end with it."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-auto", "--map-root-user"]
    _run(["unshare", *user, "--mount", "--pid", "--fork", "--kill-child", *argv])


def _run(argv: list[str], folder: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        argv,
        cwd=folder,
        env={**(env or os.environ), "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    words = done.stdout.decode(errors="replace")
    errors = done.stderr.decode(errors="replace")
    assert done.returncode == 0, f"{argv[:6]}: {done.returncode}\n{words[-2000:]}\n{errors[-2000:]}"
    return words
