"""What a resource needs of whoever starts the processes that serve it, stated as types.

The rule: one helper serves one use of one resource, in a jail of its own, and ends with it; so a
use is taken away by ending its helper, which asks nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from skerry.jail.confinement import Limits
from skerry.jail.filter import Profile
from skerry.jail.identity import Identity


class Process(Protocol):
    """A helper's process."""

    @property
    def exited(self) -> asyncio.Future[int]:
        """Done when it has ended."""

    def kill(self) -> None:
        """End it at once. Never blocks."""


class Program(NamedTuple):
    """A program to run in a jail: `root` is one for it (`jail.root.build`), None for Python's own.

    `binds` and `writable` are (host path, path inside), as for `Confinement`; `fds` its descriptors
    by their numbers inside.
    """

    argv: Sequence[str]
    fds: Mapping[int, int]
    profile: str | Profile
    limits: Limits
    root: Path | None = None
    binds: tuple[tuple[str, str], ...] = ()
    writable: tuple[tuple[str, str], ...] = ()


class Helper(NamedTuple):
    """A helper that was started, and the host uid of its jail (0 for none of its own)."""

    process: Process
    uid: int


class Start(Protocol):
    """Starts the helper of a use. `prepared` is called with its identity before it runs.

    Raises `Denied` or `SupervisorError`; then nothing was started.
    """

    def __call__(
        self,
        channel: int,
        program: Program,
        prepared: Callable[[Identity], Awaitable[None]] | None = None,
    ) -> Awaitable[Helper]:
        """Start it for the channel of this number."""
