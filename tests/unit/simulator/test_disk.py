"""The simulated disk keeps what was synced and nothing else for sure."""

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.machine.simulator.disk import SimulatedDisk

FILE = Path("/d/file")


@given(st.integers(), st.binary(max_size=3000), st.lists(st.binary(max_size=2000), max_size=4))
def test_a_crash_keeps_what_was_synced_and_any_part_of_the_rest(
    seed: int, safe: bytes, rest: list[bytes]
) -> None:
    """The synced beginning survives; what follows is, byte for byte, what was written or zero."""
    disk = SimulatedDisk(seed)
    fd = disk.open(FILE)
    disk.append(fd, safe)
    disk.sync(fd)
    disk.sync_folder(FILE)
    for data in rest:
        disk.append(fd, data)
    written = safe + b"".join(rest)
    disk.crash()
    left = disk.content(FILE)
    assert left.startswith(safe)
    assert len(left) <= len(written)
    assert all(got in (0, put) for got, put in zip(left, written, strict=False))
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.append(fd, b"x")


def test_a_crash_loses_each_kind_of_thing() -> None:
    """Over the seeds an unsynced write is lost, kept, torn and holed, and an unsynced name lost."""
    seen = set()
    for seed in range(200):
        disk = SimulatedDisk(seed)
        fd = disk.open(FILE)
        disk.append(fd, b"x" * 2000)
        if seed % 2:
            disk.sync_folder(FILE)
        disk.crash()
        left = disk.content(FILE)
        holed = b"\0" in left
        seen.add("holed" if holed else {0: "lost", 2000: "kept"}.get(len(left), "torn"))
    assert seen == {"lost", "kept", "torn", "holed"}


def test_the_same_seed_crashes_in_the_same_way() -> None:
    """A fault that a test found can be had again."""

    def crashed(seed: int) -> bytes:
        disk = SimulatedDisk(seed)
        fd = disk.open(FILE)
        disk.append(fd, bytes(range(1, 256)) * 20)
        disk.crash()
        return disk.content(FILE)

    assert [crashed(seed) for seed in range(20)] == [crashed(seed) for seed in range(20)]
    assert len({crashed(seed) for seed in range(20)}) > 3


@given(st.integers())
def test_a_rename_is_old_or_new_until_its_folder_is_synced(seed: int) -> None:
    """Replacing a file by rename leaves one of the two contents, never a mixture."""
    disk = SimulatedDisk(seed)
    new = Path("/d/new")
    disk.replace(FILE, b"old")
    fd = disk.open(new)
    disk.append(fd, b"new")
    disk.sync(fd)
    disk.rename(new, FILE)
    assert disk.content(FILE) == b"new"
    disk.crash()
    assert disk.content(FILE) in (b"old", b"new")
    disk.replace(new, b"newer")
    disk.rename(new, FILE)
    disk.sync_folder(FILE)
    disk.crash()
    assert (disk.content(FILE), disk.content(new)) == (b"newer", b"")


def test_faults_and_room_are_the_error_numbers_of_a_disk() -> None:
    """A full disk takes a part and then ENOSPC; cutting gives room back; faults fail by name."""
    disk = SimulatedDisk()
    fd = disk.open(FILE)
    disk.room = 3
    assert disk.append(fd, b"12345") == 3
    with pytest.raises(OSError) as caught:
        disk.append(fd, b"45")
    assert caught.value.errno == errno.ENOSPC
    disk.truncate(fd, 1)
    assert disk.append(fd, b"45") == 2
    disk.faults["sync"] = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        disk.sync(fd)
    with pytest.raises(BlockingIOError):
        disk.open(FILE)
    disk.close(fd)
    assert disk.read(disk.open(FILE), 0, 10) == b"145"
    with pytest.raises(FileNotFoundError):
        disk.rename(Path("/d/none"), FILE)


def test_what_was_allocated_can_be_written_on_a_full_disk() -> None:
    """Room set aside for a file is its own; to set aside more than there is fails whole."""
    disk = SimulatedDisk()
    fd, other = disk.open(FILE), disk.open(Path("/d/other"))
    disk.room = 100
    disk.allocate(fd, 0, 60)
    assert disk.append(other, b"x" * 50) == 40
    with pytest.raises(OSError, match="No space left"):
        disk.append(other, b"x")
    with pytest.raises(OSError, match="No space left"):
        disk.allocate(fd, 0, 61)
    assert disk.append(fd, b"y" * 61) == 60
    disk.truncate(fd, 10)
    assert disk.append(other, b"x" * 51) == 50
    disk.remove(Path("/d/other"))
    assert disk.append(fd, b"y" * 90) == 90


def test_a_removed_name_comes_back_in_a_crash_until_the_folder_was_synced() -> None:
    """As on a real disk; and names are those of one folder."""
    seen = set()
    for seed in range(50):
        disk = SimulatedDisk(seed)
        disk.open(FILE)
        disk.open(Path("/e/file"))
        disk.sync_folder(FILE)
        disk.sync_folder(Path("/e/file"))
        assert disk.names(Path("/d/any")) == ["file"]
        disk.remove(FILE)
        disk.remove(FILE)
        if seed % 2:
            disk.sync_folder(FILE)
        disk.crash()
        seen.add((seed % 2, tuple(disk.names(FILE))))
    assert seen == {(0, ()), (0, ("file",)), (1, ())}
