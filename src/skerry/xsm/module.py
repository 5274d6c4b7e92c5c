"""The interface of a security module."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from skerry.xsm.request import Answer


class Standing(msgspec.Struct, frozen=True):
    """What is so now, for the questions that depend on it (the Chinese Wall).

    `running` holds one module's label text for each domain that runs or is being started, with
    repetitions; `touched` maps a label text to the Chinese Wall types that it has touched since
    the node first ran (the history form), own types included.
    """

    running: tuple[str, ...] = ()
    touched: Mapping[str, frozenset[str]] = {}


class SecurityModule(Protocol):
    """One policy module: dummy, ACM, Flask. Pure: the same question has the same answer.

    Labels are this module's texts (`Label.of(module.name)`).
    """

    @property
    def name(self) -> str:
        """`dummy`, `acm` or `flask`: the key of this module's part of a label."""

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the policy's meaning as loaded."""

    def check_label(self, text: str, tclass: str) -> str:
        """Return a label as it is asked about. Raises `UnknownLabel` unless the policy has it.

        `tclass` is `domain` for a subject label or `resource` for a resource label.
        """

    def carry(self, text: str) -> str:
        """Return what a label of the policy before is called under this one.

        Raises `UnknownLabel` if this policy has neither it nor a label that was renamed from it.
        """

    def labels(self) -> Sequence[str]:
        """All subject labels that can be listed, in the policy's order; for messages and `show`."""

    def operator_label(self) -> str:
        """The label of the node's owner where the system file names none (Xen: domain 0)."""

    def decide(
        self, subject: str, target: str, tclass: str, permissions: Collection[str]
    ) -> Answer:
        """Decide one request, with its reason. Denies what it can't read; never raises."""

    def transition(self, subject: str, target: str, tclass: str) -> str:
        """Return the label of a new object that `subject` makes toward `target`."""

    def admit(self, label: str, standing: Standing) -> Answer:
        """May a domain with this label start beside the running ones (the Chinese Wall)?"""

    def admit_bind(self, labels: Sequence[str], standing: Standing) -> Answer:
        """May these exchange information, each with every other, given what all have touched?"""

    def touch(self, labels: Sequence[str], standing: Standing) -> Mapping[str, frozenset[str]]:
        """Return the history entries that change when these exchange information.

        Called with one label when a domain starts.
        """
