"""Proofs of claims: a certificate where a claim holds, a path where it does not.

The rules this module keeps: the certificate of `A -/-> B except G` is a set that holds A and
neither B nor G, and that no flow leaves but into G. Whoever has the policy can check that without
searching (`skerry.flow.verify`). This is the static condition of intransitive separation (Rushby
1992); that nothing flows at all assumes a monitor that enforces the policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from skerry.flow.claim import Claim, parse_claim, resolve
from skerry.flow.deadline import Check, unbounded
from skerry.flow.graph import About, Graph
from skerry.flow.history import open_path
from skerry.flow.search import closure, shortest_path
from skerry.flow.verify import FORMAT


class Proof(msgspec.Struct, frozen=True):
    """What came of a claim: `closed` is the certificate's set, `path` a way that breaks the claim.

    Exactly one of the two is not empty, but for a claim that holds `by_history`: then walls with
    history close every path, and no certificate says so. `sources`, `sinks` and `trusted` are
    labels, no patterns.
    """

    claim: Claim
    sources: tuple[str, ...]
    sinks: tuple[str, ...]
    trusted: tuple[str, ...]
    closed: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    by_history: bool = False

    @property
    def holds(self) -> bool:
        """Whether the claim is proven."""
        return not self.path


def prove(
    graph: Graph, claim: Claim | str, *, history: bool = False, check: Check = unbounded
) -> Proof:
    """Prove a claim or find a path that breaks it, a shortest one. Raises `InputError`.

    A text is read as `parse_claim` does; `TypeError` says what else is none. With `history`, or a
    claim's own, a path breaks it only if no Chinese Wall with history closes the path; without,
    such walls count for each exchange by itself, which errs to the safe side.
    """
    asked = _claim(claim)
    sides = resolve(asked, graph, check)
    named = graph.named
    found = named(sides.sources), named(sides.sinks), named(sides.trusted)
    closed = closure(graph.rows, graph.back, sides.sources, sides.trusted)
    if not closed & sides.sinks:
        return Proof(asked, *found, closed=named(closed))
    ends = sides.sources, sides.sinks, sides.trusted
    counts = history or asked.history
    found_path = open_path(graph, *ends, check) if counts else shortest_path(graph, *ends)
    path = graph.named_path(found_path)
    return Proof(asked, *found, path=path, by_history=not path)


def _claim(given: object) -> Claim:
    if isinstance(given, Claim):
        return given
    if isinstance(given, str):
        return parse_claim(given)
    kind = type(given).__name__
    raise TypeError(f"a claim is a text such as 'A -/-> B except G', or a Claim, not {kind}")


def certificate(about: About, proofs: Sequence[Proof]) -> bytes:
    """Write the proofs that hold as a certificate file: JSON, see docs/flow.md."""
    found: Mapping[str, Any] = {
        "format": FORMAT,
        "about": msgspec.to_builtins(about),
        "proofs": [
            {
                "claim": str(proof.claim),
                "from": proof.sources,
                "to": proof.sinks,
                "except": proof.trusted,
                "closed": proof.closed,
            }
            for proof in proofs
            if proof.closed
        ],
    }
    return msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"
