"""The constraints of a class: postfix expressions over the two or three contexts.

The rule this module keeps: an expression that is returned can be evaluated with a stack that
neither underflows nor grows past the depth Linux and Xen allow, and leaves one truth value.
"""

from __future__ import annotations

from typing import Literal

from skerry.policy.policydb.cursor import Cursor
from skerry.xsm.flask.model import Constraint, Term

MAX_DEPTH = 5
"""Deepest stack of an expression; Linux and Xen refuse deeper ones."""

_TYPE_NAMES_VERSION = 29

_LOGIC: dict[int, Literal["not", "and", "or"]] = {1: "not", 2: "and", 3: "or"}
_PAIR, _NAMES = 4, 5
_Operator = Literal["==", "!=", "dom", "domby", "incomp"]
_OPERATORS: dict[int, _Operator] = {1: "==", 2: "!=", 3: "dom", 4: "domby", 5: "incomp"}
_PAIRS = {
    1: ("u1", "u2"),
    2: ("r1", "r2"),
    4: ("t1", "t2"),
    32: ("l1", "l2"),
    64: ("l1", "h2"),
    128: ("h1", "l2"),
    256: ("h1", "h2"),
    512: ("l1", "h1"),
    1024: ("l2", "h2"),
}
_SIDES = {
    kind | side: letter + number
    for kind, letter in ((1, "u"), (2, "r"), (4, "t"))
    for side, number in ((0, "1"), (8, "2"), (16, "3"))
}


def read_constraints(
    cursor: Cursor, count: int, version: int, permissions: int, third: bool
) -> tuple[Constraint, ...]:
    """Read constraints; `third` says whether they may name the third context (validatetrans)."""
    cursor.check_count(count, 8, cursor.offset)
    return tuple(_constraint(cursor, version, permissions, third) for _ in range(count))


def _constraint(cursor: Cursor, version: int, permissions: int, third: bool) -> Constraint:
    start = cursor.offset
    vector, count = cursor.u32s(2)
    if not third and vector & ~permissions:
        raise cursor.fail("a constraint names a permission that the class lacks", start)
    cursor.check_count(count, 12, start + 4)
    depth = 0
    terms: list[Term] = []
    for _ in range(count):
        term = _term(cursor, version, third)
        terms.append(term)
        needed, change = {"not": (1, 0), "and": (2, -1), "or": (2, -1)}.get(term.kind, (0, 1))
        if depth < needed or depth + change > MAX_DEPTH:
            raise cursor.fail("a constraint's expression does not add up", start)
        depth += change
    if depth != 1:
        raise cursor.fail("a constraint's expression does not add up", start)
    return Constraint(vector, tuple(terms))


def _term(cursor: Cursor, version: int, third: bool) -> Term:
    start = cursor.offset
    kind, attribute, operation = cursor.u32s(3)
    if kind in _LOGIC:
        return Term(_LOGIC[kind])
    operator = _OPERATORS.get(operation)
    if kind == _PAIR and attribute in _PAIRS and operator:
        left, right = _PAIRS[attribute]
        if operator in ("==", "!=") or left[0] not in "ut":
            return Term("pair", left, operator, right)
    if kind == _NAMES and attribute in _SIDES and operator in ("==", "!="):
        side = _SIDES[attribute]
        if third or side[1] != "3":
            return _names(cursor, version, side, operator)
    raise cursor.fail(f"a constraint has an unknown term {kind}, {attribute}, {operation}", start)


def _names(cursor: Cursor, version: int, side: str, operator: Literal["==", "!="]) -> Term:
    named = cursor.bitmap()
    if version < _TYPE_NAMES_VERSION:
        return Term("names", side, operator, values=named)
    shown, excluded, flags = cursor.bitmap(), cursor.bitmap(), cursor.u32()
    whole = cursor.within(flags, 0, 2, "mark of a type set")
    marks: tuple[Literal["", "*", "~"], ...] = ("", "*", "~")
    return Term("names", side, operator, "", named, shown, excluded, marks[whole])
