"""The Chinese Wall: what may start beside what, and what may exchange with what.

The rules this module keeps:

* *Start*. sHype counts, for each type, the running domains that conflict with it. The same
  verdict is derived here from the running labels themselves, so nothing is counted that could
  drift: a start is refused if, in a conflict set, the new label has a type and a running label
  has one while lacking the new label's. The same type twice is allowed.
* *History* (a conflict set's option; Brewer and Nash, not in sHype). What a label once touched
  keeps counting across restarts. Labels may exchange, each with every other, if for each such set
  their own types and all that they have touched hold at most one type of it; afterwards each has
  touched the union. Whoever asks names all whom live channels join. A label that was renamed by an
  update (`from`) inherits its old name's history.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from skerry.errors import UnknownLabel
from skerry.xsm.acm.model import AcmPolicy, ConflictSet
from skerry.xsm.module import Standing
from skerry.xsm.request import Answer, Rule


class Wall:
    """The Chinese Wall questions over one policy. Immutable."""

    def __init__(self, policy: AcmPolicy) -> None:
        self._policy = policy
        self._labels = {label.name: label for label in policy.labels}
        self._types = {label.name: frozenset(label.cw) for label in policy.labels}
        self._sets = [(conflict, frozenset(conflict.types)) for conflict in policy.conflicts]
        self._history = [pair for pair in self._sets if pair[0].history]
        self._historic = frozenset[str]().union(*(types for _, types in self._history))

    def admit(self, label: str, standing: Standing) -> Answer:
        """Answer whether a domain with this label may start beside the running ones."""
        running = Counter(standing.running)
        unknown = self._unknown(label, *running)
        if unknown:
            return unknown
        if not self._policy.cw_types:
            return self._no_wall()
        own = self._types[label]
        for conflict, types in self._sets:
            mine = own & types
            for other in running if mine else ():
                theirs = self._types[other] & types
                if theirs and mine - theirs:
                    return self._conflict(conflict, label, mine - theirs, other, theirs)
        return self._history_of("start", (label,), standing) or self._none(label, len(running))

    def admit_bind(self, labels: Sequence[str], standing: Standing) -> Answer:
        """Answer whether these labels may exchange information, each with every other."""
        unknown = self._unknown(*labels)
        if unknown:
            return unknown
        if not self._policy.cw_types:
            return self._no_wall()
        if not self._history:
            reason = "no conflict set of the policy keeps a history"
            return Answer("acm", True, "CW-NO-CONFLICT", reason, self._policy_rule())
        refused = self._history_of("exchange", labels, standing)
        if refused:
            return refused
        joined = f" and {len(labels) - 2} joined to them" if len(labels) > 2 else ""
        who = " and ".join(labels[:2])
        reason = f"what {who}{joined} have touched lies on one side of every wall"
        return Answer("acm", True, "CW-NO-CONFLICT", reason, self._policy_rule())

    @property
    def remembers(self) -> bool:
        """Whether a conflict set keeps a history."""
        return bool(self._history)

    def touch(self, labels: Sequence[str], standing: Standing) -> dict[str, frozenset[str]]:
        """Return the entries of `standing.touched` that change when these exchange."""
        for text in labels:
            if text not in self._labels:
                raise UnknownLabel(f"policy {self._policy.name} defines no label {text!r}")
        none = frozenset[str]()
        union = none.union(*(self._touched(label, standing) for label in labels))
        known = {label: standing.touched.get(label, none) for label in labels}
        return {label: union | own for label, own in known.items() if not union <= own}

    def _touched(self, label: str, standing: Standing) -> frozenset[str]:
        """All types of history sets that count for a label, its own included."""
        none = frozenset[str]()
        renamed = self._labels[label].from_
        before = standing.touched.get(label, none) | standing.touched.get(renamed, none)
        return (self._types[label] | before) & self._historic

    def _history_of(self, what: str, labels: Sequence[str], standing: Standing) -> Answer | None:
        if not self._history:
            return None
        held = {label: self._touched(label, standing) for label in labels}
        union = frozenset[str]().union(*held.values())
        for conflict, types in self._history:
            if len(union & types) > 1:
                first: dict[frozenset[str], str] = {}
                for label, kinds in held.items():  # of many that hold the same, one is named
                    first.setdefault(kinds & types, label)
                sides = [f"{label} {_shown(some)}" for some, label in first.items() if some]
                joined = ", with all whom it joins to them," if len(labels) > 2 else ","
                reason = (
                    f"to {what}{joined} {' and '.join(sides)} would hold more than one type of"
                    f" the conflict set {conflict.name}, counting what was touched before"
                )
                return Answer("acm", False, "CW-HISTORY-CONFLICT", reason, self._rule(conflict))
        return None

    def _conflict(
        self,
        conflict: ConflictSet,
        label: str,
        mine: frozenset[str],
        other: str,
        theirs: frozenset[str],
    ) -> Answer:
        reason = (
            f"label {label} {_shown(mine)} conflicts with the running {other} {_shown(theirs)}"
            f" in the conflict set {conflict.name}"
        )
        return Answer("acm", False, "CW-CONFLICT", reason, self._rule(conflict))

    def _none(self, label: str, running: int) -> Answer:
        line = self._labels[label].line
        reason = (
            f"label {label} {_shown(self._types[label])} conflicts with none of the"
            f" {running} running label{'' if running == 1 else 's'}"
        )
        rule = Rule(f"label {label}", self._policy.file, line)
        return Answer("acm", True, "CW-NO-CONFLICT", reason, rule)

    def _no_wall(self) -> Answer:
        reason = "the policy has no Chinese Wall component"
        return Answer("acm", True, "CW-NOT-IN-POLICY", reason, self._policy_rule())

    def _unknown(self, *labels: str) -> Answer | None:
        for label in labels:
            if label not in self._labels:
                reason = f"policy {self._policy.name} defines no label {label!r} for domains"
                return Answer("acm", False, "LABEL-UNKNOWN", reason, self._policy_rule())
        return None

    def _policy_rule(self) -> Rule:
        return Rule(f"policy {self._policy.name}", self._policy.file)

    def _rule(self, conflict: ConflictSet) -> Rule:
        kind = "conflict set with history" if conflict.history else "conflict set"
        text = f"{kind} {conflict.name} {_shown(frozenset(conflict.types))}"
        return Rule(text, self._policy.file, conflict.line)


def _shown(types: frozenset[str]) -> str:
    return "{" + ", ".join(sorted(types)) + "}"
