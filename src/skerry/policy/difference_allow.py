"""Which types gain and lose which permissions on which, from one FLASK policy to another.

Exact, and never expanded pair by pair: types stand in sets, one bit each, and one class is
compared at a time. A source is looked at only if something differs that could reach it: a rule
that names it or one of its attributes, the members of such a rule's target, or its attributes.

The rule this module keeps: what is compared is every pair of types and every permission, by
names, under the rules in force; a type that a policy lacks has nothing there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from skerry.errors import InputError, Problem
from skerry.xsm.flask.model import ALLOW, values
from skerry.xsm.flask.module import FlaskModule

MAX_COMPARED_TYPES = 20_000
"""Most types and attributes of two policies that are compared; more is an error."""

_MAX_EXPANDED_BYTES = 64 * 1024 * 1024
_MAX_KEPT = 4096

Row = dict[str, int]
"""What one type or attribute may do: vectors of a class by the name of the target."""


class Gain(NamedTuple):
    """What the same sources gain or lose on the same targets."""

    tclass: str
    effect: str
    permissions: tuple[str, ...]
    sources: tuple[str, ...]
    targets: tuple[str, ...]


def compare_allows(old: FlaskModule, new: FlaskModule) -> Iterator[Gain]:
    """Yield what becomes allowed and denied, by class, effect, permissions and sources.

    Raises `InputError` for policies with too many types.
    """
    names = _Names(old, new)
    if len(names.all) > MAX_COMPARED_TYPES:
        message = (
            f"{len(names.all)} types and attributes; at most {MAX_COMPARED_TYPES} are compared"
        )
        raise InputError([Problem(new.policy.file, 0, message)])
    sides = _Side(old, names), _Side(new, names)
    for tclass in sorted(old.classes.keys() | new.classes.keys()):
        yield from _Class(tclass, names, *sides).gains()


class _Names:
    """One numbering of the types of both policies, and one of types and attributes."""

    def __init__(self, old: FlaskModule, new: FlaskModule) -> None:
        kinds = [kind for side in (old, new) for kind in side.policy.types.values()]
        self.types = sorted({kind.name for kind in kinds if not kind.attribute})
        self.all = sorted({kind.name for kind in kinds})
        self.type_bits = _numbered(self.types)
        self.bits = _numbered(self.all)

    def listed(self, bits: int) -> tuple[str, ...]:
        """Return the names of a set of types."""
        return tuple(self.types[value - 1] for value in values(bits))


class _Side:
    """One of the two policies, by names."""

    def __init__(self, module: FlaskModule, names: _Names) -> None:
        policy = module.policy
        self.module = module
        self._names = {value: kind.name for value, kind in policy.types.items()}
        self.members: defaultdict[str, int] = defaultdict(int)
        self.attributes: dict[str, int] = {}
        for value, kind in policy.types.items():
            if kind.attribute:
                continue
            held = [self._names[v] for v in values(policy.attributes[value]) if v in self._names]
            self.attributes[kind.name] = sum(names.bits[name] for name in held)
            for name in held:
                self.members[name] |= names.type_bits[kind.name]
        self._rules: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for source, target, tclass, kind_of_rule, vector in module.rules_in_force():
            if kind_of_rule == ALLOW:
                self._rules[tclass].append((source, target, vector))

    def rows(self, tclass: str, permissions: Mapping[str, int]) -> dict[str, Row]:
        """Return the rows of a class by the name of the source, vectors in a common numbering."""
        known = self.module.classes.get(tclass)
        found: dict[str, Row] = {}
        if known is None:
            return found
        common: dict[int, int] = {}
        for source, target, vector in self._rules.get(known.value, ()):
            if vector not in common:
                common[vector] = sum(permissions[name] for name in known.names(vector))
            row = found.setdefault(self._names[source], {})
            name = self._names[target]
            row[name] = row.get(name, 0) | common[vector]
        return found


class _Class:
    """The comparison of one class."""

    def __init__(self, tclass: str, names: _Names, old: _Side, new: _Side) -> None:
        listed = {
            name
            for side in (old, new)
            if tclass in side.module.classes
            for name in side.module.classes[tclass].permissions
            if name
        }
        self.permissions = sorted(listed)
        bits = {name: 1 << place for place, name in enumerate(self.permissions)}
        self.name, self._names, self._sides = tclass, names, (old, new)
        self._rows = tuple(side.rows(tclass, bits) for side in (old, new))
        self._expanded: tuple[dict[str, dict[int, int]], dict[str, dict[int, int]]] = ({}, {})
        self._held = 0

    def gains(self) -> Iterator[Gain]:
        """Yield what sources gain and lose, those with the same in one."""
        groups: defaultdict[tuple[str, tuple[int, ...], int], list[str]] = defaultdict(list)
        known: dict[tuple[int, int], dict[tuple[str, int], list[int]]] = {}
        for source, key in self._affected():
            if key not in known:
                if len(known) >= _MAX_KEPT:
                    known.clear()
                known[key] = self._compared(*key)
            for (effect, targets), permissions in known[key].items():
                groups[effect, tuple(permissions), targets].append(source)
        found = [
            (effect, tuple(self.permissions[place] for place in places), tuple(sources), targets)
            for (effect, places, targets), sources in groups.items()
        ]
        for effect, names, gaining, targets in sorted(found):
            yield Gain(self.name, effect, names, gaining, self._names.listed(targets))

    def _affected(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield each source that could differ, with what it has rows by in either policy."""
        old, new = self._sides
        bits = self._names.bits
        named = [sum(bits[name] for name in rows) for rows in self._rows]
        changed = sum(bits[n] for n in {*self._rows[0], *self._rows[1]} if self._differs(n))
        for source in self._names.types:
            before = old.attributes.get(source, 0) & named[0]
            after = new.attributes.get(source, 0) & named[1]
            if before != after or before & changed:
                yield source, (before, after)

    def _differs(self, name: str) -> bool:
        one, other = (rows.get(name) for rows in self._rows)
        if one is None or other is None or one != other:
            return True
        old, new = self._sides
        return any(old.members.get(t, 0) != new.members.get(t, 0) for t in one)

    def _compared(self, before: int, after: int) -> dict[tuple[str, int], list[int]]:
        """Return what is gained and lost: places of permissions by effect and set of targets."""
        had, has = self._reach(0, before), self._reach(1, after)
        found: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        for place in range(len(self.permissions)):
            one, other = had.get(place, 0), has.get(place, 0)
            for effect, targets in (("denied", one & ~other), ("allowed", other & ~one)):
                if targets:
                    found[effect, targets].append(place)
        return found

    def _reach(self, side: int, named: int) -> dict[int, int]:
        """Return the targets of each permission, for a source with these attributes."""
        found: defaultdict[int, int] = defaultdict(int)
        for value in values(named):
            for place, targets in self._expand(side, self._names.all[value - 1]).items():
                found[place] |= targets
        return found

    def _expand(self, side: int, name: str) -> dict[int, int]:
        expanded = self._expanded[side]
        if name not in expanded:
            by_vector: defaultdict[int, int] = defaultdict(int)
            for target, vector in self._rows[side][name].items():
                by_vector[vector] |= self._sides[side].members.get(target, 0)
            row: defaultdict[int, int] = defaultdict(int)
            for vector, targets in by_vector.items():
                for value in values(vector):
                    row[value - 1] |= targets
            self._held += len(row) * len(self._names.types) // 8
            if self._held > _MAX_EXPANDED_BYTES:
                self._held = 0
                for side_rows in self._expanded:
                    side_rows.clear()
            expanded[name] = row
        return expanded[name]


def _numbered(names: list[str]) -> dict[str, int]:
    return {name: 1 << place for place, name in enumerate(names)}
