"""What a QEMU machine needs of whoever starts its process, stated as protocols.

The jailed launcher (the supervisor and a jail) and the bare one of the tests satisfy the same
protocol, so both run the same machine. Nothing else in this package starts a process.

What a restarted node needs to adopt a machine is kept by the supervisor under names that come
from the machine's incarnation: the name of one start of one domain, never used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

KEPT = ("qmp", "console", "agent", "control", "stderr")
"""Our ends of a machine's sockets, as they are called behind its incarnation and a dot."""


def kept_names(incarnation: str) -> tuple[str, ...]:
    """Return all names that one machine has at the supervisor: its process first, then `KEPT`."""
    return (incarnation, *(f"{incarnation}.{kept}" for kept in KEPT))


class Process(Protocol):
    """A process that somebody started for us."""

    @property
    def pid(self) -> int:
        """Its number, for people; signals go through `kill`."""

    @property
    def pidfd(self) -> int:
        """A descriptor of it, which is its own; negative once it has ended."""

    @property
    def exited(self) -> asyncio.Future[int]:
        """Done when it has ended: its exit status, negative for a signal, 256 for unknown."""

    def kill(self) -> None:
        """End it at once. Never blocks; nothing happens if it has ended."""


class Launcher(Protocol):
    """Starts one domain's processes in that domain's jail."""

    def path(self, file: Path) -> str:
        """Return the name under which the machine finds a file of the host; read-only to it."""

    async def launch(
        self,
        name: str,
        argv: Sequence[str],
        fds: Mapping[int, int],
        *,
        keep: Mapping[str, int] | None = None,
    ) -> Process:
        """Start a program with exactly the descriptors in `fds` (its number to ours).

        `argv[0]` is an absolute path. The descriptors in `keep` (name to ours) are kept for a
        restarted node if and only if it was started. Our descriptors stay open. Raises
        `SkerryError`; then nothing was started.
        """
