"""What becomes allowed and what becomes denied from one policy to another.

The rules this module keeps: two policies are compared by names, never by numbers, which a compiler
hands out anew each time; and the answer is exact for what is compared: the access vectors that
the rules in force give every pair of types, booleans as the files set them, all attributes
expanded. What decides beside them is compared as statements; of a constraint's sets every member
counts that both policies have, however the set is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from skerry.errors import InputError, Problem
from skerry.policy.difference_allow import compare_allows
from skerry.xsm.acm.model import AcmPolicy
from skerry.xsm.acm.module import RESOURCE_PREFIX, AcmModule
from skerry.xsm.classes import SHARE
from skerry.xsm.flask.constraint import infix
from skerry.xsm.flask.context import Contexts
from skerry.xsm.flask.model import Constraint, PolicyType, Role, User, values
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.module import SecurityModule, Standing


class Change(msgspec.Struct, frozen=True):
    """One thing that differs.

    `effect` is `allowed` or `denied` where an answer changes, else `added` or `removed`. The
    change concerns each of `sources` with each of `targets`; statements have a `text` instead.
    """

    effect: str
    kind: str
    sources: tuple[str, ...] = ()
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
    file = new.policy.file if isinstance(new, (FlaskModule, AcmModule)) else new.name
    raise InputError([Problem(file, 0, message)])


def _acm(old: AcmModule, new: AcmModule) -> Iterator[Change]:
    names = sorted(set(old.labels()) & set(new.labels()))
    yield from _named("label", old.labels(), new.labels())
    yield from _named("resource label", _resources(old.policy), _resources(new.policy))
    yield from _named("bootstrap label", [old.operator_label()], [new.operator_label()])
    resources = sorted(set(_resources(old.policy)) & set(_resources(new.policy)))
    questions: tuple[tuple[str, _Ask, list[str]], ...] = (
        ("share", _shares, names),
        ("create", _creates, names),
        ("use", _uses, resources),
        ("run beside", _runs_beside, names),
    )
    for kind, ask, targets in questions:
        yield from _pairs(old, new, kind, ask, names, targets)


_Ask = Callable[[AcmModule, str, str], bool]


def _pairs(
    old: AcmModule, new: AcmModule, kind: str, ask: _Ask, names: list[str], targets: list[str]
) -> Iterator[Change]:
    """Compare every pair; labels with the same types are asked once."""
    one, two = _Alike(old), _Alike(new)
    groups: defaultdict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    found: dict[tuple[object, object], dict[str, list[str]]] = {}
    for source in names:
        key = one.key(source), two.key(source)
        if key not in found:
            found[key] = {"allowed": [], "denied": []}
            for target in targets:
                before, after = one.ask(ask, source, target), two.ask(ask, source, target)
                if before != after:
                    found[key]["allowed" if after else "denied"].append(target)
        for effect, changed in found[key].items():
            if changed:
                groups[effect, tuple(changed)].append(source)
    for (effect, changed_targets), sources in sorted(groups.items()):
        yield Change(effect, kind, tuple(sources), changed_targets)


class _Alike:
    """Asks a policy, once for all labels that have the same types."""

    def __init__(self, module: AcmModule) -> None:
        self._module = module
        self._keys: dict[str, object] = {
            label.name: (frozenset(label.ste), frozenset(label.cw))
            for label in module.policy.labels
        }
        self._resources: dict[str, object] = {
            resource.name: resource.ste for resource in module.policy.resources
        }
        self._known: dict[tuple[_Ask, object, object], bool] = {}

    def key(self, label: str) -> object:
        return self._keys[label]

    def ask(self, ask: _Ask, source: str, target: str) -> bool:
        other = self._resources[target] if ask is _uses else self._keys[target]
        key = ask, self._keys[source], other
        if key not in self._known:
            self._known[key] = ask(self._module, source, target)
        return self._known[key]


def _shares(module: AcmModule, source: str, target: str) -> bool:
    return module.decide(source, target, SHARE, (SHARE,)).allowed


def _creates(module: AcmModule, source: str, target: str) -> bool:
    return module.decide(source, target, "domain", ("create",)).allowed


def _uses(module: AcmModule, source: str, target: str) -> bool:
    return module.decide(source, RESOURCE_PREFIX + target, "resource", ("use",)).allowed


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
    for gain in compare_allows(old, new):
        yield Change(
            gain.effect, "allow", gain.sources, gain.targets, gain.tclass, gain.permissions
        )
    yield from _constraint_changes(one, two)
    for kind in _WRITTEN:
        yield from _named(kind, one.written(kind), two.written(kind))


class _Side:
    """One of the two policies, by names."""

    def __init__(self, module: FlaskModule) -> None:
        self.policy = module.policy
        self.module = module
        policy = module.policy
        self.types = {t.name: t.value for t in policy.types.values() if not t.attribute}
        self.classes = module.classes
        self.contexts = Contexts(module.policy)

    def written(self, kind: str) -> set[str]:
        """Return the statements of a kind as text."""
        return set(_WRITTEN[kind](self))

    def named(self, kind: str) -> Mapping[int, _Named]:
        """Return what a set of a constraint is made of: `u` users, `r` roles, `t` types."""
        if kind == "t":
            return {v: held for v, held in self.policy.types.items() if not held.attribute}
        return self.policy.users if kind == "u" else self.policy.roles


_Named = User | Role | PolicyType
_Terms = tuple[tuple[str, str, str, str, tuple[str, ...]], ...]


class _Constraints:
    """A policy's constraints, by what they ask of what both policies have."""

    def __init__(self, side: _Side, other: _Side) -> None:
        self._policy = side.policy
        self._both: dict[str, dict[int, str]] = {}
        for kind in "urt":
            has = {one.name for one in other.named(kind).values()}
            held = side.named(kind).items()
            self._both[kind] = {value: one.name for value, one in held if one.name in has}
        self._known: dict[tuple[str, int], tuple[str, ...]] = {}
        self.texts: dict[tuple[str, _Terms], str] = {}
        for tclass in side.policy.classes.values():
            for entry in tclass.constraints:
                names = " ".join(tclass.names(entry.permissions))
                self._add(f"constrain {tclass.name} {{ {names} }}", entry)
            for entry in tclass.validatetrans:
                self._add(f"validatetrans {tclass.name}", entry)

    def _add(self, head: str, entry: Constraint) -> None:
        terms = tuple(
            (t.kind, t.left, t.operator, t.right, self._set(t.left[:1], t.values))
            for t in entry.terms
        )
        self.texts[head, terms] = f"{head} ({infix(entry, self._policy)});"

    def _set(self, kind: str, held: int) -> tuple[str, ...]:
        """Return the names of a set, sorted, without those that the other policy lacks."""
        if (kind, held) not in self._known:
            found = (self._both[kind].get(value, "") for value in values(held)) if held else ()
            self._known[kind, held] = tuple(sorted(filter(None, found)))
        return self._known[kind, held]


