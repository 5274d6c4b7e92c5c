"""What an attack came to, in the words of the literature.

The classes are those of T. Ormandy, "An Empirical Study into the Security Exposure to Hosts of
Hostile Virtualized Environments" (2007), with *contained* for an attack that had no effect.

The rule: the worst that was found counts, and what nobody looked at is not said to be well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

Outcome = Literal["contained", "abnormal termination", "partial compromise", "total compromise"]

WORSE: tuple[Outcome, ...] = (
    "contained",
    "abnormal termination",
    "partial compromise",
    "total compromise",
)
"""The classes, each worse than the one before."""

Kind = Literal["ended", "hindered", "reached"]

_CLASS: dict[Kind, Outcome] = {
    "ended": "abnormal termination",
    "hindered": "partial compromise",
    "reached": "total compromise",
}


class Finding(msgspec.Struct, frozen=True):
    """One thing that was seen.

    `reached`: something outside of the jail was changed or reached, or a law is broken;
    `hindered`: the node or a neighbour does not serve as it should; `ended`: the attacker's own
    QEMU ended, and that was reported and cleaned up. `what` says it in words.
    """

    kind: Kind
    what: str


class Unseen(msgspec.Struct, frozen=True):
    """One thing that could not be looked at: `what` says it in words."""

    what: str


Seen = Iterator[Finding | Unseen]
"""What a look yields: what was found, and what could not be looked at."""


class Verdict(msgspec.Struct, frozen=True):
    """What was seen during one attack: `looks` is how often, `blind` what could not be seen."""

    findings: tuple[Finding, ...]
    looks: int
    blind: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The class of the attack."""
        return classify(self.findings)


def classify(findings: Iterable[Finding]) -> Outcome:
    """Return the worst class of some findings; without any it is `contained`."""
    return max((_CLASS[each.kind] for each in findings), key=WORSE.index, default=WORSE[0])
