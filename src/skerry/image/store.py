"""The cache of built images: an image appears whole or not at all, and is only ever read after.

A cache is a directory that its owner alone writes and every uid may read:

    packages/FILE.deb           downloaded packages, checked by hash before each use
    built/KEY/                  one image; KEY is the SHA-256 of all that went into it
        vmlinux bzImage initrd sbom.spdx.json image.json [image.json.sig]
    names/NAME -> ../built/KEY  the one that `load` returns: the newest build
    lock                        held while building; two builders wait for each other

What users name stands in `names` alone. An image says itself what it is called and what it was
made from, and is taken for nothing else, whatever link leads to it. Its files are compared with
its description by `verify`, which is for whoever boots, signs or shows it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec

from skerry.errors import InputError, NotFound, SkerryError
from skerry.image.cache import BUILT, NAMES, check_owner, locked, workspace
from skerry.system.durable import sync
from skerry.system.files import read_bounded
from skerry.wire.escape import escape
from skerry.wire.system_files import MAX_SIGNATURE

NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
MANIFEST_MAX = 1 << 20
"""Longest `image.json` in bytes; with a longer one the image is damaged, and not used."""
KERNEL, BZIMAGE, INITRD, SBOM = "vmlinux", "bzImage", "initrd", "sbom.spdx.json"
MANIFEST, SIGNATURE = "image.json", "image.json.sig"
CMDLINE_MAX = 1536
"""Longest command line of an image's kernel; with a longer one the image is damaged."""
PART_MAX = 4 << 30
"""Most bytes of one file of an image; with a longer one the image is damaged, and not used."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
VERSION = re.compile(r"[A-Za-z0-9.+~_-]{1,100}")
"""What a kernel's version may be."""


class Part(msgspec.Struct, frozen=True):
    """One file of an image: its size in bytes and its SHA-256."""

    bytes: int
    sha256: str