def _constraint_changes(old: _Side, new: _Side) -> Iterator[Change]:
    before, after = _Constraints(old, new).texts, _Constraints(new, old).texts
    gone, come = before.keys() - after.keys(), after.keys() - before.keys()
    alike = {before[key] for key in gone} & {after[key] for key in come}
    for effect, keys, texts in (("removed", gone, before), ("added", come, after)):
        for key in sorted(keys, key=lambda key: (texts[key], key)):
            text = texts[key]
            if text in alike:  # they differ in what a set holds
                sets = (f"{t[1]} {t[2]} {{ {' '.join(t[4])} }}" for t in key[1] if t[4])
                text = f"{text} where {', '.join(sets)}"
            yield Change(effect, "constraint", text=text)


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
    for name in side.policy.permissive_types():
        yield f"permissive {name};"


def _booleans(side: _Side) -> Iterator[str]:
    for name, state in side.module.booleans().items():
        yield f"bool {name} {'true' if state else 'false'};"


def _named_transitions(side: _Side) -> Iterator[str]:
    policy = side.policy
    for entry in policy.file_transitions:
        names = f"{policy.type_name(entry.source)} {policy.type_name(entry.target)}"
        where = policy.classes[entry.tclass].name
        yield f'type_transition {names}:{where} {policy.type_name(entry.new_type)} "{entry.name}";'


