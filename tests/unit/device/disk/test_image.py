"""Images on the host: what is refused, and how."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import subprocess
from pathlib import Path
from typing import cast

import msgspec
import pytest

from skerry.device.disk import luks
from skerry.device.disk.acl import READ, WRITE, XATTR, granted
from skerry.device.disk.header import BadImage
from skerry.device.disk.image import DiskInUse, Image, open_image
from skerry.device.disk.keys import KeyLost, Keys, one_time
from skerry.device.disk.release import zero
from skerry.device.disk.use import DiskUse
from skerry.device.disk.uses import DiskUses, Means
from skerry.system.model import Format, ResourceSpec

SIZE = 1 << 20


def spec(path: Path, format_: Format = "raw", size: int = 0, shared: bool = False) -> ResourceSpec:
    """Describe a disk."""
    return ResourceSpec("data", "disk", "disk", str(path), format_, size, shared=shared)


def test_a_missing_image_without_a_size_is_refused_and_not_made(tmp_path: Path) -> None:
    """Nothing is made by accident. The control: with a size it is."""
    path = tmp_path / "data.img"
    with pytest.raises(BadImage, match="No such file"):
        open_image(spec(path), writes=True)
    assert not path.exists()
    image = open_image(spec(path, size=SIZE), writes=True)
    assert image.new
    image.close()
    assert path.stat().st_size == SIZE
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_first_use_of_a_disk_that_only_reads_cannot_write_it(
    tmp_path: Path, encrypted: bool
) -> None:
    """The image is made and laid out, and the daemon gets a reader's descriptor and locks of it.

    The control: one that writes gets a writer's.
    """
    disk = msgspec.structs.replace(spec(tmp_path / "data.img", size=SIZE), encrypted=encrypted)
    folder, modes = tmp_path, []

    class Use:
        """A use whose daemon is not started."""

        discards = False

        def __init__(self, writes: bool) -> None:
            self.writes = writes

        async def start(self, channel: int, image: Image, *_: object) -> None:
            """Look at what the daemon would get, beside which a reader may come."""
            modes.append((image.new, fcntl.fcntl(image.descriptor, fcntl.F_GETFL) & os.O_ACCMODE))
            if not self.writes:
                open_image(disk, writes=False).close()
            with pytest.raises(DiskInUse):
                open_image(disk, writes=True)

    means = Means(None, None, folder, folder, Keys(folder / "keys"))  # type: ignore[arg-type]
    maker = DiskUses(means, disk)
    asyncio.run(maker.opening(cast(DiskUse, Use(False)), 1))
    assert modes == [(True, os.O_RDONLY)]
    (tmp_path / "data.img").unlink()
    maker.means.keys.destroy(disk.file)
    asyncio.run(maker.opening(cast(DiskUse, Use(True)), 2))
    assert modes[1:] == [(True, os.O_RDWR)]


def test_what_is_no_regular_file_under_one_name_is_refused(tmp_path: Path) -> None:
    """Directory, pipe, device, symbolic link, second name: each is said, and nothing waits."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "real").write_bytes(bytes(SIZE))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name, words in (
        ("folder", "Is a directory|no regular file"),
        ("pipe", "no regular file"),
        ("link", "is a symbolic link"),
    ):
        for writes in (True, False):
            with pytest.raises(BadImage, match=words):
                open_image(spec(tmp_path / name), writes)
    with pytest.raises(BadImage, match="no regular file"):
        open_image(spec(Path("/dev/null")), writes=True)
    open_image(spec(tmp_path / "real"), writes=True).close()
    os.link(tmp_path / "real", tmp_path / "second")
    with pytest.raises(BadImage, match="another name"):
        open_image(spec(tmp_path / "real"), writes=True)


def test_a_broken_image_is_refused_by_its_name(tmp_path: Path) -> None:
    """The line names the file; the file is as it was."""
    path = tmp_path / "data.img"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(BadImage, match=f"{path} is truncated"):
        open_image(spec(path), writes=True)
    with pytest.raises(BadImage, match=f"{path} is no qcow2"):
        open_image(spec(path, "qcow2"), writes=True)
    assert path.read_bytes() == b"x" * 1000


