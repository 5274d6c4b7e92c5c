"""The frozen model of a compiled policy.

The rules this module keeps: a value is a number from 1 on, as the file holds it; a set of values
is an `int` in which bit `value - 1` stands for `value`; an access vector is an `int` in which bit
`n` stands for the class's permission number `n + 1`. Every number in a model names something that
the model holds: the reader has checked that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

Flavour = Literal["selinux", "xen"]

OBJECT_ROLE = 1
"""The value of `object_r`, the role of things that do not act; every type and user may have it."""

ALLOW, AUDITALLOW, AUDITDENY = 0x1, 0x2, 0x4
TRANSITION, MEMBER, CHANGE = 0x10, 0x20, 0x40
XALLOW, XAUDITALLOW, XDONTAUDIT = 0x100, 0x200, 0x400

VECTORS = ALLOW | AUDITALLOW | AUDITDENY
TYPE_RULES = TRANSITION | MEMBER | CHANGE
EXTENDED = XALLOW | XAUDITALLOW | XDONTAUDIT

FULL_VECTOR = 0xFFFFFFFF

TeRule = tuple[int, int, int, int, int]
"""Source type or attribute, target type or attribute, class, kind (one of the above), and the
access vector or new type. In a rule of kind `AUDITDENY` a bit that is *not* set is a dontaudit."""


def values(bits: int) -> Iterator[int]:
    """Yield the values of a set in ascending order."""
    while bits:
        low = bits & -bits
        yield low.bit_length()
        bits ^= low


class Level(msgspec.Struct, frozen=True, cache_hash=True):
    """A sensitivity (its rank, from 1 on) and a set of categories."""

    sensitivity: int
    categories: int

    def dominates(self, other: Level) -> bool:
        """Tell whether this level is at least as high and has all of the other's categories."""
        return self.sensitivity >= other.sensitivity and not other.categories & ~self.categories


class Range(msgspec.Struct, frozen=True, cache_hash=True):
    """From a low level to a high one."""

    low: Level
    high: Level

    def contains(self, other: Range) -> bool:
        """Tell whether the other range lies within this one."""
        return other.low.dominates(self.low) and self.high.dominates(other.high)


NO_RANGE = Range(Level(0, 0), Level(0, 0))
"""Stands for the range in a policy without MLS."""


class Context(msgspec.Struct, frozen=True, cache_hash=True):
    """A security context by values."""

    user: int
    role: int
    type: int
    range: Range


class Term(msgspec.Struct, frozen=True):
    """One step of a constraint in postfix order.

    `kind`: `not`, `and`, `or`; `pair` compares an attribute of both sides (`u1 == u2`,
    `l1 dom h2`); `names` compares one side's user, role or type (`t2 != { … }`) with `values`.
    `left` and `right` are written as the policy language writes them; `shown` holds the type set
    as the policy named it (attributes unexpanded) where the file keeps that, else 0.
    """

    kind: Literal["not", "and", "or", "pair", "names"]
    left: str = ""
    operator: Literal["", "==", "!=", "dom", "domby", "incomp"] = ""
    right: str = ""
    values: int = 0
    shown: int = 0
    excluded: int = 0
    any: Literal["", "*", "~"] = ""


class Constraint(msgspec.Struct, frozen=True):
    """Permissions that are granted only where the expression is true."""

    permissions: int
    terms: tuple[Term, ...]

    @property
    def mls(self) -> bool:
        """Whether it compares levels: then the policy language calls it `mlsconstrain`."""
        return any(term.left[:1] in ("l", "h") for term in self.terms)


class PolicyClass(msgspec.Struct, frozen=True):
    """An object class; `permissions` holds names by bit, "" where a bit has none."""

    name: str
    value: int
    permissions: tuple[str, ...]
    common: str = ""
    constraints: tuple[Constraint, ...] = ()
    validatetrans: tuple[Constraint, ...] = ()
    default_user: int = 0
    default_role: int = 0
    default_range: int = 0
    default_type: int = 0

    def vector(self, names: frozenset[str]) -> int:
        """Return the access vector of those of the names that the class has."""
        return sum(1 << bit for bit, name in enumerate(self.permissions) if name in names)

    def names(self, vector: int) -> tuple[str, ...]:
        """Return the names in a vector, sorted; bits without a name are left out."""
        found = [n for bit, n in enumerate(self.permissions) if n and vector >> bit & 1]
        return tuple(sorted(found))


class Role(msgspec.Struct, frozen=True):
    """A role, those it dominates (itself included), and the types it may have."""

    name: str
    value: int
    bounds: int
    dominates: int
    types: int


