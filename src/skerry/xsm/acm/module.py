"""ACM as a security module: Simple Type Enforcement and Chinese Wall over a frozen policy.

The rules this module keeps:

* *Sharing* (sHype's `sharing`): two domains, or a domain and a resource, may share if their type
  sets intersect. Symmetric, with no difference between reading and writing.
* *Authorization* (sHype's `authorization`, for `domain create`): the new domain's types are a
  subset of the creator's, and the two may share.
* *Privilege*: the policy itself (class `security`, target `security`) is the bootstrap label's.
* *Chinese Wall*: see `skerry.xsm.acm.wall`.

A component that the policy lacks is not asked. What can't be read (unknown label, class or
permission) is denied. All texts of reasons are prepared when the policy is loaded, so that a
decision costs microseconds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from skerry.errors import UnknownLabel
from skerry.xsm.acm.model import UNLABELED, AcmPolicy, ResourceLabel, VmLabel
from skerry.xsm.acm.wall import Wall
from skerry.xsm.classes import CLASSES, SHARE
from skerry.xsm.module import Standing
from skerry.xsm.request import Answer, Rule

RESOURCE_PREFIX = "resource:"
"""Before a name: the resource label of that name, where a domain's label has the same one."""

SECURITY = "security"
"""The target that stands for the policy itself in questions of the class `security`."""

_DOMAIN_TARGETS = frozenset({"add", "remove"})
"""The two permissions of the class `resource` whose target is a domain; Xen's others name the
device or resource itself."""


class _Side(msgspec.Struct, frozen=True):
    """One label ready to be decided with: its types, and how it is worded."""

    name: str
    types: frozenset[str]
    words: str
    place: str
    line: int


