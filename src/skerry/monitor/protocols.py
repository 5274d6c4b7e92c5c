"""What the monitor needs of the world, stated as protocols: it imports none of their makers.

All coroutines run on one event loop. Code between two `await`s is atomic with respect to every
other operation of the monitor; that is the lock under which a generation is compared and a
channel minted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

from skerry.label import Label
from skerry.xsm.request import Verdict
from skerry.xsm.stack import Stack

Kind = Literal["stream", "link", "memory", "disk", "uplink", "switch", "tpm"]
COLD: Final = frozenset({"tpm"})
"""Kinds that a machine takes before it is prepared, and never later."""

Side = Literal["source", "sink"]
Overflow = Literal["block", "drop"]


class Exit(msgspec.Struct, frozen=True):
    """How a machine's process ended: its exit status (negative: signal) and words for people."""

    status: int
    reason: str


class Machine(Protocol):
    """One domain's machine. Made anew for every start; a machine that has ended stays ended."""

    @property
    def kind(self) -> str:
        """`qemu/tcg`, `qemu/kvm` or `simulator`: what `ps` shows."""

    @property
    def exited(self) -> asyncio.Future[Exit]:
        """Done when the machine's process has ended, whoever ended it."""

    async def prepare(self) -> None:
        """Make the machine in its jail, its processors stopped. Raises `MachineError`, `Denied`."""

    async def resume(self) -> None:
        """Let the processors run, for the first time or after `pause`."""

    async def pause(self) -> None:
        """Stop the processors; the domain keeps its memory and its channels."""

    async def shutdown(self, deadline_s: float) -> None:
        """Ask the guest to end, and end the process when the deadline has passed."""

    def kill(self) -> None:
        """End the process at once. Never blocks, never asks, may be called in any state."""

    async def attach(self, channel: int, kind: Kind, port: str, *ends: int) -> None:
        """Give the machine its end of a channel: its descriptors, shown to the guest as `port`.

        The descriptors are duplicated into the machine; the caller keeps and closes its own.
        A machine that is not prepared yet takes what it can have only from then on (`COLD`).
        Raises `MachineError`; then the machine holds nothing of it.
        """

    async def detach(self, channel: int) -> None:
        """Take the port away from the guest and close the machine's descriptor. Idempotent."""


class Bridge(Protocol):
    """One minted channel: the descriptors of both ends and the twins that the monitor keeps."""

    @property
    def ends(self) -> Mapping[Side, int]:
        """Descriptors to hand to the machines; what is used of a resource has no sink's."""

    @property
    def bells(self) -> Mapping[Side, int]:
        """Descriptors of a memory's doorbell, to hand over beside `ends`."""

    async def open(self, channel: int) -> None:
        """Start what stands between the ends, if anything does, before a machine has one.

        Raises `Denied` or `SupervisorError`. If it is cut meanwhile, nothing is left running.
        """

    def handed_over(self) -> None:
        """Close `ends`: both machines have theirs; the twins stay."""

    def cut(self) -> int:
        """Revoke: shut down, drain both receive queues through the twins, close everything.

        Returns the bytes that were drained (and so never arrived). Never blocks or raises;
        idempotent. When it returns, no byte can cross any more, whatever either machine does.
        """


class Bridges(Protocol):
    """Makes bridges of one kind."""

    def mint(
        self, one_way: bool, overflow: Overflow = "block", *, size: int = 0, source: str = ""
    ) -> Bridge:
        """Make a bridge. Raises `TransportError` or `LimitReached`; then nothing was made.

        `overflow`: what a one-way stream does while its sink does not read; `size`: bytes of a
        memory; `source`: the name of the domain that uses a resource.
        """


class Judge(Protocol):
    """Answers for one policy. Any failure raises a `Denied`."""

    @property
    def generation(self) -> int:
        """The number of the policy; rises by one with each change."""

    async def decide(self, hook: str, parties: Mapping[str, Label]) -> Verdict:
        """Decide a hook for these parties (role → label), without the Chinese Wall."""

    async def admit(self, label: Label, running: tuple[Label, ...]) -> Verdict:
        """Decide the Chinese Wall question for a start beside these running domains."""

    async def admit_bind(self, *labels: Label) -> Verdict:
        """Decide the history question for an exchange among labels: all, each with every other."""


class Candidate(Judge, Protocol):
    """A policy that could come into force next."""

    def carry(self, label: Label) -> Label:
        """Return what a label in force is called under this policy. Raises `UnknownLabel`."""

    async def foresee(self, channels: Collection[tuple[str, Label, Label]]) -> None:
        """Get ready for `install`, and for questions about channels (hook, source, sink).

        To ask these then takes no turn of the loop, as long as nobody's history grows.
        """


class Decider(Judge, Protocol):
    """The policy manager as the monitor sees it: it answers for the policy in force."""

    def candidate(
        self, stack: Stack, sources: Sequence[Any] = (), *, loading: bool = False
    ) -> Candidate:
        """Return a policy that could come into force next: it answers, but decides nothing.

        `sources` is what it is made from, for a manager that makes it again elsewhere. One that is
        `loading` is not forgotten for others that are only tried; there is one at a time.
        """

    async def remember(self, candidate: Any) -> None:
        """Save what the standing history will be under a candidate. Raises a `Denied`."""

    def install(self, candidate: Any) -> int:
        """Bring a candidate of this manager's into force; returns its generation, never waits.

        Raises `StaleGeneration` if it does not follow the one in force.
        """

    @property
    def remembers(self) -> bool:
        """Whether a wall of the policy in force keeps a history."""

    async def touch(self, *labels: Label) -> None:
        """Remember, durably, that these exchange information. One alone: a start.

        In the step in which it returns, each has touched all that any of them has touched, also
        what was remembered meanwhile. Raises a `Denied`, also if a wall was closed meanwhile.
        """


class AuditLog(Protocol):
    """The audit trail as the monitor sees it."""

    async def append(self, event: str, fields: Mapping[str, object]) -> int:
        """Write a record and return its number once it is on disk.

        Raises `AuditUnavailable` (a `Denied`) if it can't be: the effect must not happen.
        """

    def note(self, event: str, fields: Mapping[str, object]) -> None:
        """Record an effect that has already happened (a cut, a death). Never blocks or raises.

        What can't be written now is kept, bounded, and written or counted as lost later.
        """
