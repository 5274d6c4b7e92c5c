"""Whether this host's limit of open files holds all that a system may have at once.

The rule: a limit that can't be kept is an error before anything starts, and no surprise later. The
supervisor is what holds most: both twins of each channel, and six descriptors of each machine.
"""

from __future__ import annotations

import resource

from skerry.errors import LimitReached
from skerry.machine.qemu.launch import KEPT
from skerry.supervisor.main import MAX_KEPT, RESERVE
from skerry.system.model import Limits

TWINS = 2
"""Descriptors that are kept of each channel."""

PROCESS = 2
"""Descriptors that the supervisor has of each process, while it starts."""


def check_descriptors(limits: Limits) -> None:
    """Raise `LimitReached` where `[limits]` allows more than can be held."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    machines = limits.domains * len(KEPT)
    room = min(MAX_KEPT, most - RESERVE - limits.domains * PROCESS) - machines
    if TWINS * limits.channels > room:
        raise LimitReached(
            f"{limits.channels} channels and {limits.domains} domains are more than the"
            f" {most} open files of this host hold",
            fix=f"set limits.channels to {max(0, room // TWINS)} or less, limits.domains lower, or"
            " raise the hard limit of open files (ulimit -Hn)",
        )
