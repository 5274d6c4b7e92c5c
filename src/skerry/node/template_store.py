"""The templates on the disk: one appears whole or not at all, and is compared before each use.

In a directory of the node's state, which only its owner may enter:

    KEY/                one template; KEY is a digest of all that it depends on (`Kind`)
        ram             the guest's memory; what is zero in it is a hole
        state           the state of its devices
        template.json   what it is, and the digests of both
    .work-*             one that is being written; a node that begins removes what is left of them

The rules: what does not fit its description is no template; what fits in all but its content was
altered, and nothing starts from it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from skerry.errors import Denied, InputError, NotFound, SkerryError
from skerry.machine.qemu.template import STATE_MAX, Template, make_ram, seal_now
from skerry.system.durable import sync
from skerry.system.files import read_bounded

FORMAT = 1
"""Part of every key: raised when what a template must hold changes."""

MAX_TEMPLATES = 16
"""Templates that are kept; beyond it the one that was used longest ago is removed."""

MAX_BYTES = 8 << 30
"""Bytes that all of them may take on the disk; beyond it the same."""

MANIFEST_MAX = 64 << 10
"""Longest description, in bytes; a longer one is damaged."""

BLOCK = 64 << 10
"""Bytes of memory that are compared and written at once; one that is all zero is left out."""

RAM, STATE, MANIFEST = "ram", "state", "template.json"
_ZERO = bytes(BLOCK)


class TemplateDamaged(SkerryError):
    """A template is not whole or not what its name says: to be made again."""


class TemplateAltered(Denied):
    """A template's content is not what was written: nothing starts from it."""

    code = "TEMPLATE-ALTERED"


class Kind(msgspec.Struct, frozen=True):
    """All that a template depends on.

    `digest` is the image's, `kernel` which of its kernels, `memory` in bytes; `root` names the
    jail's root, and with it QEMU, its libraries and its firmware by their contents; `processor` is
    the host's, `tsc` the rate of its time-stamp counter as the guest was told it, in steps of
    `templates.TSC_STEP_KHZ`, 0 for none; `label` whose it is, empty for one that all labels share.
    """

    image: str
    digest: str
    kernel: str
    memory: int
    cpus: int
    board: str
    accel: str
    root: str
    processor: str
    tsc: int
    label: str

    @property
    def key(self) -> str:
        """The name of a template of this kind."""
        whole = msgspec.json.encode((FORMAT, self))
        return hashlib.sha256(whole).hexdigest()[:32]

    def supersedes(self, other: Kind) -> bool:
        """Say whether another one can't be wanted any more where this one is."""
        changed = {"digest": "", "kernel": "", "root": "", "processor": "", "tsc": 0}
        return msgspec.structs.replace(self, **changed) == msgspec.structs.replace(other, **changed)


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `template.json` holds: SHA-256 of the memory (see `blocks`) and of the state."""

    kind: Kind
    made: int
    ram: str
    state: str


class Stored(msgspec.Struct, frozen=True):
    """A template that lies in the store: `bytes` on the disk, `used` in Unix seconds; no
    `manifest` where that can't be read."""

    key: str
    manifest: Manifest | None
    bytes: int
    used: float


