"""Limits of memory, processes and CPU by control groups, version 2 or 1.

The rules: a group is made below the caller's own (version 1) or beside it (version 2), so what
limits the caller's parent holds as well; a host that gives none lacks the layer `cgroup`, by name;
a jail joins before it runs, so all it uses is counted; what a killed node left is removed by the
next one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection
from pathlib import Path

from skerry.jail.confinement import Limits
from skerry.jail.errors import LayerOff
from skerry.jail.leftover import left_behind, own_name

MOUNT = Path("/sys/fs/cgroup")
_PERIOD = 100_000
_V1 = ("memory", "pids", "cpu")
_REMOVE_SECONDS = 1.0


def _own_groups() -> dict[str, str]:
    """Return controller to the caller's group, '' for version 2."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    fields = [line.split(":", 2) for line in lines]
    return {name: path for _, names, path in fields for name in names.split(",")}


def _settings(limits: Limits, version: int) -> dict[str, dict[str, str]]:
    """Return controller to file to value, for the limits that are set."""
    quota = str(limits.cpu * _PERIOD // 100)
    if version == 2:
        files = {"memory.max": limits.memory, "pids.max": limits.pids}
        cpu = {"cpu.max": f"{quota} {_PERIOD}"}
    else:
        files = {"memory.limit_in_bytes": limits.memory, "pids.max": limits.pids}
        cpu = {"cpu.cfs_period_us": str(_PERIOD), "cpu.cfs_quota_us": quota}
    wanted: dict[str, dict[str, str]] = {name: {} for name in _V1}
    for file, value in files.items():
        if value:
            wanted[file.split(".")[0]][file] = str(value)
    if limits.cpu:
        wanted["cpu"] = cpu
    return wanted


def _parents() -> tuple[int, dict[str, Path]]:
    """Return the version and, for each controller, the directory to make groups in."""
    own = _own_groups()
    unified = MOUNT / "cgroup.controllers"
    if unified.exists():
        # The caller's group holds processes, so it cannot hold groups with controllers too.
        parent = (MOUNT / own.get("", "/").lstrip("/")).parent if own.get("") != "/" else MOUNT
        given = (parent / "cgroup.subtree_control").read_text().split()
        missing = [name for name in _V1 if name not in given]
        if missing:
            raise LayerOff(f"control groups: {parent} does not give {', '.join(missing)}")
        return 2, dict.fromkeys(_V1, parent)
    found = {name: MOUNT / name / own.get(name, "/").lstrip("/") for name in _V1}
    absent = [name for name, path in found.items() if not path.is_dir()]
    if absent:
        raise LayerOff(f"control groups: the host has none for {', '.join(absent)}")
    return 1, found


def create(name: str, limits: Limits) -> tuple[str, ...]:
    """Make the groups of one jail and return their directories, for `Confinement.cgroups`.

    Raises LayerOff, saying what the host does not give.
    """
    made: list[str] = []
    unique = own_name(name)
    try:
        version, parents = _parents()
        settings = _settings(limits, version)
        for controller, parent in parents.items():
            directory = parent / unique
            if str(directory) not in made:
                directory.mkdir()
                made.append(str(directory))
            for file, value in settings[controller].items():
                (directory / file).write_text(value)
            if not os.access(directory / "cgroup.procs", os.W_OK):
                raise PermissionError(f"{directory}/cgroup.procs cannot be written")
    except OSError as error:
        remove(tuple(made))
        raise LayerOff(f"control groups: {error}") from error
    except LayerOff:
        remove(tuple(made))
        raise
    return tuple(made)


def remove(directories: tuple[str, ...]) -> None:
    """Remove groups whose processes have ended; one that is still in use after a second stays."""
    end = time.monotonic() + _REMOVE_SECONDS
    for directory in directories:
        while Path(directory).exists():
            try:
                Path(directory).rmdir()
            except OSError:
                if time.monotonic() > end:
                    break
                time.sleep(0.01)


def sweep(ours: Collection[int] = ()) -> None:
    """Remove the empty groups that killed makers left; one that is in use stays.

    `ours`: see `leftover.left_behind`.
    """
    try:
        _, parents = _parents()
    except (OSError, LayerOff):
        return
    for parent in set(parents.values()):
        for path in left_behind(parent, ours):
            with contextlib.suppress(OSError):
                path.rmdir()
