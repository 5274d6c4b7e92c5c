"""What becomes allowed and what becomes denied from one policy to another.

The rules this module keeps: two policies are compared by names, never by numbers, which a compiler
hands out anew each time; and the answer is exact for what is compared: the access vectors that
the rules in force give every pair of types, booleans as the files set them, all attributes
expanded. What decides beside them (constraints, roles, bounds) is compared as it is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from skerry.errors import InputError, Problem
from skerry.xsm.acm.model import AcmPolicy
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.classes import SHARE
from skerry.xsm.flask.constraint import infix
from skerry.xsm.flask.model import ALLOW, values
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.module import SecurityModule, Standing

MAX_ACM_LABELS = 2_000
"""Most labels of an ACM policy that are compared pair by pair; more is an error."""


class Change(msgspec.Struct, frozen=True):
    """One thing that differs.

    `effect` is `allowed` or `denied` where an answer changes, else `added` or `removed`.
    `targets` holds every target that the same change concerns.
    """

    effect: str
    kind: str
    source: str = ""
    targets: tuple[str, ...] = ()
    tclass: str = ""
    permissions: tuple[str, ...] = ()
    text: str = ""


def differences(old: SecurityModule, new: SecurityModule) -> Iterator[Change]:
    """Yield what differs, sorted within each kind. Raises `InputError` for unlike modules."""
    if isinstance(old, FlaskModule) and isinstance(new, FlaskModule):
        return _flask(old, new)
    if isinstance(old, AcmModule) and isinstance(new, AcmModule):
        return _acm(old, new)
    message = f"a policy of the module {new.name} can't be compared with one of {old.name}"
    raise InputError([Problem("policy", 0, message)])


def _acm(old: AcmModule, new: AcmModule) -> Iterator[Change]:
    names = sorted(set(old.labels()) & set(new.labels()))
    if len(names) > MAX_ACM_LABELS:
        message = f"{len(names)} labels; at most {MAX_ACM_LABELS} are compared"
        raise InputError([Problem(new.policy.file, 0, message)])
    yield from _named("label", old.labels(), new.labels())
    yield from _named("resource label", _resources(old.policy), _resources(new.policy))
    for kind, ask in (("share", _shares), ("run beside", _runs_beside)):
        for source in names:
            for effect, targets in _changed(old, new, ask, source, names).items():
                yield Change(effect, kind, source, tuple(targets))


def _changed(
    old: AcmModule, new: AcmModule, ask: object, source: str, names: list[str]
) -> Mapping[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for target in names:
        before, after = ask(old, source, target), ask(new, source, target)  # type: ignore[operator]
        if before != after:
            found["allowed" if after else "denied"].append(target)
    return dict(sorted(found.items()))


def _shares(module: AcmModule, source: str, target: str) -> bool:
    return module.decide(source, target, SHARE, (SHARE,)).allowed


def _runs_beside(module: AcmModule, source: str, target: str) -> bool:
    return module.admit(source, Standing((target,))).allowed


def _resources(policy: AcmPolicy) -> list[str]:
    return [resource.name for resource in policy.resources]


def _named(kind: str, old: Iterable[str], new: Iterable[str]) -> Iterator[Change]:
    before, after = set(old), set(new)
    for effect, names in (("removed", before - after), ("added", after - before)):
        for name in sorted(names):
            yield Change(effect, kind, text=name)


def _flask(old: FlaskModule, new: FlaskModule) -> Iterator[Change]:
    one, two = _Side(old), _Side(new)
    yield from _named("type", one.types, two.types)
    yield from _named("class", one.classes, two.classes)
    yield from _allows(one, two)
    for kind in _WRITTEN:
        yield from _named(kind, one.written(kind), two.written(kind))


def _allows(old: _Side, new: _Side) -> Iterator[Change]:
    """Compare the access vectors of every pair of types, one source at a time."""
    for source in sorted(old.types.keys() | new.types.keys()):
        if old.signature(source) == new.signature(source):
            continue
        before, after = old.granted(source), new.granted(source)
        groups: defaultdict[tuple[str, str, tuple[str, ...]], list[str]] = defaultdict(list)
        for key in before.keys() | after.keys():
            had, has = before.get(key, frozenset()), after.get(key, frozenset())
            target, tclass = key
            for effect, names in (("denied", had - has), ("allowed", has - had)):
                if names:
                    groups[tclass, effect, tuple(sorted(names))].append(target)
        for (tclass, effect, permissions), targets in sorted(groups.items()):
            yield Change(effect, "allow", source, tuple(sorted(targets)), tclass, permissions)


class _Side:
    """One of the two policies, by names."""

    def __init__(self, module: FlaskModule) -> None:
        self.policy = module.policy
        self.module = module
        policy = module.policy
        self.types = {t.name: t.value for t in policy.types.values() if not t.attribute}
        self.classes = module.classes
        self._members: defaultdict[int, list[str]] = defaultdict(list)
        for name, value in self.types.items():
            for held in values(policy.attributes[value]):
                self._members[held].append(name)
        self._rows: defaultdict[int, dict[tuple[int, int], int]] = defaultdict(dict)
        for source, target, tclass, kind, vector in module.rules_in_force():
            if kind == ALLOW:
                row = self._rows[source]
                row[target, tclass] = row.get((target, tclass), 0) | vector
        self._whose = {value: frozenset(names) for value, names in self._members.items()}
        self._hashes: dict[int, int] = {}

    def signature(self, source: str) -> object:
        """Return something that is equal for two sources whose rules give them the same."""
        value = self.types.get(source)
        if value is None:
            return None
        return frozenset(map(self._row_hash, self._sources(value)))

    def granted(self, source: str) -> dict[tuple[str, str], frozenset[str]]:
        """Return the permissions of a source by target and class."""
        value = self.types.get(source)
        if value is None:
            return {}
        vectors: defaultdict[tuple[str, int], int] = defaultdict(int)
        for held in self._sources(value):
            for (target, tclass), vector in self._rows[held].items():
                for name in self._members.get(target, ()):
                    vectors[name, tclass] |= vector
        classes = self.policy.classes
        known: dict[tuple[int, int], frozenset[str]] = {}
        found = {}
        for (name, tclass), vector in vectors.items():
            key = tclass, vector
            if key not in known:
                known[key] = frozenset(classes[tclass].names(vector))
            found[name, classes[tclass].name] = known[key]
        return found

    def _sources(self, value: int) -> list[int]:
        return [held for held in values(self.policy.attributes[value]) if held in self._rows]

    def _row_hash(self, held: int) -> int:
        if held not in self._hashes:
            classes = self.policy.classes
            self._hashes[held] = hash(
                frozenset(
                    (
                        self._whose.get(target, frozenset()),
                        classes[tclass].name,
                        classes[tclass].names(vector),
                    )
                    for (target, tclass), vector in self._rows[held].items()
                )
            )
        return self._hashes[held]

    def written(self, kind: str) -> set[str]:
        """Return the statements of a kind as text."""
        return set(_WRITTEN[kind](self))


def _constraints(side: _Side) -> Iterator[str]:
    for tclass in side.policy.classes.values():
        for entry in tclass.constraints:
            names = " ".join(tclass.names(entry.permissions))
            yield f"constrain {tclass.name} {{ {names} }} ({infix(entry, side.policy)});"
        for entry in tclass.validatetrans:
            yield f"validatetrans {tclass.name} ({infix(entry, side.policy)});"


def _role_allows(side: _Side) -> Iterator[str]:
    roles = side.policy.roles
    for one, two in side.policy.role_allows:
        yield f"allow {roles[one].name} {roles[two].name};"


def _role_types(side: _Side) -> Iterator[str]:
    for role in side.policy.roles.values():
        for value in values(role.types):
            yield f"role {role.name} types {side.policy.type_name(value)};"


def _user_roles(side: _Side) -> Iterator[str]:
    for user in side.policy.users.values():
        for value in values(user.roles):
            yield f"user {user.name} roles {side.policy.roles[value].name};"


def _transitions(side: _Side) -> Iterator[str]:
    policy = side.policy
    for source, target, tclass, kind, new in side.module.rules_in_force():
        if kind in _TYPE_RULES:
            names = (policy.type_name(source), policy.type_name(target))
            where = policy.classes[tclass].name
            yield f"{_TYPE_RULES[kind]} {' '.join(names)}:{where} {policy.type_name(new)};"


def _bounds(side: _Side) -> Iterator[str]:
    policy = side.policy
    for kind in policy.types.values():
        if kind.bounds:
            yield f"typebounds {policy.type_name(kind.bounds)} {kind.name};"


def _permissives(side: _Side) -> Iterator[str]:
    for value in values(side.policy.permissive >> 1):
        yield f"permissive {side.policy.type_name(value)};"


def _booleans(side: _Side) -> Iterator[str]:
    for name, state in side.module.booleans().items():
        yield f"bool {name} {'true' if state else 'false'};"


def _unknown(side: _Side) -> Iterator[str]:
    yield f"handle_unknown {side.policy.handle_unknown}"


_TYPE_RULES = {0x10: "type_transition", 0x20: "type_member", 0x40: "type_change"}
_WRITTEN = {
    "constraint": _constraints,
    "type rule": _transitions,
    "typebounds": _bounds,
    "role allow": _role_allows,
    "role types": _role_types,
    "user roles": _user_roles,
    "permissive": _permissives,
    "boolean": _booleans,
    "handle_unknown": _unknown,
}
