"""The security server: access vectors, exactly as Linux, libsepol and Xen compute them.

The order is theirs: type enforcement over all attributes of both types, conditional rules that
are in force, constraints, role allow, type bounds. Sources: `context_struct_compute_av` of
libsepol and Linux for the flavour `selinux`, of Xen's `xsm/flask/ss/services.c` for `xen`.

The rule this module keeps: two flavours differ only in type bounds. Linux asks once, with both
sides replaced by their bounds; Xen asks for the source's bound, the target's and both, and a
check that masks nothing ends the matter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain

import msgspec

from skerry.xsm.flask.constraint import Check, compile_constraint
from skerry.xsm.flask.model import (
    ALLOW,
    AUDITALLOW,
    AUDITDENY,
    CHANGE,
    FULL_VECTOR,
    MEMBER,
    TRANSITION,
    TYPE_RULES,
    Conditional,
    Constraint,
    Context,
    FlaskPolicy,
    Flavour,
    TeRule,
    values,
)

_ROLE_CHANGES = frozenset({"transition", "dyntransition"})

MAX_MEMBERS = 1 << 18
"""Most attributes of types kept as sets that are quick to search; beyond it, they are made anew."""

Rows = dict[int, dict[int, int]]
"""The rules of one class: by source, then by target, a cell.

A cell holds three vectors in one number: allow, from bit 32 on auditallow, from bit 64 on
dontaudit. Cells join by `|`.
"""


class Vectors(msgspec.Struct, frozen=True):
    """An answer: what is allowed, what of it is recorded, which refusals are not."""

    allowed: int
    auditallow: int
    dontaudit: int


class Steps(msgspec.Struct, frozen=True):
    """What was still allowed after each step, for explanations."""

    by_rules: int
    by_constraints: int
    by_roles: int
    by_bounds: int


class SecurityServer:
    """A policy with its booleans set, ready to be asked. Its answers never change."""

    def __init__(
        self,
        policy: FlaskPolicy,
        booleans: Mapping[int, bool] | None = None,
        flavour: Flavour | None = None,
    ) -> None:
        """Set booleans by value, the others as the file has them."""
        self.policy = policy
        self.flavour = flavour or policy.flavour
        self.booleans = {value: item.state for value, item in policy.booleans.items()}
        self.booleans.update(booleans or {})
        enabled = [
            rule
            for one in policy.conditionals
            for rule in (one.if_true if holds(one, self.booleans) else one.if_false)
        ]
        self.enabled = tuple(enabled)
        self._table = _table(chain(policy.rules, enabled))
        self._type_rules = {r[:4]: r[4] for r in reversed(enabled) if r[3] & TYPE_RULES}
        self._type_rules |= {r[:4]: r[4] for r in policy.rules if r[3] & TYPE_RULES}
        self._sources: dict[int, dict[int, list[int]]] = {}
        self._attributes: dict[int, frozenset[int]] = {}
        self._members = 0
        self._constraints: dict[int, tuple[tuple[int, Check, Constraint], ...]] = {
            value: tuple(
                (c.permissions, compile_constraint(c, policy), c) for c in tclass.constraints
            )
            for value, tclass in policy.classes.items()
        }
        self._validate = {
            value: tuple(compile_constraint(c, policy) for c in tclass.validatetrans)
            for value, tclass in policy.classes.items()
            if tclass.validatetrans
        }
        self._bounded = frozenset(kind.value for kind in policy.types.values() if kind.bounds)
        process = policy.class_named(policy.process_class)
        self._process = process.value if process else 0
        changes = {"transition"} if policy.flavour == "xen" else _ROLE_CHANGES
        self._role_changes = process.vector(frozenset(changes)) if process else 0

    @property
    def process_class(self) -> int:
        """The value of the class of what acts, 0 if the policy lacks it."""
        return self._process

    def vectors(self, source: Context, target: Context, tclass: int) -> Vectors:
        """Return the three vectors for a class that the policy has."""
        cell = self._cell(source.type, target.type, tclass)
        allowed = cell & FULL_VECTOR
        if allowed:
            allowed = self._constrain(allowed, source, target, tclass)
            allowed = self._roles(allowed, source, target, tclass)
            allowed = self._bounds(allowed, source, target, tclass)
        return Vectors(allowed, cell >> 32 & FULL_VECTOR, cell >> 64)

    def steps(self, source: Context, target: Context, tclass: int) -> Steps:
        """Return what each step left over, computed by the same code as the answer."""
        rules = self._cell(source.type, target.type, tclass) & FULL_VECTOR
        constraints = self._constrain(rules, source, target, tclass)
        roles = self._roles(constraints, source, target, tclass)
        return Steps(rules, constraints, roles, self._bounds(roles, source, target, tclass))

    def violated(
        self, source: Context, target: Context, tclass: int, permission: int
    ) -> Constraint | None:
        """Return the first constraint on a permission (a vector) that is false."""
        for permissions, check, constraint in self._constraints[tclass]:
            if permissions & permission and not check(source, target, None):
                return constraint
        return None

    def valid_transition(self, old: Context, new: Context, task: Context, tclass: int) -> bool:
        """Tell whether a thing may change its context from old to new (validatetrans)."""
        return all(check(old, new, task) for check in self._validate.get(tclass, ()))

    def permissive(self, kind: int) -> bool:
        """Tell whether a source type is permissive: refusals are recorded, not enforced."""
        return bool(self.policy.permissive >> kind & 1)

    def new_type(self, source: int, target: int, tclass: int, kind: int) -> int:
        """Return the type that a rule of that kind gives, 0 if there is none."""
        return self._type_rules.get((source, target, tclass, kind), 0)

    def granting(
        self, source: int, target: int, tclass: int, vector: int
    ) -> Iterable[tuple[int, int, int]]:
        """Yield the allow rules in force that give some of a vector: source, target, vector."""
        rows, others = self._table.get(tclass, {}), self._attributes_of(target)
        for one in sorted(rows.keys() & self._attributes_of(source)):
            cells = rows[one]
            for two in sorted(cells.keys() & others):
                given = cells[two] & vector
                if given:
                    yield one, two, given

    def near(
        self, source: int, target: int, tclass: int, vector: int
    ) -> Iterable[tuple[int, int, int]]:
        """Yield allow rules that would do but for one side: first those with the same source."""
        own, others = self._attributes_of(source), self._attributes_of(target)
        rows = self._table.get(tclass, {})
        for one in sorted(rows.keys() & own):
            for two in sorted(rows[one].keys() - others):
                given = rows[one][two] & vector
                if given:
                    yield one, two, given
        sources = self._sources_of(tclass)
        for two in sorted(sources.keys() & others):
            for one in sources[two]:
                given = rows[one][two] & vector
                if given and one not in own:
                    yield one, two, given

    def _cell(self, source: int, target: int, tclass: int) -> int:
        rows = self._table.get(tclass)
        if rows is None:
            return 0
        cell = 0
        others = self._attributes.get(target) or self._attributes_of(target)
        for one in self._attributes.get(source) or self._attributes_of(source):
            cells = rows.get(one)
            if cells is None:
                continue
            # Of the two sets the smaller is gone through: a row may have thousands of targets.
            if len(cells) < len(others):
                for two in cells:
                    if two in others:
                        cell |= cells[two]
            else:
                for two in others:
                    if two in cells:
                        cell |= cells[two]
        return cell

    def _sources_of(self, tclass: int) -> dict[int, list[int]]:
        """Return, for each target of a class's rules, the sources; made when first asked for."""
        known = self._sources.get(tclass)
        if known is None:
            known = self._sources[tclass] = {}
            for one, cells in self._table.get(tclass, {}).items():
                for two in cells:
                    known.setdefault(two, []).append(one)
        return known

    def _attributes_of(self, kind: int) -> frozenset[int]:
        """Return a type and its attributes, taken out of the model's set when first asked for."""
        known = self._attributes.get(kind)
        if known is None:
            known = frozenset(values(self.policy.attributes[kind]))
            self._members += len(known)
            if self._members > MAX_MEMBERS:
                self._attributes.clear()
                self._members = len(known)
            self._attributes[kind] = known
        return known

    def _constrain(self, allowed: int, source: Context, target: Context, tclass: int) -> int:
        for permissions, check, _ in self._constraints[tclass]:
            if permissions & allowed and not check(source, target, None):
                allowed &= ~permissions
        return allowed

    def _roles(self, allowed: int, source: Context, target: Context, tclass: int) -> int:
        if tclass != self._process or source.role == target.role:
            return allowed
        if (source.role, target.role) in self.policy.role_allows:
            return allowed
        return allowed & ~self._role_changes

    def _bounds(self, allowed: int, source: Context, target: Context, tclass: int) -> int:
        bounded = self._bounded
        if not allowed or not (source.type in bounded or target.type in bounded):
            return allowed
        types = self.policy.types
        upper, other = types[source.type].bounds, types[target.type].bounds
        low_source = msgspec.structs.replace(source, type=upper or source.type)
        low_target = msgspec.structs.replace(target, type=other or target.type)
        if self.flavour == "selinux":
            if not upper:
                return allowed
            return allowed & self.vectors(low_source, low_target, tclass).allowed
        pairs = [
            *([(low_source, target)] if upper else []),
            *([(source, low_target)] if other else []),
            *([(low_source, low_target)] if upper and other else []),
        ]
        left = allowed
        for one, two in pairs:
            left = allowed & self.vectors(one, two, tclass).allowed
            if left == allowed:
                return allowed
        return left


