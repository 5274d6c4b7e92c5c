"""The cache of built images: an image appears whole or not at all, and is only ever read after.

A cache is a directory that its owner alone writes and every uid may read:

    packages/FILE.deb           downloaded packages, checked by hash before each use
    NAME-KEY/                   one image; KEY is a digest of all that went into it
        vmlinux bzImage initrd image.json
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

from skerry.errors import NotFound, SkerryError

NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
MANIFEST_MAX = 1 << 20
"""Longest `image.json` in bytes; with a longer one the image is damaged, and not used."""
KERNEL, BZIMAGE, INITRD, MANIFEST = "vmlinux", "bzImage", "initrd", "image.json"


class Part(msgspec.Struct, frozen=True):
    """One file of an image: its size in bytes and its SHA-256."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `image.json` holds: the files of an image, and what they were made from."""

    name: str
    kernel_version: str
    parts: dict[str, Part]
    sources: dict[str, str]


class Image(msgspec.Struct, frozen=True):
    """A built image.

    `kernel` is an uncompressed ELF vmlinux with a PVH entry (starts fastest); `bzimage` is the
    same kernel for machines that need the classical boot (a TPM on q35). `digest` is the SHA-256
    over the name and the contents of the three files; `sizes` are bytes by file name; `sources`
    are the inputs and their SHA-256.
    """

    name: str
    kernel: Path
    bzimage: Path
    initrd: Path
    digest: str
    kernel_version: str
    sizes: dict[str, int]
    sources: dict[str, str]


def load(cache: Path, name: str) -> Image:
    """Return the newest image of that name. Never builds, needs no package manager.

    Raises `NotFound` when it was not built, `SkerryError` when the cache is damaged.
    """
    if not NAME.fullmatch(name) or not (cache / name / MANIFEST).exists():
        raise NotFound(
            f"image {name!r} is not in {cache}", fix=f"build it: skerry image build {name}"
        )
    check_owner(cache)
    return _read((cache / name).resolve())


def names(cache: Path) -> list[str]:
    """Return the names of all images in the cache, sorted."""
    if not cache.is_dir():
        return []
    return sorted(p.name for p in cache.iterdir() if p.is_symlink() and NAME.fullmatch(p.name))


def verify(image: Image) -> None:
    """Compare every file of an image with its manifest. Raises `SkerryError` on a difference."""
    home = image.kernel.parent
    for part, expected in _manifest(home).parts.items():
        if sha256(home / part) != expected.sha256:
            raise SkerryError(
                f"image {image.name!r} is damaged: {home / part} changed",
                fix=f"remove {home} and build it again",
            )


def find(cache: Path, name: str, key: str) -> Image | None:
    """Return the image built from exactly these inputs, and make it the newest; else None."""
    home = cache / f"{name}-{key[:16]}"
    if not (home / MANIFEST).exists():
        return None
    _point(cache, name, home.name)
    return _read(home)


def add(
    cache: Path,
    name: str,
    key: str,
    files: Mapping[str, Path],
    *,
    version: str,
    sources: Mapping[str, str],
) -> Image:
    """Move built files into the cache as one image; `files` lie in a `workspace` of this cache."""
    home = cache / f"{name}-{key[:16]}"
    parts = {n: Part(p.stat().st_size, sha256(p)) for n, p in sorted(files.items())}
    manifest = Manifest(name, version, parts, dict(sorted(sources.items())))
    with workspace(cache) as work:
        stage = work / "image"
        stage.mkdir()
        for part, path in files.items():
            path.rename(stage / part)
        (stage / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
        for path in stage.iterdir():
            path.chmod(0o444)
            _sync(path)
        stage.chmod(0o755)
        if home.exists():
            shutil.rmtree(home)
        stage.rename(home)
    _sync(cache)
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
    manifest = _manifest(home)
    summary = hashlib.sha256(manifest.name.encode() + b"\0")
    for part, facts in sorted(manifest.parts.items()):
        summary.update(f"{part}\0{facts.bytes}\0{facts.sha256}\0".encode())
    return Image(
        name=manifest.name,
        kernel=home / KERNEL,
        bzimage=home / BZIMAGE,
        initrd=home / INITRD,
        digest=summary.hexdigest(),
        kernel_version=manifest.kernel_version,
        sizes={n: facts.bytes for n, facts in manifest.parts.items()},
        sources=manifest.sources,
    )


def _manifest(home: Path) -> Manifest:
    path = home / MANIFEST
    try:
        if path.stat().st_size > MANIFEST_MAX:
            raise ValueError("too long")
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        if set(manifest.parts) != {KERNEL, BZIMAGE, INITRD}:
            raise ValueError("wrong set of files")
    except (OSError, ValueError) as error:
        raise SkerryError(
            f"image description {path} is damaged: {error}",
            fix=f"remove {home} and build it again",
        ) from error
    return manifest


def _point(cache: Path, name: str, target: str) -> None:
    """Let the link NAME point to `target`, in one step."""
    link = cache / name
    if link.is_symlink() and str(link.readlink()) == target:
        return
    with workspace(cache) as work:
        (work / "link").symlink_to(target)
        (work / "link").rename(link)
    _sync(cache)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
