"""KVM's node for a jail, and the leavings of killed nodes."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from skerry.jail import cgroup, device, leftover
from skerry.jail.identity import Identity

OTHER = Identity(os.getuid() + 165_000, os.getgid() + 165_000)


def dead_pid() -> int:
    """A process number that no longer lives."""
    with subprocess.Popen(["/bin/true"]) as process:
        process.wait()
    return process.pid


def old(path: Path) -> Path:
    """Make a path look made long ago."""
    os.utime(path, (0, 0), follow_symlinks=False)
    return path


def test_a_host_without_kvm_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No node, or something that is no device: no KVM, and nothing is made."""
    monkeypatch.setattr(device, "KVM", tmp_path / "missing")
    assert device.open_to(tmp_path, "x", OTHER) is None
    (tmp_path / "missing").touch()
    assert device.open_to(tmp_path, "x", OTHER) is None
    assert [path.name for path in tmp_path.iterdir()] == ["missing"]


def test_root_makes_a_node_of_the_jails_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Owned by the jail's uid alone, of the same device; removed. Others get the host's if open."""
    monkeypatch.setattr(device, "KVM", Path("/dev/null"))
    made = device.open_to(tmp_path, "x", OTHER)
    assert made is not None
    if made != device.KVM:
        status = made.stat()
        assert stat.S_ISCHR(status.st_mode)
        assert status.st_rdev == device.KVM.stat().st_rdev
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, OTHER.uid)
    device.remove(made)
    device.remove(made)
    assert device.KVM.exists()
    assert list(tmp_path.iterdir()) == []


def test_without_mknod_only_an_open_device_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no node can be made, the host's own is given if the jail's uid may open it."""

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "mknod", refused)
    monkeypatch.setattr(device, "KVM", Path("/dev/null"))
    assert device.open_to(tmp_path, "x", OTHER) == Path("/dev/null")
    closed = next(p for p in map(Path, ("/dev/kmsg", "/dev/mem", "/dev/console")) if p.exists())
    assert closed.stat().st_mode & 0o006 != 0o006
    monkeypatch.setattr(device, "KVM", closed)
    assert device.open_to(tmp_path, "x", OTHER) is None


def test_only_leavings_of_the_dead_are_found(tmp_path: Path) -> None:
    """A live maker's, a fresh one and another's name are left alone; the rest is removed."""
    dead = dead_pid()
    gone = tmp_path / f"skerry.{dead}.a"
    kept = [tmp_path / f"skerry.{os.getpid()}.a", tmp_path / f"other.{dead}.a"]
    fresh = tmp_path / f"skerry.{dead}.fresh"
    for path in (gone, *kept):
        path.touch()
        old(path)
    fresh.touch()
    assert leftover.left_behind(tmp_path) == [gone]
    device.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, fresh])
    device.sweep(tmp_path, ours=(dead, os.getpid()))
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    assert leftover.left_behind(tmp_path / "missing") == []


def test_empty_groups_of_killed_nodes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty group goes, one in use stays (here: a directory that can't be removed)."""
    monkeypatch.setattr(cgroup, "_parents", lambda: (2, {"memory": tmp_path}))
    dead = dead_pid()
    empty, used = (tmp_path / f"skerry.{dead}.{name}" for name in ("empty", "used"))
    for path in (empty, used):
        path.mkdir()
    (used / "busy").touch()
    cgroup.sweep()
    assert sorted(tmp_path.iterdir()) == [empty, used], "the control: they are too young"
    cgroup.sweep(ours=[dead])
    assert list(tmp_path.iterdir()) == [used]
    empty.mkdir()
    for path in (empty, used):
        old(path)
    cgroup.sweep()
    assert list(tmp_path.iterdir()) == [used]
