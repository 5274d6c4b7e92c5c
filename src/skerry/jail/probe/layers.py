"""Which attempts each layer must stop, and what it is tested without.

The rule: a layer counts as held only when it stops its attempts alone, with the layers that would
hide its failure switched off.
"""

from __future__ import annotations

from typing import NamedTuple


class Layer(NamedTuple):
    """A layer, the run it is judged by, and the attempts that must fail there."""

    name: str
    run: str
    attempts: tuple[str, ...]


RUNS: dict[str, frozenset[str]] = {
    "full": frozenset(),
    "namespaces": frozenset({"seccomp", "landlock"}),
    "landlock": frozenset({"seccomp", "network", "pid", "ipc"}),
}
"""Run to the layers left out in it."""

FILTERED = (
    "vsock", "socket", "socketpair", "fork", "user-namespace", "ptrace", "take-descriptor",
    "pidfd", "keyctl", "flock", "record-lock", "inotify", "preempt", "shmget", "mq-open",
    "io-uring", "perf", "userfaultfd", "outlive-parent", "passrights", "peer-pidfd", "pass-pidfd",
    "setuid", "tcp", "abstract-socket",
)  # fmt: skip

JUDGED = (
    Layer("uid", "namespaces", ("same-uid",)),
    Layer("user-namespace", "namespaces", ("user-namespace",)),
    Layer("filesystem", "namespaces", ("read-host-file", "write-root")),
    Layer("network", "namespaces", ("tcp", "abstract-socket")),
    Layer("pid", "namespaces", ("signal", "host-process")),
    Layer("ipc", "namespaces", ("host-shm",)),
    Layer("seccomp", "full", FILTERED),
    Layer("keyring", "namespaces", ("same-keyring",)),
    Layer("landlock", "landlock", ("tcp", "abstract-socket")),
    Layer("core-dumps", "full", ("core-dump",)),
    Layer("no-new-privs", "full", ("new-privileges",)),
    Layer("descriptors", "full", ("pass-descriptor",)),
)
"""All layers but `cgroup`, which is judged by making a group."""