def holds(conditional: Conditional, states: Mapping[int, bool]) -> bool:
    """Tell whether a condition is true, with the booleans' states by value."""
    stack: list[bool] = []
    for operator, value in conditional.expression:
        if operator == "bool":
            stack.append(states[value])
        elif operator == "not":
            stack.append(not stack.pop())
        else:
            right, left = stack.pop(), stack.pop()
            stack.append(_join(operator, left, right))
    return stack.pop()


def _join(operator: str, left: bool, right: bool) -> bool:
    if operator == "or":
        return left or right
    if operator == "and":
        return left and right
    if operator == "==":
        return left == right
    return left != right  # "xor" and "!="


def _table(rules: Iterable[TeRule]) -> dict[int, Rows]:
    found: defaultdict[int, defaultdict[int, dict[int, int]]]
    found = defaultdict(lambda: defaultdict(dict))
    for source, target, tclass, kind, datum in rules:
        if kind == ALLOW:
            vectors = datum
        elif kind == AUDITDENY:
            vectors = (datum ^ FULL_VECTOR) << 64
        elif kind == AUDITALLOW:
            vectors = datum << 32
        else:
            continue
        cells = found[tclass][source]
        cells[target] = cells.get(target, 0) | vectors
    return {tclass: dict(rows) for tclass, rows in found.items()}


TYPE_RULE_KINDS = {"transition": TRANSITION, "member": MEMBER, "change": CHANGE}
"""The kinds of rules that give a new object its type."""