class Facts(msgspec.Struct, frozen=True):
    """What a builder says of an image beside its files.

    `packages` and `files` are counts; `compressed` is the initramfs as gzip has it, in bytes;
    `sources` are the inputs and their SHA-256.
    """

    kernel_version: str
    cmdline: str
    packages: int
    files: int
    compressed: int
    sources: dict[str, str]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `image.json` holds: the files of an image, and what they were made from.

    `key` is the digest of all inputs, `sources` among them.
    """

    name: str
    key: str
    kernel_version: str
    parts: dict[str, Part]
    sources: dict[str, str]
    cmdline: str
    packages: int
    files: int
    compressed: int


class Image(msgspec.Struct, frozen=True):
    """A built image.

    `kernel` is an uncompressed ELF vmlinux with a PVH entry (starts fastest); `bzimage` is the
    same kernel for machines that need the classical boot (a TPM on q35); `cmdline` is what it is
    started with. `digest` is the SHA-256 over the name, the command line and the contents of the
    four files; `sizes` are bytes by file name; the rest is as in `Facts`.
    """

    name: str
    kernel: Path
    bzimage: Path
    initrd: Path
    sbom: Path
    digest: str
    kernel_version: str
    cmdline: str
    sizes: dict[str, int]
    packages: int
    files: int
    compressed: int
    sources: dict[str, str]


def load(cache: Path, name: str) -> Image:
    """Return the newest image of that name. Never builds, needs no package manager.

    Raises `NotFound` when it was not built, `SkerryError` when the cache is damaged.
    """
    link = _link(cache, name)
    check_owner(cache)
    home = cache / BUILT / link.readlink().name
    if link.readlink() != _target(home.name):
        raise SkerryError(f"{link} leads to no image", fix=f"remove {link} and build it again")
    return _read(home, name)


def _link(cache: Path, name: str) -> Path:
    link = cache / NAMES / name
    if not NAME.fullmatch(name) or not link.is_symlink():
        known = name if NAME.fullmatch(name) else "NAME"
        raise NotFound(
            f"image {name!a} is not in {cache}",
            fix=f"build it: skerry image build {known}, or its .toml",
        )
    return link


def names(cache: Path) -> list[str]:
    """Return the names of all images in the cache, sorted."""
    place = cache / NAMES
    if not place.is_dir():
        return []
    return sorted(p.name for p in place.iterdir() if p.is_symlink() and NAME.fullmatch(p.name))


def remove(cache: Path, name: str) -> None:
    """Remove a name, and every build that no name points at.

    Raises `NotFound` for a name that is not there.
    """
    _link(cache, name)
    with locked(cache), workspace(cache) as work:
        link = _link(cache, name)
        link.unlink()
        sync(link.parent)
        held = {(cache / NAMES / other).readlink().name for other in names(cache)}
        for home in (cache / BUILT).iterdir():
            if home.name not in held:
                home.rename(work / home.name)  # gone at once; its files follow
    sync(cache / BUILT)


def verify(image: Image) -> None:
    """Compare every file of an image with its manifest, and that with what was loaded.

    Raises `SkerryError` on a difference.
    """
    home = image.kernel.parent
    for part, expected in _decode(home, _content(image)).parts.items():
        path = home / part
        if not _is_file(path, expected.bytes) or sha256(path) != expected.sha256:
            raise SkerryError(
                f"image {image.name!r} is damaged: {home / part} changed",
                fix=f"remove {home} and build it again",
            )


def _is_file(path: Path, size: int) -> bool:
    with contextlib.suppress(OSError):
        facts = path.lstat()
        return stat.S_ISREG(facts.st_mode) and facts.st_size == size
    return False


def signed_content(image: Image) -> tuple[bytes, bytes]:
    """Return the bytes that an image's signatures are over, and the signatures, if there are any.

    Raises `SkerryError` if either can't be read or is too long, or the bytes describe another
    image than this one.
    """
    content, signature = _content(image), image.kernel.parent / SIGNATURE
    try:
        return content, read_bounded(signature, MAX_SIGNATURE) if signature.exists() else b""
    except InputError as error:
        raise SkerryError(str(error), fix="sign the image anew") from None


def _content(image: Image) -> bytes:
    """Return the description that an image was loaded from. Raises `SkerryError`."""
    home = image.kernel.parent
    try:
        content = read_bounded(home / MANIFEST, MANIFEST_MAX)
    except InputError as error:
        raise _damaged(home, error) from error
    if _image(home, _decode(home, content)) != image:
        raise SkerryError(f"image {image.name!r} changed while it was read", fix="try again")
    return content


def put_signature(cache: Path, image: Image, signatures: bytes) -> Path:
    """Let an image have these signatures, in one step; call it under the cache's lock."""
    place = image.kernel.parent / SIGNATURE
    with workspace(cache) as work:
        new = work / SIGNATURE
        new.write_bytes(signatures)
        new.chmod(0o444)
        sync(new)
        new.rename(place)
    sync(place.parent)
    return place


def find(cache: Path, name: str, key: str, sources: Mapping[str, str]) -> Image | None:
    """Return the image built from exactly these inputs, and make it the newest; else None.

    Raises `SkerryError` if what lies in its place is another.
    """
    home = cache / BUILT / key
    if not os.path.lexists(home):
        return None
    image = _read(home, name)
    if image.sources != dict(sources):
        raise _damaged(home, ValueError("it was made from other inputs"))
    _point(cache, name, key)
    return image


def add(cache: Path, name: str, key: str, files: Mapping[str, Path], facts: Facts) -> Image:
    """Move built files into the cache as one image; `files` lie in a `workspace` of this cache.

    One that is there stays, with its signatures, if it is the same to the last byte. Raises
    `SkerryError` if it is not.
    """
    home = cache / BUILT / key
    parts = {n: Part(p.stat().st_size, sha256(p)) for n, p in sorted(files.items())}
    manifest = Manifest(
        name,
        key,
        facts.kernel_version,
        parts,
        dict(sorted(facts.sources.items())),
        facts.cmdline,
        facts.packages,
        facts.files,
        facts.compressed,
    )
    if os.path.lexists(home):
        held = _read(home, name)
        if held != _image(home, manifest):
            raise _damaged(home, ValueError("its inputs make another image"))
        verify(held)
    else:
        _move(cache, home, files, manifest)
    _point(cache, name, key)
    return _read(home, name)


