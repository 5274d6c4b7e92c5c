"""The flows that an ACM policy allows, label by label.

The rules this module keeps: two labels exchange information where Simple Type Enforcement lets
them share and the Chinese Wall lets them run at the same time; a label for resources is shared
with, and does not run. Stops and starts are not limited, so whatever a label has learnt goes on
with it: a chain of such pairs is a flow, though its ends may never run together. Whoever has a
label that may not run beside another gets nothing of it as an operator either. Walls with history
count for domains alone: nothing is remembered of operators, nor of what may be an uplink.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_

from skerry.flow.bits import each, gathered
from skerry.flow.graph import About, Graph, check_size
from skerry.xsm.acm.model import AcmPolicy
from skerry.xsm.acm.module import RESOURCE_PREFIX, AcmModule


def acm_graph(module: AcmModule) -> Graph:
    """Make the graph of a policy's labels; those for resources are written `resource:NAME`."""
    flows = LabelFlows(module.policy)
    return flows.graph(About("acm", {"acm": module.digest}))


class LabelFlows:
    """Who shares with whom, and who may not run beside whom."""

    def __init__(self, policy: AcmPolicy) -> None:
        self._policy = policy
        self.names = [label.name for label in policy.labels]
        self.names += [RESOURCE_PREFIX + label.name for label in policy.resources]
        check_size(len(self.names))
        self.domains = (1 << len(policy.labels)) - 1
        self._ste = [frozenset(label.ste) for label in policy.labels]
        self._ste += [frozenset({label.ste}) for label in policy.resources]
        self._cw = [frozenset(label.cw) for label in policy.labels]
        self._number = {name: number for number, name in enumerate(self.names)}

    def holders(self) -> dict[str, int]:
        """Return, for each Simple Type Enforcement type, the labels that have it."""
        return _holders(self._ste)

    def apart(self) -> list[int]:
        """Return, for each label for domains, those that can't run beside it."""
        holders = _holders(self._cw)
        apart = [0] * len(self.names)
        for conflict in self._policy.conflicts:
            sides = [holders.get(kind, 0) for kind in set(conflict.types)]
            all_sides = reduce(or_, sides, 0)
            for held in sides:
                # A policy gives no label two types of one set, so the others hold another type.
                for label in each(held):
                    apart[label] |= all_sides & ~held
        return apart

    def conflicts(self) -> list[list[int]]:
        """Return, for each conflict set with history, the labels that hold each of its types."""
        holders = _holders(self._cw)
        sets = [set(one.types) for one in self._policy.conflicts if one.history]
        return [[holders[kind] for kind in sorted(types & holders.keys())] for types in sets]

    def graph(self, about: About) -> Graph:
        """Make the graph."""
        holders, apart = self.holders(), self.apart()
        everybody = (1 << len(self.names)) - 1
        rows, own = [], 0
        for number, types in enumerate(self._ste):
            row = everybody
            if self._policy.ste_types:
                row = 0
                for kind in types:
                    row |= holders[kind]
            row &= ~apart[number]
            if not self.domains >> number & 1:
                row &= self.domains  # two resources exchange nothing by themselves
            own |= row & 1 << number
            rows.append(row & ~(1 << number))
        groups = {f"type:{kind}": held for kind, held in holders.items()}
        return Graph(
            self.names,
            rows,
            rows,
            own=own,
            groups=groups,
            conflicts=self.conflicts(),
            forgets=everybody & ~self.domains,
            about=about,
            reason=self.reasons,
        )

    def reasons(self, source: str, sink: str) -> Sequence[str]:
        """Return what lets two labels share, with the lines of the policy."""
        one, two = self._number[source], self._number[sink]
        if not self._policy.ste_types:
            return ("the policy has no Simple Type Enforcement component",)
        common = ", ".join(sorted(self._ste[one] & self._ste[two]))
        return (f"{self._place(one)} and {self._place(two)} share the type {common}",)

    def _place(self, number: int) -> str:
        labels, resources = self._policy.labels, self._policy.resources
        if number < len(labels):
            what, name, line = "label", labels[number].name, labels[number].line
        else:
            resource = resources[number - len(labels)]
            what, name, line = "resource label", resource.name, resource.line
        return f"{what} {name} ({self._policy.file}:{line})" if line else f"{what} {name}"


def _holders(sets: Sequence[frozenset[str]]) -> dict[str, int]:
    return gathered((kind, 1 << number) for number, types in enumerate(sets) for kind in types)
