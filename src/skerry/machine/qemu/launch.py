"""What a QEMU machine needs of whoever starts its process, stated as protocols.

The jailed launcher (the supervisor and a jail) and the bare one of the tests satisfy the same
protocol, so both run the same machine. Nothing else in this package starts a process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol


class Process(Protocol):
    """A process that somebody started for us."""

    @property
    def pid(self) -> int:
        """Its number, for people; signals go through `kill`."""

    @property
    def exited(self) -> asyncio.Future[int]:
        """Done when it has ended: its exit status, negative for a signal, 256 for unknown."""

    def kill(self) -> None:
        """End it at once. Never blocks; nothing happens if it has ended."""


class Launcher(Protocol):
    """Starts one domain's processes in that domain's jail."""

    def path(self, file: Path) -> str:
        """Return the name under which the machine finds a file of the host; read-only to it."""

    async def launch(self, name: str, argv: Sequence[str], fds: Mapping[int, int]) -> Process:
        """Start a program with exactly the descriptors in `fds` (its number to ours).

        `argv[0]` is an absolute path. Our descriptors stay open. Raises `SkerryError`; then
        nothing was started.
        """