def blocks(file: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield what of a memory is not zero, in blocks, each with its place. Raises `OSError`."""
    place = 0
    while place < size:
        try:
            place = os.lseek(file, place, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        end = min(os.lseek(file, place, os.SEEK_HOLE), size)
        place -= place % BLOCK
        while place < end:
            data = os.pread(file, min(BLOCK, size - place), place)
            if data != _ZERO[: len(data)]:
                yield place, data
            place += BLOCK


def _copy(source: int, target: int, size: int) -> str:
    """Copy a memory and return the digest of what was copied: its blocks and their places."""
    digest = hashlib.sha256()
    for place, data in blocks(source, size):
        digest.update(place.to_bytes(8, "little") + data)
        if os.pwrite(target, data, place) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return digest.hexdigest()


def write(folder: Path, kind: Kind, template: Template) -> Manifest:
    """Put a template into the store, in the place of one of that kind. Raises `OSError`.

    It is given whole: a descriptor's number may be another file's before the last byte is copied.
    """
    work = Path(tempfile.mkdtemp(prefix=".work-", dir=folder))
    try:
        with (work / RAM).open("wb") as file:
            file.truncate(kind.memory)
            digest = _copy(template.ram, file.fileno(), kind.memory)
        (work / STATE).write_bytes(template.state)
        state = hashlib.sha256(template.state).hexdigest()
        manifest = Manifest(kind, int(time.time()), digest, state)
        content = msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"
        (work / MANIFEST).write_bytes(content)
        for path in work.iterdir():
            path.chmod(0o400)
            sync(path)
        sync(work)
        shutil.rmtree(folder / kind.key, ignore_errors=True)
        work.rename(folder / kind.key)
        sync(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def manifest_of(folder: Path, kind: Kind) -> Manifest | None:
    """Return the description of the template of a kind, None if there is none.

    Raises `TemplateDamaged` for one that is none, or another's.
    """
    home = folder / kind.key
    if not home.exists():
        return None
    manifest = _manifest(home)
    if manifest.kind != kind:
        raise TemplateDamaged("its description is another template's")
    return manifest


def used(folder: Path, kind: Kind) -> None:
    """Take note that a template is used now, read anew or not."""
    with contextlib.suppress(OSError):  # it was just removed
        os.utime(folder / kind.key)


def read(folder: Path, manifest: Manifest) -> Template:
    """Return a template with a sealed copy of its memory: exactly what was compared.

    Raises `TemplateDamaged`, `TemplateAltered`, `OSError`.
    """
    home, size = folder / manifest.kind.key, manifest.kind.memory
    try:
        state = read_bounded(home / STATE, STATE_MAX)
        file = os.open(home / RAM, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (InputError, OSError) as error:
        raise TemplateDamaged(f"a part of it can't be read: {error}") from None
    try:
        if os.fstat(file).st_size != size:
            raise TemplateDamaged("its memory is not as long as it was")
        ram = make_ram(size)
        try:
            digest = _copy(file, ram, size)
            if digest != manifest.ram or hashlib.sha256(state).hexdigest() != manifest.state:
                raise TemplateAltered(
                    f"the template {manifest.kind.key} was altered on the disk",
                    fix=f"find out by whom; skerry image template remove {manifest.kind.key}",
                )
            seal_now(ram)
        except BaseException:
            os.close(ram)
            raise
    finally:
        os.close(file)
    return Template(ram, state)


def stored(folder: Path) -> list[Stored]:
    """Return what lies in the store, what was used last at the end."""
    found = []
    for home in folder.glob("[!.]*"):
        manifest = None
        with contextlib.suppress(TemplateDamaged):
            manifest = _manifest(home)
        with contextlib.suppress(OSError):  # it is just being removed
            size = sum(part.stat().st_blocks * 512 for part in home.iterdir())
            found.append(Stored(home.name, manifest, size, home.stat().st_mtime))
    return sorted(found, key=lambda one: one.used)


def prune(folder: Path, kept: Kind) -> list[str]:
    """Remove what a template that was made takes the place of, and what is over the limits.

    Returns the keys of what was removed.
    """
    there = [one for one in stored(folder) if one.key != kept.key]
    gone = [one for one in there if one.manifest and kept.supersedes(one.manifest.kind)]
    left = [one for one in there if one not in gone]
    own = sum(one.bytes for one in stored(folder) if one.key == kept.key)
    while left and (len(left) >= MAX_TEMPLATES or own + sum(s.bytes for s in left) > MAX_BYTES):
        gone.append(left.pop(0))
    for one in gone:
        shutil.rmtree(folder / one.key, ignore_errors=True)
    return [one.key for one in gone]


def remove(folder: Path, key: str) -> None:
    """Remove a template, by its key or the beginning of it that no other has. Raises `NotFound`."""
    found = [one.key for one in stored(folder) if key and one.key.startswith(key)]
    if len(found) != 1:
        words = "there is no template" if not found else f"{len(found)} templates begin with"
        raise NotFound(f"{words} {key[:40]!a}", fix="skerry image template list shows them")
    shutil.rmtree(folder / found[0])


def discard(folder: Path, kind: Kind) -> None:
    """Remove the template of a kind, if there is one."""
    shutil.rmtree(folder / kind.key, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a node left that was killed while it wrote a template."""
    for work in folder.glob(".work-*"):
        shutil.rmtree(work, ignore_errors=True)


def _manifest(home: Path) -> Manifest:
    try:
        untrusted = read_bounded(home / MANIFEST, MANIFEST_MAX)
        manifest = msgspec.json.decode(untrusted, type=Manifest)
    except (InputError, OSError, ValueError, RecursionError) as error:
        raise TemplateDamaged(f"its description can't be read: {error}") from None
    if manifest.kind.key != home.name:
        raise TemplateDamaged("its description is another template's")
    return manifest
