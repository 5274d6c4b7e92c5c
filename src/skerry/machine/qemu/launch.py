"""What a QEMU machine needs of whoever starts its process, stated as protocols.

The jailed launcher (the supervisor and a jail) and the bare one of the tests satisfy the same
protocol, so both run the same machine. Nothing else in this package starts a process.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from skerry.errors import LayerMissing, MachineError, SupervisorError
from skerry.jail.confinement import Confinement
from skerry.jail.confinement import command as jail_command
from skerry.jail.errors import JailError, LayerOff
from skerry.jail.filter import open_filter
from skerry.supervisor.client import SpawnFailed, SupervisorClient, SupervisorGone


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


class JailedLauncher:
    """The launcher of the product: one domain's jail, forked by the supervisor."""

    def __init__(self, client: SupervisorClient, confinement: Confinement) -> None:
        self._client = client
        self._confinement = confinement

    def path(self, file: Path) -> str:
        """Return where a file is bound in the jail. Raises `MachineError` if it is not."""
        for host, inside in self._confinement.binds:
            if Path(host) == file:
                return inside
        raise MachineError(f"{file} is not in the jail")

    async def launch(self, name: str, argv: Sequence[str], fds: Mapping[int, int]) -> Process:
        """Start a program in the jail. Raises `LayerMissing`, `MachineError`, `SupervisorError`."""
        number = max(fds) + 1
        try:
            program = open_filter(self._confinement.profile)
            try:
                jailed = jail_command(self._confinement, argv, number)
                return await self._client.spawn(name, jailed, {**fds, number: program})
            finally:
                os.close(program)
        except LayerOff as error:
            raise LayerMissing(error.message, fix=error.fix) from error
        except JailError as error:
            raise MachineError(error.message, fix=error.fix) from error
        except SpawnFailed as error:
            raise MachineError(f"{name} could not be started: {error}") from error
        except SupervisorGone as error:
            raise SupervisorError(str(error)) from error
