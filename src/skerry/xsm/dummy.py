"""The dummy module, as Xen's: privilege only, no isolation between domains.

The rule this module keeps: domains may always open channels to each other and use what they were
given; what an operator does to domains, devices and the node is for the privileged label alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

from skerry.errors import UnknownLabel
from skerry.label import MAX_LABEL
from skerry.xsm.classes import CLASSES, SHARE
from skerry.xsm.module import Standing
from skerry.xsm.request import Answer, Rule

PRIVILEGED = "dom0"
"""The one label that may do what an operator does."""

_OPEN_CLASSES = frozenset({SHARE, "event", "grant", "argo"})
"""Classes of channels between domains; the rest is the operator's."""

_OPEN = frozenset({("resource", "use"), ("domain", "transition")})
"""What a domain's own label is asked about an act that the operator was asked about as well."""

_RULE = Rule("dummy module: privilege only")


class DummyModule:
    """The policy of a system without one. Any printable label is a label."""

    @property
    def name(self) -> str:
        """Return `dummy`."""
        return "dummy"

    @property
    def digest(self) -> str:
        """Hex SHA-256 of this module's one fixed meaning."""
        return hashlib.sha256(b"dummy-1").hexdigest()

    def check_label(self, text: str, tclass: str) -> str:
        """Return the text. Raises `UnknownLabel` unless it is printable and not too long."""
        if not 0 < len(text) <= MAX_LABEL or not text.isprintable():
            raise UnknownLabel(f"a label is a printable text of 1 to {MAX_LABEL} characters")
        return text

    def labels(self) -> tuple[str, ...]:
        """Return the only label that means anything."""
        return (PRIVILEGED,)

    def carry(self, text: str) -> str:
        """Return the label: every label is known."""
        return text

    def operator_label(self) -> str:
        """Return the privileged label."""
        return PRIVILEGED

    def decide(
        self, subject: str, target: str, tclass: str, permissions: Collection[str]
    ) -> Answer:
        """Allow everything to the privileged label, channels to everybody; deny the rest."""
        asked = tuple(sorted(permissions))
        known = CLASSES.get(tclass)
        if known is None or not asked or not known.issuperset(asked):
            reason = f"no such class and permissions: {tclass} {' '.join(asked)}"
            return Answer("dummy", False, "PERMISSION-UNKNOWN", reason, _RULE)
        if subject == PRIVILEGED:
            return Answer("dummy", True, "PRIVILEGED", f"{PRIVILEGED} may do it", _RULE, asked)
        granted = tuple(p for p in asked if tclass in _OPEN_CLASSES or (tclass, p) in _OPEN)
        if granted == asked:
            reason = "domains may always exchange and use what they were given"
            return Answer("dummy", True, "ALWAYS", reason, _RULE, granted)
        reason = f"only {PRIVILEGED} may do it, not {subject}"
        return Answer("dummy", False, "NOT-PRIVILEGED", reason, _RULE, granted)

    def transition(self, subject: str, target: str, tclass: str) -> str:
        """Return the subject's own label."""
        return subject

    def admit(self, label: str, standing: Standing) -> Answer:
        """Admit every start: there is no wall."""
        return Answer("dummy", True, "CW-NOT-IN-POLICY", "the dummy module has no wall", _RULE)

    def admit_bind(self, labels: Sequence[str], standing: Standing) -> Answer:
        """Admit every exchange: there is no wall."""
        return self.admit(labels[0], standing)

    def touch(self, labels: Sequence[str], standing: Standing) -> Mapping[str, frozenset[str]]:
        """Remember nothing."""
        return {}
