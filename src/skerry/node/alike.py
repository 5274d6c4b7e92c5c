"""Which pairs of a system's labels its modules can't tell apart, so that they are asked once.

The rules this module keeps: a module says in bulk, of each label, with which others it could let
anything flow at all; all the other pairs are refused by every hook, for each asks of the two for
shared memory, in one direction or the other. Of the pairs that are left, those whose sides a module
gives the same names have the same answer. Where a module can't say that much of a label, each of
its pairs is asked; and each with an operator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import NamedTuple

from skerry.errors import UnknownLabel
from skerry.flow.bits import each, gathered
from skerry.label import Label
from skerry.xsm.acm.model import AcmPolicy
from skerry.xsm.acm.module import RESOURCE_PREFIX, AcmModule
from skerry.xsm.dummy import PRIVILEGED, DummyModule
from skerry.xsm.flask.context import Contexts
from skerry.xsm.flask.model import ALLOW, Context, values
from skerry.xsm.flask.module import SECURITY, FlaskModule
from skerry.xsm.module import SecurityModule
from skerry.xsm.stack import Stack

ASKED = "grant", "map_read"
"""What every hook between two things asks of one of them toward the other: class, permission."""

Places = Mapping[str, int]
"""For each text of a module's labels, the things that have it."""


class _View(NamedTuple):
    """What a module says of each text: what to call it, and whom it could meet.

    `meets` holds at least all things with which a hook could be allowed in either direction;
    `alone` are the things that names say too little of.
    """

    names: Mapping[str, Hashable]
    meets: Mapping[str, int]
    alone: int = 0


class Apart:
    """Every pair of some things by itself: what `Alike` is measured by."""

    def __init__(self, things: int) -> None:
        self._things = range(things)

    def cells(self, one: int) -> Iterator[tuple[Hashable, int]]:
        """Yield everybody, one by one, each with a key that no other pair has."""
        for other in self._things:
            yield (one, other), 1 << other


class Alike:
    """The pairs of some things, in cells of which each has one answer."""

    def __init__(self, stack: Stack, things: Sequence[tuple[Label, str]]) -> None:
        """Take things as their labels and kinds."""
        self._kinds = [kind for _, kind in things]
        self._of_kind = gathered((kind, 1 << number) for number, kind in enumerate(self._kinds))
        everybody = (1 << len(things)) - 1
        self._alone = self._of_kind.get("operator", 0)
        self._meets = [everybody] * len(things)
        names: list[tuple[Hashable, ...]] = [(kind,) for kind in self._kinds]
        resources = self._of_kind.get("disk", 0) | self._of_kind.get("resource", 0)
        for module in stack.modules:
            texts = [dict(label.parts).get(module.name) for label, _ in things]
            places = gathered((t, 1 << number) for number, t in enumerate(texts) if t is not None)
            view = _view(module, places, resources, everybody)
            self._alone |= view.alone
            for number, text in enumerate(texts):
                names[number] += (view.names[text] if text is not None else None,)
                # Whose label lacks a part is refused whatever is asked.
                self._meets[number] &= view.meets[text] if text is not None else 0
        numbers: dict[Hashable, int] = {}
        self._names = [numbers.setdefault(name, len(numbers)) for name in names]
        self._called = [0] * len(numbers)
        for number, name in enumerate(self._names):
            self._called[name] |= 1 << number

    def cells(self, one: int) -> Iterator[tuple[Hashable, int]]:
        """Yield everybody in cells, each with a key: of equal keys, the first thing's answers are
        the same, in the same direction."""
        everybody = (1 << len(self._kinds)) - 1
        alone = everybody if self._alone >> one & 1 else self._alone
        for other in each(alone):
            yield ("alone", one, other), 1 << other
        meets = self._meets[one] & ~alone
        for kind, held in self._of_kind.items():
            if refused := held & ~(meets | alone):
                yield ("refused", self._kinds[one], kind), refused
        own = self._names[one]
        while meets:
            name = self._names[(meets & -meets).bit_length() - 1]
            yield (own, name), meets & self._called[name]
            meets &= ~self._called[name]


