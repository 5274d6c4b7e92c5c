"""What a node uses of a machine beyond the monitor's protocol: its agent and its console."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Protocol, cast

from skerry.errors import StateError
from skerry.monitor.domain import Domain
from skerry.monitor.protocols import Machine

Sink = Callable[[Literal["out", "err"], bytes], Awaitable[None] | None]


class Agent(Protocol):
    """Runs commands in the guest."""

    async def ready(self, timeout_s: float) -> None:
        """Wait until the guest answers. Raises `MachineError`."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        output: Sink,
        timeout_s: float | None = None,
    ) -> int:
        """Run a command and return its exit code."""


class Reading(Protocol):
    """One reader of a console."""

    async def read(self) -> tuple[int, bytes]:
        """Return how many bytes were lost and what came next; empty bytes at the end."""

    def close(self) -> None:
        """Stop reading."""


class Console(Protocol):
    """The serial console: what it printed last, what it prints, and a way to type."""

    @property
    def untrusted_text(self) -> bytes:
        """The last bytes of output."""

    def subscribe(self) -> Reading:
        """Read from now on. Raises `LimitReached`."""

    def write(self, data: bytes) -> None:
        """Type these bytes. Never blocks."""


class Guest(Machine, Protocol):
    """A machine with an agent and a console."""

    @property
    def agent(self) -> Agent:
        """The agent in the guest."""

    @property
    def console(self) -> Console:
        """The serial console."""


def guest_of(domain: Domain) -> Guest:
    """Return the machine of a domain that has one. Raises `StateError` if it has none now."""
    if domain.machine is None or domain.gone.is_set():
        raise StateError(f"domain {domain.name} is {domain.state.value}", fix="start it first")
    return cast(Guest, domain.machine)
