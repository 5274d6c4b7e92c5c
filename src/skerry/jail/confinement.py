"""What confines a process, and the command that puts it there.

The rule: every layer is on; one is left out only if it stands in `accepted` by its name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from skerry.jail.errors import JailError, LayerOff
from skerry.jail.filter import Profile
from skerry.jail.identity import Identity

BWRAP = "/usr/bin/bwrap"
ENTER = str(Path(__file__).with_name("enter.py"))

LAYERS = (
    *("uid", "user-namespace", "filesystem", "network", "pid", "ipc", "seccomp", "keyring"),
    *("landlock", "cgroup", "core-dumps", "no-new-privs", "descriptors"),
)
"""The names by which a system file may accept that a layer is missing."""


@dataclass(frozen=True)
class Limits:
    """What a jail may use: memory in bytes, processes and threads, CPU in hundredths of a core.

    0 is no limit.
    """

    memory: int = 0
    pids: int = 0
    cpu: int = 0


@dataclass(frozen=True)
class Confinement:
    """One jail: `binds` are (host path, path inside), read-only, over mount points in `root`.

    `writable` are the same for files that it may write, `devices` for device nodes, which it may
    use (`device.open_to`). `profile`: a name in `filter.PROFILES`, or what is allowed itself.
    `cgroups` are the directories to join (`cgroup.create`), `accepted` the layers that may be
    missing, `without` those left out: for the probes and tests, which show what each layer does.
    """

    root: str
    identity: Identity
    profile: str | Profile = "qemu"
    binds: tuple[tuple[str, str], ...] = ()
    writable: tuple[tuple[str, str], ...] = ()
    devices: tuple[tuple[str, str], ...] = ()
    cgroups: tuple[str, ...] = ()
    accepted: frozenset[str] = frozenset()
    without: frozenset[str] = field(default=frozenset())


def command(confinement: Confinement, argv: Sequence[str], filter_fd: int) -> list[str]:
    """Return the whole command that runs `argv` (path inside the root first) in the jail.

    `filter_fd` is the child's number of a descriptor from `filter.open_filter`. Descriptors keep
    their numbers. Raises LayerOff when a layer is off that is not accepted, JailError when bwrap
    is not installed.
    """
    off = set(confinement.without)
    if confinement.identity.uid == os.getuid():
        off.add("uid")
    if not confinement.cgroups:
        off.add("cgroup")
    refused = sorted(off - confinement.accepted)
    if refused:
        raise LayerOff(
            f"the jail lacks {', '.join(refused)}",
            fix="accept a missing layer by name in the system file, or provide it",
        )
    if not os.access(BWRAP, os.X_OK):
        raise JailError("bwrap is not installed", fix="install the package bubblewrap")
    enter = [os.path.realpath(sys.executable), "-I", "-S", ENTER, str(confinement.identity)]
    lists = [":".join(confinement.cgroups), ":".join(sorted(off))]
    return [*enter, *lists, "--", *_bwrap(confinement, off, filter_fd), "--", *argv]


def _bwrap(confinement: Confinement, off: set[str], filter_fd: int) -> list[str]:
    words = [BWRAP, "--unshare-user", "--unshare-uts", "--unshare-cgroup-try"]
    if "user-namespace" not in off:
        words.append("--disable-userns")
    if "network" not in off:
        words.append("--unshare-net")
    if "ipc" not in off:
        words.append("--unshare-ipc")
    if "pid" not in off:
        # Process 1 and alone: the filter allows signals to process 1 only.
        words += ["--unshare-pid", "--as-pid-1"]
    words += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    if "seccomp" not in off:
        words += ["--seccomp", str(filter_fd)]
    if "filesystem" in off:
        words += ["--bind", "/", "/"]
    else:
        words += ["--ro-bind", confinement.root, "/"]
        for host, inside in confinement.binds:
            words += ["--ro-bind", host, inside]
        for host, inside in confinement.writable:
            words += ["--bind", host, inside]
        for host, inside in confinement.devices:
            words += ["--dev-bind", host, inside]
    return [*words, "--chdir", "/"]
