"""The cache of built images: an image appears whole or not at all, and is only ever read after.

A cache is a directory that its owner alone writes and every uid may read:

    packages/FILE.deb           downloaded packages, checked by hash before each use
    NAME-KEY/                   one image; KEY is a digest of all that went into it
        vmlinux bzImage initrd sbom.spdx.json image.json [image.json.sig]
    NAME -> NAME-KEY            the one that `load` returns: the newest build
    lock                        held while building; two builders wait for each other
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from skerry.errors import InputError, NotFound, SkerryError
from skerry.system.durable import sync
from skerry.system.files import read_bounded
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
    """What `image.json` holds: the files of an image, and what they were made from."""

    name: str
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
    if not NAME.fullmatch(name) or not (cache / name / MANIFEST).exists():
        raise NotFound(
            f"image {name!r} is not in {cache}",
            fix=f"build it: skerry image build {name}, or its .toml",
        )
    check_owner(cache)
    return _read((cache / name).resolve())


def names(cache: Path) -> list[str]:
    """Return the names of all images in the cache, sorted."""
    if not cache.is_dir():
        return []
    return sorted(p.name for p in cache.iterdir() if p.is_symlink() and NAME.fullmatch(p.name))


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


def find(cache: Path, name: str, key: str) -> Image | None:
    """Return the image built from exactly these inputs, and make it the newest; else None."""
    home = cache / f"{name}-{key[:16]}"
    if not (home / MANIFEST).exists():
        return None
    _point(cache, name, home.name)
    return _read(home)


def add(cache: Path, name: str, key: str, files: Mapping[str, Path], facts: Facts) -> Image:
    """Move built files into the cache as one image; `files` lie in a `workspace` of this cache."""
    home = cache / f"{name}-{key[:16]}"
    parts = {n: Part(p.stat().st_size, sha256(p)) for n, p in sorted(files.items())}
    manifest = Manifest(
        name,
        facts.kernel_version,
        parts,
        dict(sorted(facts.sources.items())),
        facts.cmdline,
        facts.packages,
        facts.files,
        facts.compressed,
    )
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
        if home.exists():
            shutil.rmtree(home)
        stage.rename(home)
    sync(cache)
    _point(cache, name, home.name)
    return _read(home)


@contextlib.contextmanager
def workspace(cache: Path) -> Iterator[Path]:
    """Give a temporary directory on the cache's file system, removed afterwards."""
    work = Path(tempfile.mkdtemp(prefix=".work-", dir=cache))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Make the cache if need be and hold its lock; a second builder waits here."""
    try:
        _make(cache)
        check_owner(cache)
        descriptor = os.open(cache / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SkerryError(
            f"cannot write the image cache {cache}: {error.strerror}",
            fix="name another with --cache DIR or SKERRY_HOME",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # A builder that was killed leaves its workspace; under the lock nobody else has one.
        for left in cache.glob(".work-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def check_owner(cache: Path) -> None:
    """Refuse a cache that somebody else could have filled: they would choose our kernels.

    Raises `SkerryError` unless the cache and its parent belong to this user or root, and nobody
    else may write them (a sticky parent such as /tmp will do).
    """
    for path in (cache, cache.parent):
        facts = path.stat()
        shared = facts.st_mode & 0o022 and not (path != cache and facts.st_mode & stat.S_ISVTX)
        if facts.st_uid not in (0, os.geteuid()) or shared:
            raise SkerryError(
                f"{path} may be written by others, so images in {cache} can't be trusted",
                fix="name another cache with --cache DIR or SKERRY_HOME",
            )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make(cache: Path) -> None:
    """Make a directory and its parents so that every uid can enter them, whatever the umask."""
    if not cache.is_dir():
        _make(cache.parent)
        with contextlib.suppress(FileExistsError):  # another builder was first
            cache.mkdir()
            cache.chmod(0o755)


def _read(home: Path) -> Image:
    try:
        return _image(home, _decode(home, read_bounded(home / MANIFEST, MANIFEST_MAX)))
    except InputError as error:
        raise _damaged(home, error) from error


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
        f"image description {home / MANIFEST} is damaged: {error}",
        fix=f"remove {home} and build it again",
    )


def _point(cache: Path, name: str, target: str) -> None:
    """Let the link NAME point to `target`, in one step."""
    link = cache / name
    if link.is_symlink() and str(link.readlink()) == target:
        return
    with workspace(cache) as work:
        (work / "link").symlink_to(target)
        (work / "link").rename(link)
    sync(cache)