def test_locks_are_those_of_readers_and_writers(tmp_path: Path) -> None:
    """One writer or many readers; shared, all of them."""
    path = tmp_path / "data.img"
    path.write_bytes(bytes(SIZE))
    one = open_image(spec(path), writes=False)
    two = open_image(spec(path), writes=False)
    with pytest.raises(DiskInUse):
        open_image(spec(path), writes=True)
    one.close()
    two.close()
    writer = open_image(spec(path), writes=True)
    for writes in (False, True):
        with pytest.raises(DiskInUse):
            open_image(spec(path), writes)
    writer.close()
    both = [open_image(spec(path, shared=True), writes=True) for _ in range(2)]
    with pytest.raises(DiskInUse):
        open_image(spec(path), writes=True)
    for image in both:
        image.close()


@pytest.mark.parametrize("there", [True, False], ids=["there", "made"])
def test_a_reader_gets_a_descriptor_that_cannot_write(tmp_path: Path, there: bool) -> None:
    """Also where it was made first, and the locks stay those of a reader. The control writes."""
    path = tmp_path / "data.img"
    if there:
        path.write_bytes(bytes(SIZE))
    image = open_image(spec(path, size=SIZE), writes=False)
    if not there:
        os.pwrite(image.descriptor, b"laid out", 0)
    image.only_read()
    image.only_read()
    with pytest.raises(OSError):
        os.pwrite(image.descriptor, b"x", 0)
    with pytest.raises(DiskInUse):
        open_image(spec(path), writes=True)
    open_image(spec(path), writes=False).close()
    image.close()
    writer = open_image(spec(path), writes=True)
    assert os.pwrite(writer.descriptor, b"x", 0) == 1
    writer.close()


def test_a_container_is_one_that_qemu_opens(tmp_path: Path) -> None:
    """What is laid out here is read and written by QEMU with the key, and not with another."""
    path, key = tmp_path / "luks", one_time()
    with path.open("w+b") as file:
        luks.lay_out(file.fileno(), key, SIZE)
    assert path.stat().st_size == luks.PAYLOAD + SIZE

    def qemu_io(secret: str) -> str:
        words = ["qemu-io", "--object", f"secret,id=k,data={secret}", "--image-opts"]
        words += [f"driver=luks,key-secret=k,file.driver=file,file.filename={path}"]
        words += ["-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    assert "read 65536/65536" in qemu_io(key)
    assert "Pattern verification failed" not in qemu_io(key)
    assert b"\7" * 64 not in path.read_bytes()
    assert "Invalid password" in qemu_io(one_time())


def test_two_containers_have_nothing_in_common(tmp_path: Path) -> None:
    """The same passphrase opens two that hold different keys: what is written differs."""
    key, raw = one_time(), []
    for name in ("one", "other"):
        with (tmp_path / name).open("w+b") as file:
            luks.lay_out(file.fileno(), key, 0)
        raw.append((tmp_path / name).read_bytes()[4096:260096])
    shared = sum(a == b for a, b in zip(*raw, strict=True)) / len(raw[0])
    assert shared < 0.01


def test_keys_are_durable_private_and_destroyed(tmp_path: Path) -> None:
    """A key stays the same, is its owner's alone, and leaves nothing when it is destroyed."""
    keys = Keys(tmp_path / "keys")
    assert keys.read("/a") == ""
    key = keys.make("/a", "data")
    assert (keys.make("/a", "renamed"), len(key)) == (key, 64)
    assert keys.make("/b", "data") != key
    (file,) = (path for path in (tmp_path / "keys").iterdir() if key in path.read_text())
    assert file.stat().st_mode & 0o777 == 0o600
    opened = file.open()
    keys.destroy("/a")
    assert key not in opened.read()
    opened.close()
    assert keys.read("/a") == ""
    keys.destroy("/a")
    (other,) = (tmp_path / "keys").iterdir()
    other.write_text("short")
    with pytest.raises(KeyLost, match="damaged"):
        keys.make("/b", "data")


def test_zeroing_leaves_nothing_and_keeps_the_length(tmp_path: Path) -> None:
    """Data and holes alike read as zeros, and the space is given back."""
    path = tmp_path / "data.img"
    with path.open("w+b") as file:
        file.truncate(64 << 20)
        for at in (0, 5 << 20, (64 << 20) - 6):
            file.seek(at)
            file.write(b"canary")
        file.flush()
        zero(file.fileno())
    assert path.read_bytes() == bytes(64 << 20)
    assert path.stat().st_blocks == 0


UID, NOBODY = 165_999, 0xFFFFFFFF
ENTRY = struct.Struct("<HHI")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_access_for_one_uid_leaves_the_list_as_it_was(tmp_path: Path, mode: int) -> None:
    """Granted, there is an entry for that uid alone; afterwards mode and list are the old ones."""
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    path = folder / "data.img"
    path.write_bytes(bytes(512))
    path.chmod(mode)
    with granted(path, UID, READ | WRITE):
        assert UID.to_bytes(4, "little") in os.getxattr(path, XATTR)
        assert UID.to_bytes(4, "little") in os.getxattr(folder, XATTR)
        with granted(path, UID + 1, READ):
            pass
        assert (UID + 1).to_bytes(4, "little") not in os.getxattr(path, XATTR)
    assert path.stat().st_mode & 0o777 == mode
    assert folder.stat().st_mode & 0o777 == 0o700
    for each in (path, folder):
        with pytest.raises(OSError):
            os.getxattr(each, XATTR)


def test_access_keeps_what_others_have(tmp_path: Path) -> None:
    """An entry that the owner made stays, bit for bit."""
    path = tmp_path / "data.img"
    path.write_bytes(bytes(512))
    with granted(path, 1234, READ):
        before = os.getxattr(path, XATTR)
        with granted(path, UID, READ | WRITE):
            assert os.getxattr(path, XATTR) != before
        assert os.getxattr(path, XATTR) == before


ORDERS = [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)]
"""In which three grants go, by when they came."""


