"""The flows that a FLASK policy allows, type by type.

The rules this module keeps: only allow rules count, as the booleans set them in force; attributes
are expanded; both sides of a rule that a permission map gives a direction make a flow between each
pair of different types. A permissive type may do what no rule allows, so it exchanges with every
other. Constraints, roles and levels are left out, which errs to the safe side: no flow is missing.
`skerry.flow.contexts` has the graph of whole contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from skerry.errors import InputError, Problem
from skerry.flow.bits import bitset
from skerry.flow.graph import About, Graph, check_size, packed
from skerry.flow.permission_map import MAX_WEIGHT, PermissionMap, map_for
from skerry.xsm.flask.condition import ConditionalRule, ConditionalRules
from skerry.xsm.flask.model import ALLOW, FlaskPolicy, TeRule, values
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.flask.server import holds

_SHOWN_CLASSES = 100
"""Most classes that a message lists, each with its permissions; the others are counted."""

Left = Callable[[int], int]
"""Returns which permissions of a class are left over by constraints, roles and bounds."""


def _all(_: int) -> int:
    return -1


def flask_graph(
    module: FlaskModule,
    *,
    permission_map: PermissionMap | None = None,
    min_weight: int = 1,
    exclude_classes: Collection[str] = (),
    any_booleans: bool = False,
    skip_unknown: bool = False,
) -> Graph:
    """Make the graph of a policy's types.

    `min_weight` (1 to 10) is the least weight at which a permission counts. With `any_booleans`
    the rules under every condition count, in force or not. `exclude_classes` names classes that
    do not count. Raises `InputError` for a class that there is not, and where the map lacks a
    permission that a rule grants, unless `skip_unknown` says to take it for no flow.
    """
    policy = module.policy
    chosen = chosen_map(policy, permission_map, min_weight, exclude_classes)
    flows = TypeFlows(module, chosen, min_weight, any_booleans)
    if not skip_unknown:
        check_map(policy, chosen, flows.rules())
    digest = policy.digest if any_booleans else module.digest
    about = About("flask", {"flask": digest}, chosen.digest, min_weight, any_booleans)
    return flows.graph(about)


def chosen_map(
    policy: FlaskPolicy,
    given: PermissionMap | None,
    min_weight: int,
    exclude_classes: Collection[str],
) -> PermissionMap:
    """Return the map to ask with. Raises `InputError` for a wrong weight or class."""
    if not 1 <= min_weight <= MAX_WEIGHT:
        message = f"a weight is a number of 1 to {MAX_WEIGHT}, not {min_weight}"
        raise InputError([Problem("argument", 0, message)])
    return (given or map_for(policy)).without(exclude_classes, policy)


class TypeFlows:
    """A policy's rules as flows: from the members of one type or attribute to those of another."""

    def __init__(
        self, module: FlaskModule, permission_map: PermissionMap, weight: int, any_booleans: bool
    ) -> None:
        policy = self._policy = module.policy
        self._module = module
        self._any_booleans = any_booleans
        self._types = [kind.value for kind in policy.types.values() if not kind.attribute]
        self._types += [v for v in policy.attributes if v not in policy.types]
        check_size(len(self._types))
        self.names = [policy.type_name(value) for value in self._types]
        self._value = dict(zip(self.names, self._types, strict=True))
        masks = {v: permission_map.masks(c, weight) for v, c in policy.classes.items()}
        self._read = {value: mask.read for value, mask in masks.items()}
        self._write = {value: mask.write for value, mask in masks.items()}
        self._rows: dict[int, list[tuple[TeRule, str]]] | None = None

    def rules(self) -> Iterator[TeRule]:
        """Yield the rules that count."""
        if not self._any_booleans:
            yield from self._module.rules_in_force()
            return
        yield from self._policy.rules
        for conditional in self._policy.conditionals:
            yield from conditional.if_true
            yield from conditional.if_false

    def allows(self) -> Iterator[TeRule]:
        """Yield the allow rules that count."""
        return (rule for rule in self.rules() if rule[3] == ALLOW)

    def pairs(self) -> set[tuple[int, int]]:
        """Return the flows between types and attributes, unexpanded: from, to."""
        read, write = self._read, self._write
        allows = list(self.allows())
        found = {(s, t) for s, t, tclass, _, vector in allows if vector & write[tclass]}
        found |= {(t, s) for s, t, tclass, _, vector in allows if vector & read[tclass]}
        return found

    def members(self) -> dict[int, int]:
        """Return, for each type and attribute, the set of its types by their place in `names`."""
        room: dict[int, list[int]] = {}
        for place, value in enumerate(self._types):
            for one in values(self._policy.attributes[value]):
                room.setdefault(one, []).append(place)
        return {one: packed(places, len(self._types)) for one, places in room.items()}

    def graph(self, about: About) -> Graph:
        """Expand the flows to single types."""
        members = self.members()
        ahead: dict[int, int] = {}
        behind: dict[int, int] = {}
        for source, sink in self.pairs():
            if source in members and sink in members:
                ahead[source] = ahead.get(source, 0) | members[sink]
                behind[sink] = behind.get(sink, 0) | members[source]
        rows, own = self._expanded(ahead)
        back, _ = self._expanded(behind)
        own |= self._let_pass(rows, self._write, back, self._read)
        types = self._policy.types
        groups = {
            kind.name: members.get(kind.value, 0) for kind in types.values() if kind.attribute
        }
        for value in self._types:
            for alias in types[value].aliases if value in types else ():
                groups[alias] = members[value]
        reason = self.reasons
        return Graph(self.names, rows, back, own=own, groups=groups, about=about, reason=reason)

    def reasons(self, source: str, sink: str) -> Sequence[str]:
        """Return the rules that make a flow between two types, as the policy would write them."""
        return self.rules_of(self._value[source], self._value[sink], _all, _all)

    def rules_of(self, source: int, sink: int, writes: Left, reads: Left) -> Sequence[str]:
        """Return the rules that make a flow between two types, given by their values.

        `writes` and `reads` say, class by class, which permissions of the source on the sink and
        of the sink on the source are left over by what decides beside the rules.
        """
        found = dict.fromkeys(self._between(source, sink, self._write, writes))
        found |= dict.fromkeys(self._between(sink, source, self._read, reads))
        loose = [v for v in (source, sink) if self._policy.permissive >> v & 1]
        found |= dict.fromkeys(f"permissive {self._policy.type_name(value)};" for value in loose)
        return tuple(found)

    def _let_pass(
        self,
        rows: list[int],
        write: Mapping[int, int],
        back: list[int],
        read: Mapping[int, int],
    ) -> int:
        """Add what permissive types are let do, and return those of them that reach themselves."""
        places = enumerate(self._types)
        loose = bitset(place for place, value in places if self._policy.permissive >> value & 1)
        everybody = (1 << len(self._types)) - 1
        ways = (rows, back, any(write.values())), (back, rows, any(read.values()))
        for ahead, behind, counts in ways if loose else ():
            for place in range(len(ahead)) if counts else ():
                bit = 1 << place
                ahead[place] = everybody & ~bit if loose & bit else ahead[place]
                behind[place] |= loose & ~bit
        return loose if any(counts for *_, counts in ways) else 0

    def _expanded(self, flows: Mapping[int, int]) -> tuple[list[int], int]:
        """Return each type's row over all its attributes, and the types that reach themselves."""
        rows: list[int] = []
        own = 0
        attributes = self._policy.attributes
        known: dict[int, int] = {}
        used = bitset(value - 1 for value in flows)
        for place, value in enumerate(self._types):
            held = attributes[value] & used
            row = known.get(held, -1)
            if row < 0:
                row = 0
                for one in values(held):
                    row |= flows[one]
                known[held] = row
            bit = 1 << place
            own |= row & bit
            rows.append(row & ~bit)
        return rows, own

    def _between(
        self, subject: int, target: int, masks: Mapping[int, int], left: Left
    ) -> Iterator[str]:
        if self._rows is None:
            self._rows = {}
            for rule, condition in self._conditioned():
                if rule[3] == ALLOW:
                    self._rows.setdefault(rule[0], []).append((rule, condition))
        targets = self._policy.attributes[target]
        for one in values(self._policy.attributes[subject]):
            for rule, condition in self._rows.get(one, ()):
                counts = rule[4] & masks[rule[2]] and targets >> rule[1] - 1 & 1
                if counts and rule[4] & masks[rule[2]] & left(rule[2]):
                    yield self._text(rule, condition)

    def _conditioned(self) -> Iterator[tuple[TeRule, str]]:
        """Yield the rules that count, each with the condition that it stands under."""
        policy, states = self._policy, self._module.booleans()
        for rule in policy.rules:
            yield rule, ""
        texts = ConditionalRules(policy) if policy.conditionals else None
        for one in policy.conditionals:
            held = holds(one, {v: states[item.name] for v, item in policy.booleans.items()})
            for branch, rules in ((True, one.if_true), (False, one.if_false)):
                if texts and rules and (self._any_booleans or branch is held):
                    shown = texts.text(ConditionalRule(0, 0, 0, one.expression, branch))
                    yield from ((rule, shown) for rule in rules)

    def _text(self, rule: TeRule, condition: str) -> str:
        policy = self._policy
        source, target, tclass, _, vector = rule
        known = policy.classes[tclass]
        permissions = " ".join(known.names(vector))
        names = f"{policy.type_name(source)} {policy.type_name(target)}:{known.name}"
        text = f"allow {names} {{ {permissions} }};"
        return f"if ({condition}) {{ {text} }}" if condition else text


def check_map(policy: FlaskPolicy, permission_map: PermissionMap, rules: Iterable[TeRule]) -> None:
    """Raise `InputError` where the map lacks a permission that a rule grants, by class."""
    lacking = permission_map.lacking(policy, rules)
    if not lacking:
        return
    shown = [f"{tclass} {{ {' '.join(names)} }}" for tclass, names in lacking.items()]
    more = len(shown) - _SHOWN_CLASSES
    rest = f"; and {more} more class{'es' if more > 1 else ''}" if more > 0 else ""
    listed = "; ".join(shown[:_SHOWN_CLASSES]) + rest
    message = (
        f"the permission map {permission_map.file} does not say which way information flows by:"
        f" {listed}; give a map that does, or --skip-unknown to take them for no flow"
    )
    raise InputError([Problem(policy.file, 0, message)])
