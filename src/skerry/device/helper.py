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
    by their numbers inside. `without` are layers that it can't have and that must be made up for
    otherwise; `first` is a script, with its arguments, that runs before the jail's first stage,
    whose path and arguments follow. `as_domain`: it works for one domain, whose share of the
    processors it may have once more.
    """

    argv: Sequence[str]
    fds: Mapping[int, int]
    profile: str | Profile
    limits: Limits
    root: Path | None = None
    binds: tuple[tuple[str, str], ...] = ()
    writable: tuple[tuple[str, str], ...] = ()
    without: frozenset[str] = frozenset()
    first: tuple[str, ...] = ()
    as_domain: bool = False


class Helper(NamedTuple):
    """A helper that was started, and the host uid of its jail (0 for none of its own)."""

    process: Process
    uid: int


class Together:
    """The helpers of one use as one process: one that ends ends all."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self.processes = tuple(processes)
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        for process in self.processes:
            process.exited.add_done_callback(self._ended)

    def kill(self) -> None:
        """End all of them at once. Never blocks."""
        for process in self.processes:
            process.kill()

    def _ended(self, exited: asyncio.Future[int]) -> None:
        if not self.exited.done():
            self.exited.set_result(exited.result())


class Start(Protocol):
    """Starts the helper of a use. `prepared` is called with its identity before it runs.

    Called again for the same use it starts one more, which lives and ends with the first.
    Raises `Denied` or `SupervisorError`; then nothing was started.
    """

    def __call__(
        self,
        channel: int,
        program: Program,
        prepared: Callable[[Identity], Awaitable[None]] | None = None,
    ) -> Awaitable[Helper]:
        """Start it for the channel of this number."""