class AcmModule:
    """A loaded ACM policy as a `SecurityModule`. Immutable; safe to share."""

    def __init__(self, policy: AcmPolicy) -> None:
        self._policy = policy
        self._digest = policy.digest()
        self._asks_ste = bool(policy.ste_types)
        self._domains = {label.name: _vm_side(label) for label in policy.labels}
        self._resources = {label.name: _resource_side(label) for label in policy.resources}
        self._wall = Wall(policy)
        renamed = [label for label in policy.labels if label.from_ not in ("", label.name)]
        self._taken = {label.name for label in renamed}
        self._renamed: dict[str, list[str]] = {}
        for label in renamed:
            self._renamed.setdefault(label.from_, []).append(label.name)

    @property
    def name(self) -> str:
        """Return `acm`."""
        return "acm"

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the policy's meaning; two forms of one policy have the same."""
        return self._digest

    @property
    def policy(self) -> AcmPolicy:
        """The model this module decides with."""
        return self._policy

    def check_label(self, text: str, tclass: str) -> str:
        """Return the label, a resource's with its prefix.

        Raises `UnknownLabel` unless the policy defines it for that class.
        """
        if tclass == "resource":
            name = text.removeprefix(RESOURCE_PREFIX)
            known, text = name in self._resources, RESOURCE_PREFIX + name
        else:
            known = text in self._domains
        if not known:
            kind = "resources" if tclass == "resource" else "domains"
            raise UnknownLabel(
                self._unknown(text.removeprefix(RESOURCE_PREFIX), kind),
                fix="see `skerry policy show` for the labels",
            )
        return text

    def carry(self, text: str) -> str:
        """Return the label, or the one that was renamed from it (`from`, as in sHype)."""
        if text.startswith(RESOURCE_PREFIX):
            return self.check_label(text, "resource")
        renamed = self._renamed.get(text, [])
        # In an update, a name may have gone to another label: then it is not this one's any more.
        update = self._policy.from_policy is not None
        if text in self._domains and not (update and (renamed or text in self._taken)):
            return text
        if len(renamed) != 1:
            raise UnknownLabel(self._unknown(text, "domains"))
        return renamed[0]

    def labels(self) -> tuple[str, ...]:
        """Return the labels for domains in the policy's order."""
        return tuple(self._domains)

    def operator_label(self) -> str:
        """Return the bootstrap label, as Xen gives it to domain 0."""
        return self._policy.bootstrap

    def decide(
        self, subject: str, target: str, tclass: str, permissions: Collection[str]
    ) -> Answer:
        """Decide one request; every unreadable part of it is a denial, never an exception."""
        asked = tuple(sorted(permissions))
        known = CLASSES.get(tclass)
        if known is None or not asked or not known.issuperset(asked):
            return self._unreadable(tclass, asked)
        if tclass == "resource" and 0 < len(_DOMAIN_TARGETS.intersection(asked)) < len(asked):
            return self._both(subject, target, asked)
        one = self._domains.get(subject)
        if one is None:
            return self._deny("LABEL-UNKNOWN", self._unknown(subject, "domains"))
        if tclass == SECURITY:
            return self._privilege(one, target, asked)
        other, kind = self._target(target, tclass, asked)
        if other is None:
            return self._deny("LABEL-UNKNOWN", self._unknown(target, kind))
        return self._ste(one, other, tclass, asked)

    def transition(self, subject: str, target: str, tclass: str) -> str:
        """Return the subject's own label: what a domain makes is labelled as the domain is."""
        return subject

    def admit(self, label: str, standing: Standing) -> Answer:
        """May a domain with this label start beside the running ones?"""
        return self._wall.admit(label, standing)

    def admit_bind(self, labels: Sequence[str], standing: Standing) -> Answer:
        """May these all exchange information, given what they have touched?"""
        return self._wall.admit_bind(labels, standing)

    def touch(self, labels: Sequence[str], standing: Standing) -> Mapping[str, frozenset[str]]:
        """Return the history entries that an exchange changes. Raises `UnknownLabel`."""
        return self._wall.touch(labels, standing)

    @property
    def remembers(self) -> bool:
        """Whether a conflict set keeps a history."""
        return self._wall.remembers

    def _both(self, subject: str, target: str, asked: tuple[str, ...]) -> Answer:
        """Decide permissions with a domain as target and others with a resource, in one answer."""
        acts = tuple(permission for permission in asked if permission in _DOMAIN_TARGETS)
        rest = tuple(permission for permission in asked if permission not in _DOMAIN_TARGETS)
        answers = [self.decide(subject, target, "resource", part) for part in (acts, rest)]
        worst = next((answer for answer in answers if not answer.allowed), answers[0])
        granted = tuple(sorted(p for answer in answers for p in answer.granted))
        return msgspec.structs.replace(worst, granted=granted)

    def _target(self, target: str, tclass: str, asked: tuple[str, ...]) -> tuple[_Side | None, str]:
        if target.startswith(RESOURCE_PREFIX):
            return self._resources.get(target[len(RESOURCE_PREFIX) :]), "resources"
        if tclass == "resource" and _DOMAIN_TARGETS.isdisjoint(asked):
            return self._resources.get(target), "resources"
        side = self._domains.get(target)
        if side is None and tclass == SHARE:
            return self._resources.get(target), "domains or resources"
        return side, "domains"

    def _ste(self, one: _Side, other: _Side, tclass: str, asked: tuple[str, ...]) -> Answer:
        if not self._asks_ste:
            reason = "the policy has no Simple Type Enforcement component"
            rule = Rule(f"policy {self._policy.name}", self._policy.file)
            return Answer("acm", True, "STE-NOT-IN-POLICY", reason, rule, asked)
        if tclass == "domain" and "create" in asked and not other.types <= one.types:
            rest = tuple(permission for permission in asked if permission != "create")
            return self._not_subset(one, other, () if one.types.isdisjoint(other.types) else rest)
        return self._share(one, other, asked)

    def _share(self, one: _Side, other: _Side, asked: tuple[str, ...]) -> Answer:
        common = one.types & other.types
        if common:
            reason = f"{one.words} and {other.words} have the type {min(common)} in common"
            return Answer("acm", True, "STE-SHARED-TYPE", reason, self._rule(one, other), asked)
        reason = f"{one.words} and {other.words} have no type in common"
        return Answer("acm", False, "STE-NO-SHARED-TYPE", reason, self._rule(one, other))

    def _not_subset(self, one: _Side, other: _Side, granted: tuple[str, ...]) -> Answer:
        lacking = ", ".join(sorted(other.types - one.types))
        reason = f"{one.words} lacks {lacking} of {other.words}, so it may not create it"
        return Answer("acm", False, "STE-NOT-SUBSET", reason, self._rule(one, other), granted)

    def _privilege(self, one: _Side, target: str, asked: tuple[str, ...]) -> Answer:
        policy = self._policy
        rule = Rule(
            f'SubjectLabels bootstrap="{policy.bootstrap}"',
            policy.file,
            policy.places.get("bootstrap", 0),
        )
        if target != SECURITY:
            reason = f"questions of the class security have the target {SECURITY}, not {target!r}"
            return self._deny("LABEL-UNKNOWN", reason)
        if one.name == policy.bootstrap:
            reason = f"{one.name} is the bootstrap label, which rules the policy"
            return Answer("acm", True, "PRIVILEGED", reason, rule, asked)
        reason = f"only the bootstrap label {policy.bootstrap} rules the policy, not {one.name}"
        return Answer("acm", False, "NOT-PRIVILEGED", reason, rule)

    def _rule(self, one: _Side, other: _Side) -> Rule:
        if one is other:
            return Rule(one.place, self._policy.file, one.line)
        return Rule(f"{one.place} and {other.place}", self._policy.file, one.line)

    def _deny(self, code: str, reason: str) -> Answer:
        return Answer(
            "acm", False, code, reason, Rule(f"policy {self._policy.name}", self._policy.file)
        )

    def _unreadable(self, tclass: str, asked: tuple[str, ...]) -> Answer:
        if tclass not in CLASSES:
            return self._deny("CLASS-UNKNOWN", f"there is no class {tclass!r}")
        unknown = sorted(set(asked) - CLASSES[tclass])
        words = f"no permission {', '.join(unknown)}" if unknown else "nothing asked"
        return self._deny("PERMISSION-UNKNOWN", f"class {tclass}: {words}")

    def _unknown(self, text: str, kind: str) -> str:
        if text in ("", UNLABELED):
            return "what has no label shares with nobody"
        return f"policy {self._policy.name} defines no label {text!r} for {kind}"


def _vm_side(label: VmLabel) -> _Side:
    return _side("label", label.name, label.ste, label.line)


def _resource_side(label: ResourceLabel) -> _Side:
    return _side("resource label", label.name, (label.ste,), label.line)


def _side(what: str, name: str, ste: Collection[str], line: int) -> _Side:
    types = frozenset(ste)
    shown = "{" + ", ".join(sorted(types)) + "}"
    where = f" (line {line})" if line else ""
    return _Side(name, types, f"{what} {name} {shown}", f"{what} {name}{where}", line)
