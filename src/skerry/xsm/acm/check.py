"""What a policy must satisfy beyond its form, whichever form it was written in.

Sources: sHype's schema and the checks of Xen's acmpolicy.py (no `:` in names, the bootstrap label
exists, no duplicates, every used type is declared, conflict sets have names), and the manual's
rule that the hypervisor never checked: no label with two types of one conflict set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from skerry.errors import Problem
from skerry.label import MAX_LABEL
from skerry.xsm.acm.model import RESERVED, AcmPolicy, ConflictSet, TypeName, VmLabel

MAX_LABELS = 16_384
"""Most labels for domains, and for resources; they are compared with the conflict sets."""

MAX_CONFLICTS = 4_096
"""Most conflict sets; every start of a domain looks at each."""

MAX_PROBLEMS = 1_000
"""Most problems of one policy that are listed."""

_MAX_SHOWN = 64

_VERSION = re.compile(r"[0-9]{1,8}[^\r\n][0-9]{1,8}")


def find_problems(policy: AcmPolicy) -> list[Problem]:
    """Return every inconsistency of the policy, ordered by line; none means that it is sound."""
    checker = _Checker(policy)
    checker.header()
    checker.types()
    checker.conflicts()
    checker.labels()
    return sorted(set(checker.found), key=lambda problem: problem.line)


def without_echoes(problems: list[Problem], shape: list[Problem]) -> list[Problem]:
    """Leave out what only repeats, as "empty", that `shape` found missing in the same line."""
    lines = {problem.line for problem in shape}
    return [
        p
        for p in problems
        if not (p.line in lines and (p.message.endswith("is empty") or "''" in p.message))
    ]


def _shown(text: str) -> str:
    """Write a name for a message; what is too long for a name is shortened."""
    return repr(text) if len(text) <= MAX_LABEL else f"{text[:_MAX_SHOWN]!r}…"


class _Checker:
    def __init__(self, policy: AcmPolicy) -> None:
        self.policy = policy
        self.found: list[Problem] = []
        self.declared_ste = frozenset(t.name for t in policy.ste_types)
        self.declared_cw = frozenset(t.name for t in policy.cw_types)

    @property
    def full(self) -> bool:
        return len(self.found) > MAX_PROBLEMS

    def say(self, line: int, message: str) -> None:
        if len(self.found) == MAX_PROBLEMS:
            line, message = 0, f"more than {MAX_PROBLEMS} problems; not all are listed"
        if not self.full:
            self.found.append(Problem(self.policy.file, line, message))

    def header(self) -> None:
        policy, places = self.policy, self.policy.places
        self.name("policy name", policy.name, places.get("name", 0), colon=False)
        self.version(policy.version, places.get("version", 0))
        if policy.from_policy:
            line = places.get("from", 0)
            self.name("name of the policy updated", policy.from_policy.name, line, colon=False)
            self.version(policy.from_policy.version, line)
        texts = (policy.url, policy.reference, policy.date, policy.namespace_url)
        for text in texts:
            if text and not text.isprintable():
                self.say(places.get("name", 0), f"header text {_shown(text)} is not printable")
        primary = {"SimpleTypeEnforcement": policy.ste_types, "ChineseWall": policy.cw_types}
        if not primary.get(policy.primary, True):
            self.say(places.get("name", 0), f"the primary component {policy.primary} is missing")
        if policy.bootstrap not in {label.name for label in policy.labels}:
            self.say(
                places.get("bootstrap", 0),
                f"bootstrap label {_shown(policy.bootstrap)} is not among the labels for domains",
            )

    def version(self, version: str, line: int) -> None:
        if not _VERSION.fullmatch(version) or not version.isprintable():
            self.say(
                line, f"version {_shown(version)} is not of the form major.minor (1 to 8 digits)"
            )

    def name(self, what: str, name: str, line: int, *, colon: bool = True) -> None:
        if not name:
            self.say(line, f"{what} is empty")
        elif len(name) > MAX_LABEL:
            self.say(line, f"{what} is longer than {MAX_LABEL} characters")
        elif not name.isprintable() or name != " ".join(name.split()):
            self.say(line, f"{what} {_shown(name)} has characters or spaces that cannot be shown")
        if not colon and ":" in name:
            self.say(line, f"{what} {_shown(name)} contains ':'")
        if name in RESERVED:
            self.say(line, f"{what} {_shown(name)} is reserved")

    def types(self) -> None:
        for kind, types in (
            ("Simple Type Enforcement", self.policy.ste_types),
            ("Chinese Wall", self.policy.cw_types),
        ):
            for declared in types:
                self.name(f"{kind} type", declared.name, declared.line)
            self.unique(f"{kind} type", types)

    def unique(self, what: str, items: Iterable[TypeName]) -> None:
        first: dict[str, int] = {}
        for item in items:
            if item.name in first:
                where = f" (first in line {first[item.name]})" if first[item.name] else ""
                self.say(item.line, f"duplicate {what} {_shown(item.name)}{where}")
            first.setdefault(item.name, item.line)

    def conflicts(self) -> None:
        for conflict in self.policy.conflicts:
            self.name("name of a conflict set", conflict.name, conflict.line)
            where = f"conflict set {_shown(conflict.name)}"
            if not conflict.types:
                self.say(conflict.line, f"{where} has no types")
            self.used(where, conflict.types, self.declared_cw, "Chinese Wall", conflict.line)

    def used(
        self, where: str, types: Sequence[str], declared: frozenset[str], kind: str, line: int
    ) -> None:
        for name in types:
            if name not in declared:
                self.say(line, f"{where} uses the undeclared {kind} type {_shown(name)}")

    def labels(self) -> None:
        policy = self.policy
        sets = self.sets_of()
        self.at_most(MAX_LABELS, "labels for domains", [v.line for v in policy.labels])
        self.at_most(MAX_LABELS, "labels for resources", [v.line for v in policy.resources])
        for label in policy.labels:
            self.vm_label(label, sets)
        for resource in policy.resources:
            where = f"resource label {_shown(resource.name)}"
            self.name("resource label", resource.name, resource.line, colon=False)
            self.used(
                where, (resource.ste,), self.declared_ste, "Simple Type Enforcement", resource.line
            )
        self.unique("label", (TypeName(v.name, v.line) for v in policy.labels))
        self.unique("resource label", (TypeName(r.name, r.line) for r in policy.resources))

    def at_most(self, limit: int, what: str, lines: list[int]) -> None:
        if len(lines) > limit:
            self.say(lines[limit], f"more than {limit} {what}")

    def sets_of(self) -> dict[str, list[ConflictSet]]:
        """Return the conflict sets of each type; none if there are too many to compare."""
        conflicts = self.policy.conflicts
        self.at_most(MAX_CONFLICTS, "conflict sets", [c.line for c in conflicts])
        found: dict[str, list[ConflictSet]] = {}
        for conflict in conflicts if len(conflicts) <= MAX_CONFLICTS else ():
            for name in set(conflict.types):
                found.setdefault(name, []).append(conflict)
        return found

    def vm_label(self, label: VmLabel, sets: dict[str, list[ConflictSet]]) -> None:
        where = f"label {_shown(label.name)}"
        self.name("label", label.name, label.line, colon=False)
        self.used(where, label.ste, self.declared_ste, "Simple Type Enforcement", label.line)
        self.used(where, label.cw, self.declared_cw, "Chinese Wall", label.line)
        if len(label.cw) < 2 or len(self.policy.labels) > MAX_LABELS or self.full:
            return
        held: dict[int, tuple[ConflictSet, list[str]]] = {}
        for name in sorted(set(label.cw)):
            for conflict in sets.get(name, ()):
                held.setdefault(id(conflict), (conflict, []))[1].append(name)
        for conflict, both in held.values():
            if len(both) > 1:
                self.say(
                    label.line,
                    f"{where} has {len(both)} types of the conflict set {_shown(conflict.name)}"
                    f" (line {conflict.line}): {', '.join(both)}",
                )
