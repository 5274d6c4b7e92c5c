"""The release of a disk: what is wiped, what is not, and that nothing else is said."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import msgspec
import pytest

from skerry.device.disk import luks, release
from skerry.device.disk.header import BadImage
from skerry.device.disk.keys import Keys
from skerry.device.disk.release import wipe, zero
from skerry.device.disk.uses import DiskUses, Means
from skerry.errors import StateError
from skerry.system.model import ResourceSpec

CANARY = b"canary-of-alice!" * 512
SEALED = "an image under a key"


class Disk:
    """A disk in a folder, with the node's keys."""

    def __init__(self, folder: Path, **keys: object) -> None:
        self.path = folder / "vault.img"
        self.keys = Keys(folder / "keys")
        spec = ResourceSpec("vault", "disk", "disk", str(self.path), size=len(CANARY))
        self.spec = msgspec.structs.replace(spec, **keys)

    def plain(self) -> int:
        """Make a plain image with the canary; return a descriptor of it."""
        self.path.write_bytes(CANARY)
        return os.open(self.path, os.O_RDONLY)

    def sealed(self) -> int:
        """Make an encrypted image and its key."""
        self.path.touch()
        descriptor = os.open(self.path, os.O_RDWR)
        luks.lay_out(descriptor, self.keys.make(str(self.path), "vault"), len(CANARY))
        return descriptor

    def wipe(self) -> str:
        """Release it."""
        return wipe(self.spec, self.keys)

    def uses(self) -> DiskUses:
        """Return its maker, which starts nothing here."""

        async def never(*_: object) -> None:
            raise AssertionError

        folder = self.path.parent
        means = Means(never, lambda: None, folder, folder, self.keys)  # type: ignore[arg-type, return-value]
        return DiskUses(means, self.spec)


def test_a_plain_image_that_is_not_there_is_not_released(tmp_path: Path) -> None:
    """It may come back with all that was on it. The control: back again, it is."""
    disk = Disk(tmp_path)
    os.close(disk.plain())
    away = disk.path.rename(tmp_path / "away")
    with pytest.raises(BadImage, match="is not there, so nothing was wiped") as error:
        disk.wipe()
    assert "skerry disk forget vault" in error.value.fix
    away.rename(disk.path)
    assert disk.wipe() == "its blocks were zeroed"
    assert disk.path.read_bytes() == bytes(len(CANARY))


def test_an_image_that_cannot_be_looked_at_is_not_taken_for_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale mount says nothing of what is on it: neither release nor forget goes on."""
    disk = Disk(tmp_path, encrypted=True)
    os.close(disk.sealed())

    def stale(path: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", stale)
        for work in (wipe, release.require_gone):
            with pytest.raises(BadImage, match="cannot be looked at: Stale"):
                work(disk.spec, disk.keys)
    assert disk.keys.read(str(disk.path)), "the key is as it was"
    assert disk.wipe() == "its key was destroyed"


def test_the_key_of_an_encrypted_image_that_is_away_is_its_release(tmp_path: Path) -> None:
    """Without the key nothing reads it, wherever it is. A second time there is nothing to do."""
    disk = Disk(tmp_path, encrypted=True)
    os.close(disk.sealed())
    disk.path.rename(tmp_path / "away")
    assert disk.wipe() == "its key was destroyed; its image was not there"
    assert not disk.keys.read(str(disk.path))
    with pytest.raises(BadImage, match="nothing was wiped"):
        disk.wipe()


@pytest.mark.parametrize("stale_key", [False, True])
def test_what_no_key_had_encrypted_is_zeroed(tmp_path: Path, stale_key: bool) -> None:
    """A plain image that the file calls encrypted, also beside a key of an image before it."""
    disk = Disk(tmp_path, encrypted=True)
    if stale_key:
        os.close(disk.sealed())
    opened = disk.plain()
    key = "its key was destroyed and " if stale_key else ""
    assert disk.wipe() == f"{key}its blocks were zeroed"
    assert os.pread(opened, len(CANARY), 0) == bytes(len(CANARY))
    assert not disk.path.exists()
    os.close(opened)


def test_a_moved_image_without_its_key_is_zeroed_and_that_is_said(tmp_path: Path) -> None:
    """The key lies under the old path: it was not destroyed, and nothing says it was."""
    disk = Disk(tmp_path, encrypted=True)
    opened = disk.sealed()
    moved = Disk(tmp_path, encrypted=True, file=str(tmp_path / "moved.img"))
    disk.path.rename(moved.spec.file)
    assert moved.wipe() == "its blocks were zeroed"
    assert os.pread(opened, 512, 0) == bytes(512)
    assert disk.keys.read(str(disk.path))
    os.close(opened)


def test_the_key_goes_with_a_disk_that_is_no_longer_called_encrypted(tmp_path: Path) -> None:
    """Of such an image key and blocks both go; the control keeps `encrypted` and its blocks."""
    disk = Disk(tmp_path)
    os.close(disk.sealed())
    assert disk.wipe() == "its key was destroyed and its blocks were zeroed"
    assert not disk.keys.read(str(disk.path))
    control = Disk(tmp_path, encrypted=True)
    opened = control.sealed()
    assert control.wipe() == "its key was destroyed"
    assert os.pread(opened, 4, 0) == b"LUKS"
    os.close(opened)


def test_a_lost_image_is_forgotten_by_a_step_of_its_own(tmp_path: Path) -> None:
    """While the image is there it is refused; gone, its key goes too, and nothing else is said."""
    disk = Disk(tmp_path, encrypted=True)
    os.close(disk.sealed())
    uses = disk.uses()
    with pytest.raises(StateError, match="is there, and not wiped"):
        asyncio.run(uses.release(gone=True))
    assert disk.keys.read(str(disk.path))
    disk.path.unlink()
    done = asyncio.run(uses.release(gone=True))
    assert done == "its image was not there, and nothing was wiped; its key was destroyed"
    assert not disk.keys.read(str(disk.path))


def test_a_disk_that_keeps_nothing_says_how_it_is_released(tmp_path: Path) -> None:
    """What was on it before it threw everything away is reached without `discard`."""
    disk = Disk(tmp_path, discard=True)
    with pytest.raises(StateError, match="nothing is ever written") as error:
        asyncio.run(disk.uses().release())
    assert "leave `discard` out" in error.value.fix


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_a_file_system_that_does_not_say_where_data_is_fails_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Only `ENXIO` is a hole up to the end; any other error is no success."""
    disk = Disk(tmp_path)
    os.close(disk.plain())
    seek = os.lseek

    def failing(descriptor: int, at: int, whence: int) -> int:
        if whence == os.SEEK_DATA:
            raise OSError(number, os.strerror(number))
        return seek(descriptor, at, whence)

    with disk.path.open("r+b") as file:
        with monkeypatch.context() as patch:
            patch.setattr(os, "lseek", failing)
            with pytest.raises(OSError, match=os.strerror(number)):
                zero(file.fileno())
        zero(file.fileno())
    assert disk.path.read_bytes() == bytes(len(CANARY))