def _move(cache: Path, home: Path, files: Mapping[str, Path], manifest: Manifest) -> None:
    with workspace(cache) as work:
        stage = work / "image"
        stage.mkdir()
        for part, path in files.items():
            path.rename(stage / part)
        (stage / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
        for path in stage.iterdir():
            path.chmod(0o444)
            sync(path)
        stage.chmod(0o755)
        stage.rename(home)
    sync(home.parent)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(home: Path, name: str) -> Image:
    """Return the image that lies in a directory of the cache, and is called so."""
    try:
        if home.is_symlink():
            raise ValueError(f"{home} is a link")
        manifest = _decode(home, read_bounded(home / MANIFEST, MANIFEST_MAX))
        if (manifest.name, manifest.key) != (name, home.name):
            raise ValueError(f"it is of another image, {manifest.name}")
    except (InputError, ValueError) as error:
        raise _damaged(home, error) from error
    return _image(home, manifest)


def _image(home: Path, manifest: Manifest) -> Image:
    summary = hashlib.sha256(f"{manifest.name}\0{manifest.cmdline}\0".encode())
    for part, facts in sorted(manifest.parts.items()):
        summary.update(f"{part}\0{facts.bytes}\0{facts.sha256}\0".encode())
    return Image(
        name=manifest.name,
        kernel=home / KERNEL,
        bzimage=home / BZIMAGE,
        initrd=home / INITRD,
        sbom=home / SBOM,
        digest=summary.hexdigest(),
        kernel_version=manifest.kernel_version,
        cmdline=manifest.cmdline,
        sizes={n: facts.bytes for n, facts in manifest.parts.items()},
        packages=manifest.packages,
        files=manifest.files,
        compressed=manifest.compressed,
        sources=manifest.sources,
    )


def _decode(home: Path, untrusted: bytes) -> Manifest:
    """Return a description that is within its bounds. Raises `SkerryError`."""
    try:
        manifest = msgspec.json.decode(untrusted, type=Manifest)
        if not NAME.fullmatch(manifest.name) or not VERSION.fullmatch(manifest.kernel_version):
            raise ValueError("its name or its kernel's version is none")
        digests = [part.sha256 for part in manifest.parts.values()]
        if not all(map(_DIGEST.fullmatch, (manifest.key, *digests, *manifest.sources.values()))):
            raise ValueError("what it holds as a digest is none")
        if set(manifest.parts) != {KERNEL, BZIMAGE, INITRD, SBOM}:
            raise ValueError("wrong set of files")
        if not all(0 <= part.bytes <= PART_MAX for part in manifest.parts.values()):
            raise ValueError("a file's size is out of bounds")
        if len(manifest.cmdline) > CMDLINE_MAX or not manifest.cmdline.isprintable():
            raise ValueError("its command line is no kernel's")
    except (ValueError, RecursionError) as error:
        raise _damaged(home, error) from error
    return manifest


def _damaged(home: Path, error: Exception) -> SkerryError:
    return SkerryError(
        f"image description {home / MANIFEST} is damaged: {escape(str(error))}",
        fix=f"remove {home} and build it again",
    )


def _point(cache: Path, name: str, key: str) -> None:
    """Let a name point to an image, in one step."""
    link = cache / NAMES / name
    if link.is_symlink() and link.readlink() == _target(key):
        return
    with workspace(cache) as work:
        (work / "link").symlink_to(_target(key))
        (work / "link").rename(link)
    sync(link.parent)


def _target(key: str) -> Path:
    return Path("..") / BUILT / key
