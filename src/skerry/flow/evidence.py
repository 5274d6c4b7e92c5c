"""A policy's flows read straight from its rules, for the checker of certificates.

The rule this module keeps: it shares no code with what makes graphs, so that a mistake there does
not repeat itself here; but for what the two ask about, which map (`map_for`) and which contexts
(`named_contexts`). A flow is a pair of sets of labels, as `skerry.flow.verify` takes it: one
for each rule, not one for each pair of labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from skerry.flow.contexts import named_contexts
from skerry.flow.permission_map import map_for
from skerry.flow.policy import Options
from skerry.xsm.acm.model import AcmPolicy
from skerry.xsm.acm.module import RESOURCE_PREFIX, AcmModule
from skerry.xsm.dummy import DummyModule
from skerry.xsm.flask.context import Contexts
from skerry.xsm.flask.model import ALLOW, TeRule, values
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.module import SecurityModule
from skerry.xsm.stack import Stack

Flows = list[tuple[int, int]]

_Types = tuple[frozenset[str], frozenset[str], bool]
"""The types of a label for both components, and whether it is one for domains."""


def policy_evidence(stack: Stack, options: Options) -> tuple[list[str], Flows]:
    """Return the labels of a policy, and its flows: who in the first set may send to the second."""
    parts = [(m.name, _evidence(m, options)) for m in stack.modules]
    asked = sorted((name, part) for name, part in parts if part is not None)
    if len(asked) == 1:
        return asked[0][1]
    labels, flows = [""], [(1, 1)]
    for name, (inner, inner_flows) in asked:
        comma = "," if labels != [""] else ""
        labels = [f"{one}{comma}{name}={two}" for one in labels for two in inner]
        flows = [
            (_both(a, c, len(inner)), _both(b, d, len(inner)))
            for a, b in flows
            for c, d in inner_flows
        ]
    return labels, flows


def _both(outer: int, inner: int, size: int) -> int:
    """Return the combinations of two sets; each outer member stands for `size` inner ones."""
    found = 0
    for place in range(outer.bit_length()):
        if outer >> place & 1:
            found |= inner << place * size
    return found


def _evidence(module: SecurityModule, options: Options) -> tuple[list[str], Flows] | None:
    if isinstance(module, FlaskModule):
        return _contexts(module, options) if options.contexts else _flask(module, options)
    if isinstance(module, AcmModule):
        return _acm(module.policy)
    if isinstance(module, DummyModule):
        return None
    raise TypeError(f"no flows are known of the module {module.name}")


def _flask(module: FlaskModule, options: Options) -> tuple[list[str], Flows]:
    policy = module.policy
    types = [v for v in policy.attributes if v not in policy.types or not policy.types[v].attribute]
    holders: dict[int, int] = {}
    for place, value in enumerate(types):
        for one in values(policy.attributes[value]):
            holders[one] = holders.get(one, 0) | 1 << place
    ways = _Ways(module, options)
    found: set[tuple[int, int]] = set()
    for source, target, tclass, kind, vector in _rules(module, options.any_booleans):
        if kind == ALLOW:
            reads, writes = ways.of(tclass, vector)
            if writes:
                found.add((source, target))
            if reads:
                found.add((target, source))
    names = [policy.type_name(value) for value in types]
    flows = [(holders.get(s, 0), holders.get(t, 0)) for s, t in found]
    loose = sum(1 << place for place, value in enumerate(types) if policy.permissive >> value & 1)
    everybody = (1 << len(types)) - 1
    return names, flows + ([(loose, everybody), (everybody, loose)] if loose else [])


def _contexts(module: FlaskModule, options: Options) -> tuple[list[str], Flows]:
    """Ask for each rule the contexts of its sides; what is asked once is not asked again."""
    policy = module.policy
    names = named_contexts(module, options.contexts)
    parser = Contexts(policy)
    kinds = [parser.parse(name).type for name in names]
    ways = _Ways(module, options)
    asked: set[tuple[int, int, int]] = set()
    flows: set[tuple[int, int]] = set()
    holders: dict[int, list[int]] = {}
    for place, kind in enumerate(kinds):
        for one in values(policy.attributes[kind]):
            holders.setdefault(one, []).append(place)
    for source, target, tclass, kind, vector in module.rules_in_force():
        if kind != ALLOW or not any(ways.of(tclass, vector)):
            continue
        for one in holders.get(source, ()):
            for two in holders.get(target, ()):
                if (one, two, tclass) not in asked:
                    asked.add((one, two, tclass))
                    name = policy.classes[tclass].name
                    left = module.vectors(names[one], names[two], name).allowed
                    reads, writes = ways.of(tclass, left)
                    flows |= {(1 << one, 1 << two)} if writes else set()
                    flows |= {(1 << two, 1 << one)} if reads else set()
    loose = sum(1 << n for n, kind in enumerate(kinds) if policy.permissive >> kind & 1)
    everybody = (1 << len(names)) - 1
    return names, [*flows, *([(loose, everybody), (everybody, loose)] if loose else [])]


def _rules(module: FlaskModule, any_booleans: bool) -> Iterator[TeRule]:
    if not any_booleans:
        return module.rules_in_force()
    conditionals = module.policy.conditionals
    return chain(module.policy.rules, *((*c.if_true, *c.if_false) for c in conditionals))


class _Ways:
    """Whether a vector of permissions lets read, and whether it lets write."""

    def __init__(self, module: FlaskModule, options: Options) -> None:
        self._classes = module.policy.classes
        self._map = options.permission_map or map_for(module.policy)
        self._options = options
        self._known: dict[tuple[int, int], tuple[bool, bool]] = {}

    def of(self, tclass: int, vector: int) -> tuple[bool, bool]:
        key = tclass, vector
        if key not in self._known:
            self._known[key] = self._found(*key)
        return self._known[key]

    def _found(self, tclass: int, vector: int) -> tuple[bool, bool]:
        known = self._classes[tclass]
        if known.name in self._options.exclude_classes:
            return False, False
        flows = self._map.classes.get(known.name, {})
        granted = [flows[name] for name in known.names(vector) if name in flows]
        used = {f.direction for f in granted if f.weight >= self._options.min_weight}
        return not used.isdisjoint("rb"), not used.isdisjoint("wb")


def _acm(policy: AcmPolicy) -> tuple[list[str], Flows]:
    """Ask each pair of labels; those with the same types are asked once."""
    names = [label.name for label in policy.labels]
    names += [RESOURCE_PREFIX + label.name for label in policy.resources]
    types = [(frozenset(v.ste), frozenset(v.cw), True) for v in policy.labels]
    types += [(frozenset({v.ste}), frozenset(), False) for v in policy.resources]
    alike: dict[_Types, int] = {}
    for place, own in enumerate(types):
        alike[own] = alike.get(own, 0) | 1 << place
    walls = [frozenset(conflict.types) for conflict in policy.conflicts]
    asks = bool(policy.ste_types)

    def may(one: _Types, two: _Types) -> bool:
        if not (one[2] or two[2]) or (asks and not one[0] & two[0]):
            return False
        return all(len((one[1] | two[1]) & wall) < 2 for wall in walls)

    flows = [
        (senders, sum(receivers for two, receivers in alike.items() if may(one, two)))
        for one, senders in alike.items()
    ]
    return names, flows