def own_list(path: Path, *named: tuple[int, int], mask: int) -> bytes:
    """Give a file a list with these users, and return it as the kernel has it."""
    entries = {(0x01, NOBODY): 6, (0x04, NOBODY): 4, (0x10, NOBODY): mask, (0x20, NOBODY): 0}
    entries |= {(0x02, uid): rights for uid, rights in named}
    packed = (ENTRY.pack(tag, rights, who) for (tag, who), rights in sorted(entries.items()))
    os.setxattr(path, XATTR, b"\2\0\0\0" + b"".join(packed))
    return os.getxattr(path, XATTR)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_access_that_overlaps_leaves_the_list_as_it_was(
    tmp_path: Path, order: tuple[int, int, int]
) -> None:
    """However the grants end: what the owner's mask withheld is withheld again, bit for bit.

    Two of them are one uid's, as of an image and an overlay in one folder.
    """
    path = tmp_path / "data.img"
    path.write_bytes(bytes(512))
    before = own_list(path, (1234, 7), mask=4)
    wanted = ((UID, READ | WRITE), (UID + 1, READ), (UID, READ))
    grants = [granted(path, *each) for each in wanted]
    for grant in grants:
        grant.__enter__()
    for step, number in enumerate(order):
        now = os.getxattr(path, XATTR)
        for uid in {wanted[left][0] for left in order[step:]}:
            assert uid.to_bytes(4, "little") in now
        assert ENTRY.pack(0x02, 4, 1234) in now, "who was there has no more than the mask left"
        grants[number].__exit__(None, None, None)
    assert os.getxattr(path, XATTR) == before


def test_what_the_owner_changes_meanwhile_stays(tmp_path: Path) -> None:
    """A list that is set while access is granted is what is left when it ends."""
    path = tmp_path / "data.img"
    path.write_bytes(bytes(512))
    with granted(path, UID, READ), granted(path, UID + 1, READ | WRITE):
        own_list(path, (1234, 7), (UID, 4), (UID + 1, 6), mask=6)
    left = os.getxattr(path, XATTR)
    assert (1234).to_bytes(4, "little") in left
    assert not any(uid.to_bytes(4, "little") in left for uid in (UID, UID + 1))
    assert left == own_list(path, (1234, 7), mask=6)
