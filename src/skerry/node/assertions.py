"""Checks a system's assertions before anything starts.

The flows that count are not those that the file configures but all that the policy would let an
operator bind between the file's domains: an assertion that holds stays true under `connect`.
Walls are left out, which errs to the safe side. Labels given later (`relabel`) are not covered.
"""

from __future__ import annotations

import msgspec

from skerry.errors import Denied
from skerry.flow.assertion import find_path
from skerry.label import Label
from skerry.node.setup import Setup
from skerry.xsm.hooks import HOOKS, expand
from skerry.xsm.request import Request

_DIRECTED = ("channel_two_way", "channel_one_way", "memory_read", "memory_both")


class Violation(msgspec.Struct, frozen=True):
    """An assertion that does not hold, with the shortest path that breaks it."""

    line: int
    text: str
    path: tuple[str, ...]


def permitted_flows(setup: Setup) -> dict[str, set[str]]:
    """Return, for each domain and resource, to which of them the policy would let it send.

    What a domain may write flows into the resource, and out of it into each that may read it.
    """
    resources = setup.system.resources
    names = [*setup.system.domains, *resources]
    answers: dict[tuple[Label, Label, tuple[str, ...]], bool] = {}

    def flows(source: str, sink: str) -> bool:
        hooks: tuple[str, ...] = _DIRECTED
        if sink in resources:
            hooks = ("resource_both",)
        elif source in resources:
            source, sink, hooks = sink, source, ("resource_read", "resource_both")
        key = setup.labels[source], setup.labels[sink], hooks
        if key not in answers:
            answers[key] = any(_allowed(setup, hook, *key[:2]) for hook in hooks)
        return answers[key]

    return {
        source: {
            sink
            for sink in names
            if sink != source and not {source, sink} <= resources.keys() and flows(source, sink)
        }
        for source in names
    }


def _allowed(setup: Setup, hook: str, source: Label, sink: Label) -> bool:
    parties = {"source": source, "sink": sink}
    try:
        requests: tuple[Request, ...] = expand(HOOKS[hook], parties, setup.stack.transition)
    except Denied:  # what the channel would be made of has no label, so it can't be made
        return False
    return all(setup.stack.decide(request, 0).allowed for request in requests)


def violations(setup: Setup) -> list[Violation]:
    """Return every assertion of the file that does not hold, in the file's order."""
    if not setup.system.asserts:
        return []
    flows = permitted_flows(setup)
    broken = []
    for number, claim in enumerate(setup.system.asserts):
        path = find_path(flows, claim.source, claim.sink, claim.except_)
        if path:
            line = setup.system.line(("assert", number, "never"))
            text = f"never {claim.source} -> {claim.sink} does not hold: {' -> '.join(path)}"
            broken.append(Violation(line, text, tuple(path)))
    return broken
