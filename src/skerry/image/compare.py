"""What differs between two images: packages by version and hash, files by mode and content."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping

import msgspec

from skerry.errors import SkerryError
from skerry.image import cpio, spdx, store
from skerry.image.store import Image
from skerry.image.tree import MERGED
from skerry.system.files import read_bounded


class File(msgspec.Struct, frozen=True):
    """One file of an image: its kind, its mode, its size in bytes and the SHA-256 of its content.

    The content of a link is where it leads.
    """

    kind: str
    mode: str
    bytes: int
    sha256: str


class Change(msgspec.Struct, frozen=True):
    """One difference: `what` is `package`, `file`, `kernel` or `cmdline`; empty: not there."""

    what: str
    name: str
    old: str
    new: str


def files_of(image: Image) -> dict[str, File]:
    """Return the files of an image by path, directories left out.

    Raises `SkerryError` if its archive is damaged; verify the image first.
    """
    try:
        found = cpio.entries(read_bounded(image.initrd, store.PART_MAX))
    except ValueError as error:
        raise SkerryError(f"{image.initrd} is damaged: {error}", fix="build it again") from None
    return {_merged(e.path): _file(e) for e in found if not stat.S_ISDIR(e.mode) and not _alias(e)}


def _merged(path: str) -> str:
    """Return a path as an image with a merged `/usr` has it, so that both kinds compare."""
    return f"usr/{path}" if path.partition("/")[0] in MERGED else path


def _alias(entry: cpio.Entry) -> bool:
    return entry.path in MERGED and entry.data.decode(errors="replace") == f"usr/{entry.path}"


def packages_of(image: Image) -> Mapping[str, tuple[str, str]]:
    """Return version and hash of each package of an image. Raises `SkerryError`."""
    document = read_bounded(image.sbom, spdx.MAX_DOCUMENT)
    return spdx.read(document, str(image.sbom)).packages


def difference(one: Image, other: Image) -> list[Change]:
    """Return what differs, packages first, each in the order of names."""
    changes = _pairs(
        "package",
        {n: f"{v} {h[:12]}" for n, (v, h) in packages_of(one).items()},
        {n: f"{v} {h[:12]}" for n, (v, h) in packages_of(other).items()},
    )
    if one.kernel_version != other.kernel_version:
        changes.append(Change("kernel", "version", one.kernel_version, other.kernel_version))
    if one.cmdline != other.cmdline:
        ours, theirs = one.cmdline.split(), other.cmdline.split()
        gone = " ".join(word for word in ours if word not in theirs)
        come = " ".join(word for word in theirs if word not in ours)
        changes.append(Change("cmdline", "words", gone, come))
    old, new = files_of(one), files_of(other)
    return changes + _pairs(
        "file", {p: _words(f) for p, f in old.items()}, {p: _words(f) for p, f in new.items()}
    )


def _pairs(what: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[Change]:
    names = sorted(old.keys() | new.keys())
    pairs = ((name, old.get(name, ""), new.get(name, "")) for name in names)
    return [Change(what, name, one, other) for name, one, other in pairs if one != other]


def _file(entry: cpio.Entry) -> File:
    kind = "link" if stat.S_ISLNK(entry.mode) else "file"
    digest = hashlib.sha256(entry.data).hexdigest()
    return File(kind, f"{stat.S_IMODE(entry.mode):04o}", len(entry.data), digest)


def _words(file: File) -> str:
    return f"{file.kind} {file.mode} {file.bytes} bytes {file.sha256[:12]}"
