"""Debian's cloud kernel, taken apart: bzImage, uncompressed vmlinux, modules in loading order.

Works for Debian 12 (packed by LZ4, modules plain `.ko`) and 13 (Zstandard, `.ko.xz`, virtio built
in: a driver that is built in is no error). The package ships no `modules.dep` (it is made at
installation), so the order comes from what `modules.dep` is made of: each module's own `depends=`.

Source for the layout of a bzImage: Linux, `Documentation/arch/x86/boot.rst`.
"""

from __future__ import annotations

import lzma
import re
import shutil
import signal
import subprocess
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import msgspec

from skerry.errors import SkerryError
from skerry.image import package, store

VMLINUX_MAX = 512 << 20
"""Largest kernel in bytes, once unpacked; a larger one is an error, no image is made."""
MODULE_MAX = 64 << 20
"""Largest kernel module in bytes, unpacked from xz; a larger one is an error, as above."""

BOOT = "boot/vmlinuz-"
"""What a kernel's path in its package begins with; its version follows."""

_BUILTIN = "modules.builtin"
_SETUP_SECTS, _MAGIC, _PAYLOAD_OFFSET, _PAYLOAD_LENGTH = 0x1F1, 0x202, 0x248, 0x24C
_TOOLS = {b"\x02\x21\x4c\x18": ("lz4", "lz4"), b"\x28\xb5\x2f\xfd": ("zstd", "zstd")}


class Module(msgspec.Struct, frozen=True):
    """A kernel module: its name with underscores, what it needs first, its ELF file's bytes."""

    name: str
    needs: tuple[str, ...]
    data: bytes


def version(files: Mapping[str, bytes]) -> str:
    """Return the kernel version in a package of these files. Raises `SkerryError`."""
    found = [path.removeprefix(BOOT) for path in files if path.startswith(BOOT)]
    if len(found) != 1 or not store.VERSION.fullmatch(found[0]):
        raise SkerryError(f"the kernel package holds {len(found)} kernels instead of one")
    return found[0]


def module_files(files: Mapping[str, bytes], kernel_version: str) -> dict[str, bytes]:
    """Return what a package has in its folder of modules, by the path in it.

    `files` are those of an image with a merged `/usr`: Debian 12 has the folder under `lib`,
    Debian 13 under `usr/lib`. Raises `SkerryError` if there is none.
    """
    folder = f"usr/lib/modules/{kernel_version}/"
    found = {p.removeprefix(folder): data for p, data in files.items() if p.startswith(folder)}
    if _BUILTIN not in found:
        raise SkerryError("the kernel package holds no modules")
    return found


def vmlinux(bzimage: Path, target: Path) -> None:
    """Write the uncompressed ELF kernel that a bzImage holds.

    Raises `SkerryError` when the file is no bzImage or the unpacked kernel no ELF file.
    """
    raw = bzimage.read_bytes()
    if len(raw) < 0x300 or raw[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise SkerryError(f"{bzimage.name} is not a bzImage")
    start = ((raw[_SETUP_SECTS] or 4) + 1) * 512 + _word(raw, _PAYLOAD_OFFSET)
    # The four bytes at the end are the length once unpacked; they are not part of the stream.
    payload = raw[start : start + _word(raw, _PAYLOAD_LENGTH) - 4]
    if payload[:2] == b"\x1f\x8b":
        unpacked = zlib.decompressobj(wbits=31).decompress(payload, VMLINUX_MAX)
        target.write_bytes(_bounded(unpacked, VMLINUX_MAX, bzimage.name))
    elif payload[:6] == b"\xfd7zXZ\0":
        unpacked = lzma.LZMADecompressor().decompress(payload, VMLINUX_MAX)
        target.write_bytes(_bounded(unpacked, VMLINUX_MAX, bzimage.name))
    elif payload[:4] in _TOOLS:
        _unpack(_TOOLS[payload[:4]], payload, target)
    else:
        raise SkerryError(f"{bzimage.name} is packed in an unknown way ({payload[:4].hex()})")
    with target.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            raise SkerryError(f"{bzimage.name} does not hold an ELF kernel")


def modules(found: Mapping[str, bytes], wanted: Iterable[str]) -> list[Module]:
    """Return the wanted modules and all that they need, each after what it needs.

    `found` is of `module_files`. Drivers that are built in are left out. Raises `SkerryError`
    for one that is neither a module nor built in.
    """
    paths = sorted(p for p in found if p.startswith("kernel/") and ".ko" in PurePosixPath(p).name)
    files = {
        _plain(PurePosixPath(path).name.split(".ko", 1)[0]): (path, found[path]) for path in paths
    }
    lines = found[_BUILTIN].decode(errors="replace").splitlines()
    builtin = {_plain(PurePosixPath(line).stem) for line in lines}
    ordered: dict[str, Module] = {}
    for name in wanted:
        _visit(name, files, builtin, ordered, ())
    return list(ordered.values())


def _visit(
    name: str,
    files: Mapping[str, tuple[str, bytes]],
    builtin: set[str],
    ordered: dict[str, Module],
    above: tuple[str, ...],
) -> None:
    if name in ordered or name in builtin:
        return
    if name in above or name not in files:
        raise SkerryError(f"kernel module {name} is missing or needs itself")
    module = _read(name, *files[name])
    for need in module.needs:
        _visit(need, files, builtin, ordered, (*above, name))
    ordered[name] = module


def _read(name: str, path: str, raw: bytes) -> Module:
    if path.endswith(".xz"):
        raw = _bounded(lzma.LZMADecompressor().decompress(raw, MODULE_MAX), MODULE_MAX, path)
    elif not path.endswith(".ko"):
        raise SkerryError(f"kernel module {path} is packed in an unknown way")
    match = re.search(rb"\0depends=([^\0]*)\0", raw)
    if raw[:4] != b"\x7fELF" or match is None:
        raise SkerryError(f"{path} is not a kernel module")
    needs = tuple(_plain(n) for n in match[1].decode().split(",") if n)
    return Module(name, needs, raw)


def _bounded(unpacked: bytes, most: int, name: str) -> bytes:
    if len(unpacked) >= most:
        raise SkerryError(f"{name} holds more than {most >> 20} MiB")
    return unpacked


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _word(raw: bytes, offset: int) -> int:
    return int.from_bytes(raw[offset : offset + 4], "little")


def _unpack(tool: tuple[str, str], payload: bytes, target: Path) -> None:
    name, debian = tool
    if shutil.which(name) is None:
        raise package.missing(name, debian)
    with target.open("wb") as out:
        done = subprocess.run(
            ["prlimit", f"--fsize={VMLINUX_MAX}", name, "-d", "-c"],
            input=payload,
            stdout=out,
            stderr=subprocess.PIPE,
            timeout=package.COMMAND_TIMEOUT_S,
            check=False,
        )
    if done.returncode == -signal.SIGXFSZ:
        raise SkerryError(f"the kernel holds more than {VMLINUX_MAX >> 20} MiB")
    if done.returncode:
        words = ascii(done.stderr.decode(errors="replace")[:200])
        raise SkerryError(f"{name} could not unpack the kernel: {words}")
