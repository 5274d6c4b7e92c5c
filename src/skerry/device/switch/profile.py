"""The system calls of a switch's process: an allow-list, measured with strace on CPython 3.11.

It loads its modules, waits, and moves bytes between sockets that it was given: it makes no file,
writes to none, and waits for no time but in `poll`.
"""

from __future__ import annotations

from skerry.jail.bpf import Call
from skerry.jail.confinement import Limits
from skerry.jail.filter import ALWAYS, PROFILES, Profile

LIMITS = Limits(memory=64 << 20, pids=4)
"""What one switch may use: bytes of memory, processes and threads."""

_NOT_NEEDED = {
    ALWAYS[name]
    for name in (
        *("fsync", "fdatasync", "ftruncate", "fallocate", "pwrite64", "sendmsg"),
        *("clock_nanosleep", "uname"),
    )
}

PROFILE: Profile = (
    *(call for call in PROFILES["helper"] if call.number not in _NOT_NEEDED),
    Call(ALWAYS["shutdown"]),
)
"""What the process may call: what a helper may, without what writes to files, and `shutdown`."""
