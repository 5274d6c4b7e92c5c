"""A node's audit trail: its writer's process, its checkpoints, and the head that it notes.

The rule: a fresh node whose trail does not reach the head that was noted, or whose writer does not
start, does not start; one that goes on after a restart does, and allows nothing until it can
record. The last thing that a node writes is a checkpoint.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from typing import Protocol

from skerry.audit import service
from skerry.audit.client import AuditClient
from skerry.audit.connection import Killable
from skerry.audit.head import read_head
from skerry.audit.signer import Checkpoints, make_key
from skerry.node import paths
from skerry.system.model import Audit

NAME = "audit-writer"


class Launch(Protocol):
    """Starts `main()` of a module as a helper that holds these descriptors, its number to ours."""

    def __call__(self, name: str, module: str, fds: Mapping[int, int]) -> Awaitable[Killable]:
        """Return the process."""


class Recording:
    """The trail of a node's life. Make it with `open`, end it with `close`."""

    def __init__(self, trail: AuditClient, checkpoints: Checkpoints) -> None:
        self.trail = trail
        """What the monitor records with."""
        self._checkpoints = checkpoints
        self._task = asyncio.ensure_future(checkpoints.run(time.monotonic))

    @classmethod
    async def open(cls, launch: Launch, audit: Audit, insist: bool = True) -> Recording:
        """Open the node's trail, with a segment's length and number from the system file.

        Raises `SkerryError` for a key or a head that can't be read; with `insist` also
        `AuditUnavailable`, and what `launch` raises, if the writer does not start.
        """

        async def start(fd: int) -> Killable:
            return await launch(NAME, service.__name__, {service.SOCKET: fd})

        state = paths.make_private(paths.state_dir())
        head = read_head(paths.audit_head())
        key = await asyncio.to_thread(make_key, paths.audit_key())
        trail = await AuditClient.open(
            state / paths.audit_file().name,
            start,
            rotate=audit.rotate,
            keep=audit.keep,
            at_least=head,
            insist=insist,
        )
        return cls(trail, Checkpoints(trail, key, paths.audit_head()))

    async def close(self) -> None:
        """Sign what was written last, and end the writer once it has written everything."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._checkpoints.make()
        await self.trail.close()