def _role_transitions(side: _Side) -> Iterator[str]:
    policy = side.policy
    for entry in policy.role_transitions:
        tclass = f":{policy.classes[entry.tclass].name}" if entry.tclass else ""
        names = f"{policy.roles[entry.role].name} {policy.type_name(entry.type)}{tclass}"
        yield f"role_transition {names} {policy.roles[entry.new_role].name};"


def _range_transitions(side: _Side) -> Iterator[str]:
    policy = side.policy
    for (source, target, tclass), span in policy.range_transitions.items():
        names = f"{policy.type_name(source)} {policy.type_name(target)}"
        where = policy.classes[tclass].name
        yield f"range_transition {names}:{where} {side.contexts.range_text(span)};"


def _user_ranges(side: _Side) -> Iterator[str]:
    if side.policy.mls:
        for user in side.policy.users.values():
            yield f"user {user.name} range {side.contexts.range_text(user.range)};"


def _initial_sids(side: _Side) -> Iterator[str]:
    for entry in side.policy.object_contexts:
        if entry.kind == "sid":
            yield f"sid {entry.key[0]} {side.contexts.text(entry.contexts[0])};"


def _unknown(side: _Side) -> Iterator[str]:
    yield f"handle_unknown {side.policy.handle_unknown}"


def _permissions(side: _Side) -> Iterator[str]:
    for tclass in side.policy.classes.values():
        for name in filter(None, tclass.permissions):
            yield f"class {tclass.name} {{ {name} }}"


def _aliases(side: _Side) -> Iterator[str]:
    policy = side.policy
    for word, held in (
        ("typealias", policy.types),
        ("sensitivity", policy.sensitivities),
        ("category", policy.categories),
    ):
        for one in held.values():
            for alias in one.aliases:
                yield f"{word} {one.name} alias {alias};"


def _levels(side: _Side) -> Iterator[str]:
    """Yield the order of the sensitivities and the categories, and which may go together."""
    policy = side.policy
    if policy.mls:
        ranks = [level for _, level in sorted(policy.sensitivities.items())]
        yield f"dominance {{ {' '.join(level.name for level in ranks)} }}"
        held = [category.name for _, category in sorted(policy.categories.items())]
        yield f"categories {{ {' '.join(held)} }}"
        for level in ranks:
            yield f"level {side.contexts.level_text(level.level)};"


def _defaults(side: _Side) -> Iterator[str]:
    for tclass in side.policy.classes.values():
        for what in ("user", "role", "type", "range"):
            if value := getattr(tclass, f"default_{what}"):
                yield f"default_{what} {tclass.name} {value};"


def _dominance(side: _Side) -> Iterator[str]:
    roles = side.policy.roles
    for role in roles.values():
        for value in values(role.dominates):
            if value != role.value and value in roles:
                yield f"dominance {{ role {role.name} {{ role {roles[value].name}; }} }}"


_TYPE_RULES = {0x10: "type_transition", 0x20: "type_member", 0x40: "type_change"}
_WRITTEN = {
    "permission": _permissions,
    "alias": _aliases,
    "level": _levels,
    "default": _defaults,
    "dominance": _dominance,
    "type rule": _transitions,
    "type rule by name": _named_transitions,
    "typebounds": _bounds,
    "role transition": _role_transitions,
    "range transition": _range_transitions,
    "user range": _user_ranges,
    "initial sid": _initial_sids,
    "role allow": _role_allows,
    "role types": _role_types,
    "user roles": _user_roles,
    "permissive": _permissives,
    "boolean": _booleans,
    "handle_unknown": _unknown,
}
