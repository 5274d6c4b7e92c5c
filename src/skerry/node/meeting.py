"""Whom each thing of a system may send to, for the checker of certificates.

The rule this module keeps: it shares no code with what makes graphs (`skerry.node.alike`), so that
a mistake there does not repeat itself here. A pair is not asked only where the rules of a policy,
as they are written, leave it nothing in common, or a wall stands between; and it is not asked again
only where both sides are what those of another pair were to every policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from skerry.errors import UnknownLabel
from skerry.label import Label
from skerry.xsm.acm.model import AcmPolicy
from skerry.xsm.acm.module import RESOURCE_PREFIX, AcmModule
from skerry.xsm.dummy import PRIVILEGED, DummyModule
from skerry.xsm.flask.context import Contexts
from skerry.xsm.flask.model import ALLOW, values
from skerry.xsm.flask.module import SECURITY, FlaskModule
from skerry.xsm.module import SecurityModule
from skerry.xsm.stack import Stack

_Held = TypeVar("_Held", str, int)

_Sides = tuple[list[int], list[str]]
"""For each thing the set of those that it could meet, and what it counts as, "?" for itself."""


def reached(
    stack: Stack, things: Sequence[tuple[Label, str]], sends: Callable[[int, int], bool]
) -> list[int]:
    """Return for each thing, a label and a kind, the set of those that it may send to.

    `sends` asks a pair of them plainly; every pair with an operator is asked, and with whatever
    counts as nothing but itself.
    """
    met, sorts = _met(stack, things)
    single = _bits(n for n, sort in enumerate(sorts) if sort[0] == "operator" or "?" in sort[1:])
    alike: dict[tuple[str, ...], int] = {}
    for number, sort in enumerate(sorts):
        alike[sort] = alike.get(sort, 0) | 1 << number
    known: dict[tuple[tuple[str, ...], tuple[str, ...]], bool] = {}
    found = []
    for one, sort in enumerate(sorts):
        row = 0
        asked = (1 << len(things)) - 1 if single >> one & 1 else single
        left = met[one] & ~asked
        while asked:
            low = asked & -asked
            asked ^= low
            row |= low if sends(one, low.bit_length() - 1) else 0
        while left:
            other = (left & -left).bit_length() - 1
            pair = sort, sorts[other]
            if pair not in known:
                known[pair] = sends(one, other)
            row |= left & alike[sorts[other]] if known[pair] else 0
            left &= ~alike[sorts[other]]
        found.append(row)
    return found


def _met(
    stack: Stack, things: Sequence[tuple[Label, str]]
) -> tuple[list[int], list[tuple[str, ...]]]:
    met = [(1 << len(things)) - 1] * len(things)
    sorts: list[tuple[str, ...]] = [(kind,) for _, kind in things]
    uses = [kind in ("disk", "resource") for _, kind in things]
    for module in stack.modules:
        texts = [dict(label.parts).get(module.name, "") for label, _ in things]
        sets, names = _sides(module, texts, uses)
        met = [one & two for one, two in zip(met, sets, strict=True)]
        sorts = [(*sort, name) for sort, name in zip(sorts, names, strict=True)]
    return met, sorts


def _sides(module: SecurityModule, texts: Sequence[str], uses: Sequence[bool]) -> _Sides:
    if isinstance(module, AcmModule):
        return _acm(module.policy, texts, uses)
    if isinstance(module, FlaskModule):
        return _flask(module, texts), list(texts)
    everybody = [(1 << len(texts)) - 1] * len(texts)
    if isinstance(module, DummyModule):
        plain = [text if text in ("", PRIVILEGED) else "other" for text in texts]
        return everybody, plain
    return everybody, list(texts)


def _acm(policy: AcmPolicy, texts: Sequence[str], uses: Sequence[bool]) -> _Sides:
    """Go by what a label has; one that is known in two ways counts as nothing but itself."""
    labels = {label.name: label for label in policy.labels}
    resources = {label.name: label.ste for label in policy.resources}
    walls = [set(one.types) for one in policy.conflicts] if policy.cw_types else []
    types: list[set[str]] = []
    colours: list[set[str]] = []
    names = []
    for text, used in zip(texts, uses, strict=True):
        name = text.removeprefix(RESOURCE_PREFIX)
        marked = name != text
        kept = resources.get(name) if used or marked else None
        label = labels.get(text)
        own = set(label.cw) if label and not used else set()
        types.append({*(label.ste if label else ()), *([kept] if kept is not None else [])})
        colours.append(own)
        doubtful = any(len(own & wall) > 1 for wall in walls)
        doubtful |= used or marked if label else kept is not None and not marked
        sort = "domain" if label else "resource" if kept is not None else ""
        names.append("?" if doubtful else sort)
    known = _bits(n for n, name in enumerate(names) if name)
    having, coloured = _holding(types), _holding(colours)
    behind = [_join(coloured.get(kind, 0) for kind in wall) for wall in walls]
    sets = []
    for number, kinds in enumerate(types):
        row = known if known >> number & 1 else 0
        if policy.ste_types:
            row &= _join(having[kind] for kind in kinds)
        for wall, theirs in zip(walls, behind, strict=True):
            if mine := colours[number] & wall:
                row &= ~theirs | _join(coloured[kind] for kind in mine)
        sets.append(row)
    return sets, names


def _flask(module: FlaskModule, texts: Sequence[str]) -> list[int]:
    """Go by the rules that let somebody map memory, whichever of a pair that is."""
    everybody, policy = (1 << len(texts)) - 1, module.policy
    grant = policy.class_named("grant")
    if grant is None or "map_read" not in grant.permissions:
        return [everybody] * len(texts)
    mapping = grant.vector(frozenset({"map_read"}))
    linked: dict[int, set[int]] = {}
    for source, target, tclass, kind, vector in module.rules_in_force():
        if tclass == grant.value and kind == ALLOW and vector & mapping:
            linked.setdefault(source, set()).add(target)
            linked.setdefault(target, set()).add(source)
    contexts = Contexts(policy)
    types = [_type(contexts, text) for text in texts]
    held = [set(values(policy.attributes[one])) if one else set() for one in types]
    holders = _holding(held)
    free = [bool(one) and bool(policy.permissive >> one & 1) for one in types]
    free = [one or text == SECURITY for one, text in zip(free, texts, strict=True)]
    always = _bits(n for n, one in enumerate(free) if one)
    rows: dict[int, int] = {}
    for one, mine in zip(types, held, strict=True):
        if one not in rows:
            others = set[int]().union(*(linked.get(each, ()) for each in mine))
            rows[one] = _join(holders.get(each, 0) for each in others)
    return [
        everybody if loose else rows[one] | always if one else 0
        for one, loose in zip(types, free, strict=True)
    ]


def _type(contexts: Contexts, text: str) -> int:
    """Return the value of a context's type, 0 for what is no context."""
    try:
        return contexts.parse(text).type
    except UnknownLabel:
        return 0


def _holding(sets: Sequence[set[_Held]]) -> dict[_Held, int]:
    found: dict[_Held, int] = {}
    for number, held in enumerate(sets):
        for one in held:
            found[one] = found.get(one, 0) | 1 << number
    return found


def _bits(numbers: Iterable[int]) -> int:
    return sum(1 << number for number in numbers)


def _join(sets: Iterable[int]) -> int:
    found = 0
    for one in sets:
        found |= one
    return found
