"""Limits hold where the host gives control groups; where it does not, the layer is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skerry.jail import cgroup
from skerry.jail.confinement import Limits
from skerry.jail.errors import LayerOff

FORKS = """
import os, sys
for directory in sys.argv[1:]:
    with open(directory + '/cgroup.procs', 'w') as file:
        file.write('0')
made = 0
try:
    for _ in range(8):
        if os.fork() == 0:
            os.read(0, 1)
            os._exit(0)
        made += 1
except OSError:
    pass
os.write(1, str(made).encode())
"""


def forks(directories: tuple[str, ...]) -> int:
    """Return how many of eight children a process in the groups can have at once."""
    words = [sys.executable, "-I", "-S", "-c", FORKS, *directories]
    read, write = os.pipe()
    with subprocess.Popen(words, stdin=read, stdout=subprocess.PIPE) as process:
        os.close(read)
        assert process.stdout is not None
        made = int(process.stdout.read(1))
        os.close(write)
    return made


def test_a_limit_of_processes_holds() -> None:
    """In the group four processes exist at most; outside of it eight more are no matter."""
    try:
        groups = cgroup.create("limit", Limits(memory=1 << 28, pids=4, cpu=50))
    except LayerOff as error:
        assert str(error).startswith("control groups: ")
        return
    try:
        assert forks(groups) == 3
        assert forks(()) == 8
    finally:
        cgroup.remove(groups)
    assert not any(Path(group).exists() for group in groups)


FILL = """
import sys
for directory in sys.argv[1:]:
    with open(directory + '/cgroup.procs', 'w') as file:
        file.write('0')
held = bytearray(192 << 20)
held[:: 4096] = bytes(len(held) // 4096 + (len(held) % 4096 > 0)).replace(b'\\0', b'x')
print('held')
"""


def test_a_limit_of_memory_ends_who_goes_beyond_it() -> None:
    """By the kernel, at once; outside of the group the same process holds what it asked for."""
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        pytest.skip("on a host with swap the rest goes there")
    try:
        groups = cgroup.create("memory", Limits(memory=64 << 20))
    except LayerOff as error:
        pytest.skip(str(error))
    try:
        for directories, ended in ((groups, -9), ((), 0)):
            words = [sys.executable, "-I", "-S", "-c", FILL, *directories]
            done = subprocess.run(words, capture_output=True, check=False)
            assert done.returncode == ended, done.stderr
    finally:
        cgroup.remove(groups)


def test_a_host_without_groups_lacks_the_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names what is not there."""
    monkeypatch.setattr(cgroup, "MOUNT", tmp_path)
    with pytest.raises(LayerOff, match="none for memory, pids, cpu"):
        cgroup.create("x", Limits())


def test_version_two_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the caller's own group; a controller that is not delegated is named."""
    monkeypatch.setattr(cgroup, "MOUNT", tmp_path)
    monkeypatch.setattr(cgroup, "_own_groups", lambda: {"": "/user/own"})
    (tmp_path / "cgroup.controllers").write_text("")
    (tmp_path / "user").mkdir()
    control = tmp_path / "user" / "cgroup.subtree_control"
    control.write_text("memory pids")
    with pytest.raises(LayerOff, match="does not give cpu"):
        cgroup.create("x", Limits())
    control.write_text("cpu memory pids")
    monkeypatch.setattr(os, "access", lambda *_: True)
    (directory,) = cgroup.create("x", Limits(memory=4096, pids=3, cpu=25))
    assert Path(directory).parent == tmp_path / "user"
    values = {p.name: p.read_text() for p in Path(directory).iterdir()}
    assert values == {"memory.max": "4096", "pids.max": "3", "cpu.max": "25000 100000"}