def _view(module: SecurityModule, places: Places, resources: int, everybody: int) -> _View:
    if isinstance(module, AcmModule):
        return _acm(module.policy, places, resources)
    if isinstance(module, FlaskModule):
        return _flask(module, places, everybody)
    names: dict[str, Hashable] = {text: text for text in places}
    if isinstance(module, DummyModule):  # it asks nothing else of a label
        names = {text: text == PRIVILEGED for text in places}
    return _View(names, dict.fromkeys(places, everybody))


def _acm(policy: AcmPolicy, places: Places, resources: int) -> _View:
    """Labels meet that have a type in common and no wall between them; who they are is the same."""
    domains = {label.name: label for label in policy.labels}
    kept = {RESOURCE_PREFIX + label.name: label for label in policy.resources}
    walls = [frozenset(one.types) for one in policy.conflicts] if policy.cw_types else []
    names: dict[str, Hashable] = {}
    types: dict[str, frozenset[str]] = {}
    sides: dict[str, frozenset[str]] = {}
    for text, held in places.items():
        if text in domains and not text.startswith(RESOURCE_PREFIX) and not held & resources:
            cw = frozenset(domains[text].cw)
            if any(len(cw & wall) > 1 for wall in walls):
                continue  # it can't run for itself where a set has a history, and so on
            names[text], types[text], sides[text] = "domain", frozenset(domains[text].ste), cw
        elif text in kept and text not in domains:
            names[text], types[text] = "resource", frozenset({kept[text].ste})
    bare = {label.name for label in policy.resources}
    odd = [
        held
        for text, held in places.items()
        if text not in names and (text in domains or (held & resources and text in bare))
    ]
    known = reduce(or_, (places[text] for text in types), 0)
    holders, behind = _holders(types, places), _holders(sides, places)
    every_side = [reduce(or_, (behind.get(kind, 0) for kind in wall), 0) for wall in walls]
    meets = {}
    for text, own in types.items():
        row = reduce(or_, (holders[kind] for kind in own), 0) if policy.ste_types else known
        for wall, all_sides in zip(walls, every_side, strict=True):
            for kind in sides.get(text, frozenset()) & wall:
                row &= ~(all_sides & ~behind[kind])
        meets[text] = row
    # What the policy does not know is refused by every question.
    return _View(
        {text: names.get(text, "unknown") for text in places},
        {text: meets.get(text, 0) for text in places},
        reduce(or_, odd, 0),
    )


def _holders(sets: Mapping[str, frozenset[str]], places: Places) -> dict[str, int]:
    return gathered((one, places[text]) for text, held in sets.items() for one in held)


def _flask(module: FlaskModule, places: Places, everybody: int) -> _View:
    """Contexts meet where a rule lets one of them map the other's memory, or one is permissive.

    Constraints, roles and bounds only take away from what the rules say.
    """
    names: dict[str, Hashable] = {text: text for text in places}
    policy, (tclass, permission) = module.policy, ASKED
    known = module.classes.get(tclass)
    if known is None or permission not in known.permissions:
        return _View(names, dict.fromkeys(places, everybody))
    kinds = _types(Contexts(policy).parse, places)
    of_kind = gathered((kind, places[text]) for text, kind in kinds.items())
    holders = gathered(
        (one, held) for kind, held in of_kind.items() for one in values(policy.attributes[kind])
    )
    mapping = known.vector(frozenset({permission}))
    reached: dict[int, int] = {}
    for source, target, value, rule, vector in module.rules_in_force():
        if value == known.value and rule == ALLOW and vector & mapping:
            reached[source] = reached.get(source, 0) | holders.get(target, 0)
            reached[target] = reached.get(target, 0) | holders.get(source, 0)
    loose = reduce(or_, (h for k, h in of_kind.items() if policy.permissive >> k & 1), 0)
    loose |= places.get(SECURITY, 0)
    met = {
        kind: reduce(or_, (reached.get(one, 0) for one in values(policy.attributes[kind])), loose)
        for kind in of_kind
    }
    # What is no context is refused by every question.
    meets = {text: met[kinds[text]] if text in kinds else 0 for text in places}
    return _View(
        names, {text: everybody if places[text] & loose else row for text, row in meets.items()}
    )


def _types(parse: Callable[[str], Context], texts: Iterable[str]) -> dict[str, int]:
    """Return the type of each text that is a context."""
    kinds = {}
    for text in texts:
        with contextlib.suppress(UnknownLabel):
            kinds[text] = parse(text).type
    return kinds
