"""Checks a system's assertions before anything starts.

The flows that count are not those that the file configures but all that the policy would let an
operator bind between the file's domains: an assertion that holds stays true under `connect`.
Labels given later (`relabel`) are not covered.
"""

from __future__ import annotations

import msgspec

from skerry.flow.claim import Claim
from skerry.flow.proof import prove
from skerry.node.flows import SystemFlows
from skerry.node.setup import Setup


class Violation(msgspec.Struct, frozen=True):
    """An assertion that does not hold, with the shortest path that breaks it."""

    line: int
    text: str
    path: tuple[str, ...]


def permitted_flows(setup: Setup) -> dict[str, set[str]]:
    """Return, for each domain and resource, to which of them the policy would let it send.

    What a domain may write flows into the resource, and out of it into each that may read it.
    """
    graph = SystemFlows(setup).graph()
    return {name: set(graph.named(row)) for name, row in zip(graph.names, graph.rows, strict=True)}


def claims_of(setup: Setup) -> list[Claim]:
    """Return the file's assertions as claims, in its order."""
    system = setup.system
    return [
        Claim(
            (one.source,),
            (one.sink,),
            one.except_,
            str(system.path),
            system.line(("assert", number, "never")),
        )
        for number, one in enumerate(system.asserts)
    ]


def violations(setup: Setup) -> list[Violation]:
    """Return every assertion of the file that does not hold, in the file's order.

    Raises `InputError` for an assertion that says nothing.
    """
    if not setup.system.asserts:
        return []
    graph = SystemFlows(setup).graph()
    broken = []
    for claim in claims_of(setup):
        found = prove(graph, claim)
        if not found.holds:
            sides = f"{claim.sources[0]} -> {claim.sinks[0]}"
            text = f"never {sides} does not hold: {' -> '.join(found.path)}"
            broken.append(Violation(claim.line, text, found.path))
    return broken
