"""A machine whose apt knows one package, a small stand-in for Debian's kernel; no network.

The stand-ins are `apt-cache` and `apt-get`; dpkg-deb, lz4 and busybox are the real ones.
"""

from __future__ import annotations

import hashlib
import lzma
import struct
import subprocess
from pathlib import Path

import pytest

from skerry.image import package

VERSION = "6.1.0-1-test"
ELF = b"\x7fELF" + bytes(range(256)) * 64


def module(needs: str) -> bytes:
    """Return something with the marks of a kernel module."""
    return b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0name=x\0"


def bzimage(payload: bytes) -> bytes:
    """Return a bzImage that holds this packed kernel."""
    raw = bytearray(1024)
    raw[0x1F1] = 1
    raw[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", raw, 0x248, 16, len(payload) + 4)
    return bytes(raw) + bytes(16) + payload + struct.pack("<I", len(ELF)) + b"tail"


def lz4(data: bytes) -> bytes:
    """Return the legacy frame that kernels use."""
    return subprocess.run(
        ["lz4", "-l", "-c"], input=data, stdout=subprocess.PIPE, check=True
    ).stdout


def zstd(data: bytes) -> bytes:
    """Return what Debian 13 packs a kernel into."""
    return subprocess.run(
        ["zstd", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True
    ).stdout


class Debian:
    """A machine with one kernel package in its lists; counts downloads."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.tree = home / "deb" / "lib/modules" / VERSION
        (home / "deb/DEBIAN").mkdir(parents=True)
        (home / "deb/boot").mkdir()
        (home / "bin").mkdir()
        (home / "lists").mkdir()
        (home / "deb/DEBIAN/control").write_text(
            "Package: kernel\nVersion: 1\nArchitecture: amd64\nMaintainer: x\nDescription: x\n"
        )
        (home / f"deb/boot/vmlinuz-{VERSION}").write_bytes(bzimage(lz4(ELF)))
        self.modules()
        monkeypatch.setenv("PATH", f"{home}/bin", prepend=":")
        monkeypatch.setattr(package, "_LISTS", home / "lists")
        self.publish()

    def modules(self) -> None:
        """Write the drivers, in every form that the two Debians have."""
        found = {
            "virtio/virtio.ko": module("virtio_ring"),
            "virtio/virtio_ring.ko": module(""),
            "virtio/virtio_mmio.ko": module("virtio,virtio_ring"),
            "virtio/virtio_pci.ko": module("virtio-ring,virtio"),
            "fw/qemu_fw_cfg.ko.xz": lzma.compress(module("")),
            "net/virtio_net.ko": module("virtio,failover"),
            "net/failover.ko": module(""),
            "blk/virtio-blk.ko": module("virtio"),
        }
        for path, data in found.items():
            target = self.tree / "kernel" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        (self.tree / "modules.builtin").write_text("kernel/drivers/char/virtio_console.ko\n")

    def publish(self) -> None:
        """Build the package and let the lists name it."""
        deb = self.home / "kernel_1_amd64.deb"
        subprocess.run(
            ["dpkg-deb", "--build", self.home / "deb", deb], check=True, capture_output=True
        )
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        self.tool(
            "apt-cache",
            f"""
            [ "$1" = depends ] && printf 'meta\\n  Depends: kernel\\n' ||
            printf 'Package: kernel\\nVersion: 1\\nSize: {deb.stat().st_size}\\nSHA256: {digest}\\n'
        """,
        )
        self.tool("apt-get", f"echo x >>{self.home}/downloads; cp {deb} .")

    def tool(self, name: str, script: str) -> None:
        """Put a program in front of the machine's own."""
        path = self.home / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def downloads(self) -> int:
        """Return how often a package was downloaded."""
        count = self.home / "downloads"
        return len(count.read_text().split()) if count.exists() else 0
