"""The flows that a FLASK policy allows, context by context: users, roles and levels count.

The rules this module keeps: the graph is of the contexts that are asked for and of no others, so
what flows through other contexts is not covered; a flow is there exactly where the module, asked
with both whole contexts, allows a permission by which information flows. Types only say between
which contexts it is worth asking.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from skerry.errors import InputError, Problem, UnknownLabel
from skerry.flow.bits import each, gathered, members
from skerry.flow.deadline import Check, unbounded
from skerry.flow.flask import TypeFlows, check_map, chosen_map
from skerry.flow.graph import About, Graph
from skerry.flow.permission_map import PermissionMap
from skerry.xsm.flask.context import Contexts
from skerry.xsm.flask.model import OBJECT_ROLE, Context, FlaskPolicy, values
from skerry.xsm.flask.module import FlaskModule

MAX_CONTEXTS = 1_000
"""Most contexts of a graph, which may then ask a million pairs; more are refused."""

_WILD = "*?["
_MAX_TRIED = 200_000


def context_graph(
    module: FlaskModule,
    patterns: Sequence[str],
    *,
    permission_map: PermissionMap | None = None,
    min_weight: int = 1,
    exclude_classes: Collection[str] = (),
    any_booleans: bool = False,
    skip_unknown: bool = False,
    check: Check = unbounded,
) -> Graph:
    """Make the graph of the contexts that some texts name; the rest is as in `flask_graph`.

    Raises `InputError` as that does, for a text that names no context, for more than
    `MAX_CONTEXTS`, and with `any_booleans`: constraints are asked of the booleans in force.
    """
    if any_booleans:
        raise _wrong("contexts are asked under the booleans as they are; set them one by one")
    policy = module.policy
    chosen = chosen_map(policy, permission_map, min_weight, exclude_classes)
    named = named_contexts(module, patterns, check)
    flows = ContextFlows(module, named, chosen, min_weight, check)
    if not skip_unknown:
        check_map(policy, chosen, module.rules_in_force())
    about = About(
        "flask-contexts",
        {"flask": module.digest},
        chosen.digest,
        min_weight,
        contexts=tuple(patterns),
    )
    return flows.graph(about)


def named_contexts(
    module: FlaskModule, patterns: Iterable[str], check: Check = unbounded
) -> list[str]:
    """Return the contexts of some texts, `user:role:type[:level]`, each once, sorted.

    User, role and type may be patterns; a level is written out. Raises `InputError`.
    """
    policy, contexts = module.policy, Contexts(module.policy)
    found: set[str] = set()
    problems: list[Problem] = []
    for pattern in patterns:
        check()
        try:
            wanted = _named(policy, contexts, pattern)
            before = len(found)
            for context in wanted:
                check()
                found.add(contexts.text(context))
                if len(found) > MAX_CONTEXTS:
                    raise _wrong(f"more than {MAX_CONTEXTS} contexts; name fewer by narrower texts")
            if len(found) == before and not any(True for _ in _named(policy, contexts, pattern)):
                raise _wrong(f"no context of the policy matches {pattern!r}")
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return sorted(found)


def _named(policy: FlaskPolicy, contexts: Contexts, pattern: str) -> Iterator[Context]:
    parts = pattern.split(":", 3)
    if len(parts) != (4 if policy.mls else 3):
        form = "user:role:type:level" if policy.mls else "user:role:type"
        raise _wrong(f"{pattern!r}: a context of this policy is written {form}")
    level = parts[3] if policy.mls else ""
    if not any(mark in part for part in parts for mark in _WILD):
        try:
            yield contexts.parse(pattern)
        except UnknownLabel as error:
            raise _wrong(error.message) from None
        return
    if any(mark in level for mark in _WILD):
        raise _wrong(f"{pattern!r}: a level has no pattern, for there is no end of them; write one")
    yield from _matching(policy, contexts, parts[:3], level)


def _matching(
    policy: FlaskPolicy, contexts: Contexts, parts: Sequence[str], level: str
) -> Iterator[Context]:
    users = _among({user.name: value for value, user in policy.users.items()}, parts[0])
    roles = _among({role.name: value for value, role in policy.roles.items()}, parts[1])
    kinds = {t.name: t.value for t in policy.types.values() if not t.attribute}
    types = _among(kinds, parts[2])
    tried = 0
    for role in roles:
        held = policy.roles[role].types
        allowed = [t for t in types if role == OBJECT_ROLE or held >> t - 1 & 1]
        for user in users:
            tried += len(allowed)
            if tried > _MAX_TRIED:
                raise _wrong(f"more than {_MAX_TRIED} contexts to try; name fewer")
            for kind in allowed:
                names = policy.users[user].name, policy.roles[role].name, policy.type_name(kind)
                try:
                    yield contexts.parse(":".join((*names, level)) if level else ":".join(names))
                except UnknownLabel:
                    continue


def _among(names: Mapping[str, int], pattern: str) -> list[int]:
    return [names[name] for name in fnmatch.filter(names, pattern)]


class ContextFlows:
    """Asks a policy between contexts, where the rules of their types let something flow at all."""

    def __init__(
        self,
        module: FlaskModule,
        texts: Sequence[str],
        permission_map: PermissionMap,
        weight: int,
        check: Check,
    ) -> None:
        self._check = check
        self._module = module
        self._names = list(texts)
        parser = Contexts(module.policy)
        self._types = [parser.parse(text).type for text in texts]
        self._place = {text: number for number, text in enumerate(texts)}
        policy = module.policy
        self._masks = {v: permission_map.masks(c, weight) for v, c in policy.classes.items()}
        self._flows = TypeFlows(module, permission_map, weight, any_booleans=False)
        self._of_type = gathered((kind, 1 << number) for number, kind in enumerate(self._types))

    def graph(self, about: About) -> Graph:
        """Make the graph; types and attributes are groups of the contexts that have them."""
        rows = [0] * len(self._names)
        for tclass, targets in self._worth_asking():
            self._ask(tclass, targets, rows)
        own = sum(row & 1 << number for number, row in enumerate(rows))
        return Graph(
            self._names,
            [row & ~(1 << number) for number, row in enumerate(rows)],
            own=own,
            groups=self._groups(),
            about=about,
            reason=self.reasons,
        )

    def reasons(self, source: str, sink: str) -> Sequence[str]:
        """Return the rules that make a flow and whose permissions both contexts leave over."""
        one, two = (self._types[self._place[text]] for text in (source, sink))

        def left(subject: str, target: str) -> Callable[[int], int]:
            classes = self._module.policy.classes
            return lambda tclass: (
                self._module.vectors(subject, target, classes[tclass].name).allowed
            )

        return self._flows.rules_of(one, two, left(source, sink), left(sink, source))

    def _worth_asking(self) -> Iterator[tuple[int, dict[int, int]]]:
        """Yield, class by class, for types that stand in a rule the contexts that it may reach."""
        policy = self._module.policy
        holders = gathered(
            (one, held)
            for kind, held in self._of_type.items()
            for one in values(policy.attributes[kind])
        )
        classes: dict[int, dict[int, int]] = {}
        for source, target, tclass, _, vector in self._flows.allows():
            mask = self._masks[tclass]
            if vector & (mask.read | mask.write) and source in holders and target in holders:
                row = classes.setdefault(tclass, {})
                row[source] = row.get(source, 0) | holders[target]
        loose = [kind for kind in self._of_type if policy.permissive >> kind & 1]
        everybody = (1 << len(self._names)) - 1
        for tclass, mask in self._masks.items():
            if loose and mask.read | mask.write:
                row = classes.setdefault(tclass, {})
                row.update(dict.fromkeys(loose, everybody))
        yield from classes.items()

    def _ask(self, tclass: int, targets: Mapping[int, int], rows: list[int]) -> None:
        policy, mask = self._module.policy, self._masks[tclass]
        name = policy.classes[tclass].name
        for kind, held in self._of_type.items():
            reached = 0
            for one in values(policy.attributes[kind]):
                reached |= targets.get(one, 0)
            others = members(reached)
            loose = policy.permissive >> kind & 1
            for subject in each(held):
                self._check()
                for target in others:
                    vector = -1
                    if not loose:
                        asked = self._names[subject], self._names[target], name
                        vector = self._module.vectors(*asked).allowed
                    if vector & mask.write:
                        rows[subject] |= 1 << target
                    if vector & mask.read:
                        rows[target] |= 1 << subject

    def _groups(self) -> dict[str, int]:
        policy = self._module.policy
        groups: dict[str, int] = {}
        for value, held in self._of_type.items():
            for one in values(policy.attributes[value]):
                kind = policy.types.get(one)
                for name in (kind.name, *kind.aliases) if kind else ():
                    groups[name] = groups.get(name, 0) | held
        return groups


def _wrong(message: str) -> InputError:
    return InputError([Problem("context", 0, message)])
