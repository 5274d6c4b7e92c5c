"""An ACM (sHype) policy as a frozen model, the same for both written forms.

The rule this module keeps: whatever a decision depends on is here, with the line it was written
on, so that a denial can name its place. Lines and the file's name are no part of the meaning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec.structs import replace

UNLABELED = "__UNLABELED__"
"""Xen's label for domains and resources without one; a policy may declare it (xend's DEFAULT)."""

RESERVED = frozenset({"__NULL_LABEL__", "__INACCESSIBLE__"})
"""Xen's own marks for 'no label' and 'label lost': no policy may declare them."""

Component = Literal["", "SimpleTypeEnforcement", "ChineseWall"]


class TypeName(msgspec.Struct, frozen=True):
    """One declared type and the line of its declaration."""

    name: str
    line: int = 0


class ConflictSet(msgspec.Struct, frozen=True):
    """Chinese Wall types of which at most one may run at a time.

    With `history`, what a label once touched keeps counting across restarts (Brewer and Nash).
    """

    name: str
    types: tuple[str, ...]
    history: bool = False
    line: int = 0


class VmLabel(msgspec.Struct, frozen=True):
    """A label for domains; `from_` is its name in the policy that this one updates."""

    name: str
    ste: tuple[str, ...] = ()
    cw: tuple[str, ...] = ()
    from_: str = ""
    line: int = 0


class ResourceLabel(msgspec.Struct, frozen=True):
    """A label for resources: exactly one Simple Type Enforcement type, no Chinese Wall types."""

    name: str
    ste: str
    from_: str = ""
    line: int = 0


class FromPolicy(msgspec.Struct, frozen=True):
    """Name and version of the policy that this one updates."""

    name: str
    version: str


class AcmPolicy(msgspec.Struct, frozen=True):
    """A whole policy. No types of a kind means that the policy lacks that component.

    `primary` is the component with `priority="PrimaryPolicyComponent"`. `file` and `places` (the
    lines of `name`, `version`, `bootstrap`, `from`) say where the policy was written.
    """

    name: str
    version: str
    bootstrap: str
    ste_types: tuple[TypeName, ...] = ()
    cw_types: tuple[TypeName, ...] = ()
    conflicts: tuple[ConflictSet, ...] = ()
    labels: tuple[VmLabel, ...] = ()
    resources: tuple[ResourceLabel, ...] = ()
    primary: Component = ""
    url: str = ""
    reference: str = ""
    date: str = ""
    namespace_url: str = ""
    from_policy: FromPolicy | None = None
    file: str = ""
    places: Mapping[str, int] = {}

    def without_lines(self) -> AcmPolicy:
        """Return the same policy as if written nowhere: two forms of one policy become equal."""
        return replace(
            self,
            ste_types=tuple(TypeName(t.name) for t in self.ste_types),
            cw_types=tuple(TypeName(t.name) for t in self.cw_types),
            conflicts=tuple(replace(c, line=0) for c in self.conflicts),
            labels=tuple(replace(label, line=0) for label in self.labels),
            resources=tuple(replace(label, line=0) for label in self.resources),
            file="",
            places={},
        )

    def digest(self) -> str:
        """Return the hex SHA-256 of the policy's meaning.

        Order, lines, the header's free texts and the priority mark do not count: they change no
        decision.
        """
        meaning = (
            "acm-1",
            (self.name, self.version, self.bootstrap, self.from_policy),
            sorted({t.name for t in self.ste_types}),
            sorted({t.name for t in self.cw_types}),
            sorted((c.name, sorted(set(c.types)), c.history) for c in self.conflicts),
            sorted((v.name, sorted(set(v.ste)), sorted(set(v.cw)), v.from_) for v in self.labels),
            sorted((r.name, r.ste, r.from_) for r in self.resources),
        )
        return hashlib.sha256(msgspec.json.encode(meaning)).hexdigest()