class PolicyType(msgspec.Struct, frozen=True):
    """A type or attribute; `bounds` is its parent, 0 for none."""

    name: str
    value: int
    attribute: bool = False
    bounds: int = 0
    aliases: tuple[str, ...] = ()


class User(msgspec.Struct, frozen=True):
    """A user of the policy, its roles, and its range."""

    name: str
    value: int
    bounds: int
    roles: int
    range: Range = NO_RANGE
    default_level: Level = NO_RANGE.low


class Sensitivity(msgspec.Struct, frozen=True):
    """A sensitivity and the categories that may go with it."""

    name: str
    level: Level
    aliases: tuple[str, ...] = ()


class Category(msgspec.Struct, frozen=True):
    """A category."""

    name: str
    value: int
    aliases: tuple[str, ...] = ()


class Boolean(msgspec.Struct, frozen=True):
    """A boolean and its value in the file."""

    name: str
    value: int
    state: bool


class Conditional(msgspec.Struct, frozen=True):
    """Rules in force while an expression over booleans is true, and others while it is false.

    `expression` is in postfix order: `("bool", value)` or an operator with 0.
    """

    expression: tuple[tuple[str, int], ...]
    if_true: tuple[TeRule, ...]
    if_false: tuple[TeRule, ...]


class ExtendedRule(msgspec.Struct, frozen=True):
    """A rule about the numbers of an operation (ioctl): which of 65,536 it means.

    `form` 1: `numbers` are the low bytes under the high byte `driver`; 2: they are whole high
    bytes; 3: netlink message types.
    """

    source: int
    target: int
    tclass: int
    kind: int
    form: int
    driver: int
    numbers: int


class RoleTransition(msgspec.Struct, frozen=True):
    """A domain of `role` that executes or makes `type` of the class gets `new_role`."""

    role: int
    type: int
    tclass: int
    new_role: int


class FileTransition(msgspec.Struct, frozen=True):
    """A type transition that holds for one name of the new object."""

    source: int
    target: int
    tclass: int
    name: str
    new_type: int


class ObjectContext(msgspec.Struct, frozen=True):
    """The contexts the policy itself gives to something: an initial SID, a port, a device.

    `kind` is the statement's name in the policy language, `key` what it names.
    """

    kind: str
    key: tuple[int | str, ...]
    contexts: tuple[Context, ...]


class FlaskPolicy(msgspec.Struct, frozen=True):
    """A compiled policy. The mappings by number hold every value that is in use.

    `role_transition_class` is set where the file is too old to name a class in role transitions.
    """

    file: str
    digest: str
    flavour: Flavour
    version: int
    mls: bool
    handle_unknown: Literal["deny", "reject", "allow"]
    capabilities: int
    permissive: int
    commons: Mapping[str, tuple[str, ...]]
    classes: Mapping[int, PolicyClass]
    roles: Mapping[int, Role]
    types: Mapping[int, PolicyType]
    users: Mapping[int, User]
    booleans: Mapping[int, Boolean]
    sensitivities: Mapping[int, Sensitivity]
    categories: Mapping[int, Category]
    rules: tuple[TeRule, ...]
    conditionals: tuple[Conditional, ...]
    extended: tuple[ExtendedRule, ...]
    role_transitions: tuple[RoleTransition, ...]
    role_allows: frozenset[tuple[int, int]]
    file_transitions: tuple[FileTransition, ...]
    object_contexts: tuple[ObjectContext, ...]
    range_transitions: Mapping[tuple[int, int, int], Range]
    attributes: Mapping[int, int]

    def class_named(self, name: str) -> PolicyClass | None:
        """Return the class of that name, if the policy has it."""
        return next((c for c in self.classes.values() if c.name == name), None)

    def type_name(self, value: int) -> str:
        """Return the name of a type or attribute, or its number where the file has no name."""
        found = self.types.get(value)
        return found.name if found else f"#{value}"

    def permissive_types(self) -> list[str]:
        """Return the names of the types to which nothing is refused, by their values."""
        # Unlike other sets, this one has bit `value` for a value.
        return [self.type_name(value) for value in values(self.permissive >> 1)]

    @property
    def process_class(self) -> str:
        """The class of what acts: its objects keep role and type of their maker."""
        return "domain" if self.flavour == "xen" else "process"

    def initial_context(self, sid: int) -> Context | None:
        """Return the context of an initial SID, if the policy gives it one."""
        for entry in self.object_contexts:
            if entry.kind == "sid" and entry.key == (sid,):
                return entry.contexts[0]
        return None
