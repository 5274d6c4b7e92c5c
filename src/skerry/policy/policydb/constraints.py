"""The constraints of a class: postfix expressions over the two or three contexts.

The rule this module keeps: an expression that is returned can be evaluated with a stack that
neither underflows nor grows past the depth Linux and Xen allow, and leaves one truth value; and
evaluating it takes neither long nor deep recursion.
"""

from __future__ import annotations

from typing import Literal

from skerry.policy.policydb.cursor import Cursor
from skerry.xsm.flask.model import Constraint, Term

MAX_DEPTH = 5
"""Deepest stack of an expression; Linux and Xen refuse deeper ones."""

MAX_TERMS = 16_384
"""Most terms of all constraints of a policy; Debian's SELinux policy has 1,611. More is an error,
since each decision may have to go through all of its class."""

MAX_NESTING = 64
"""Deepest nesting of `not`, `and` and `or` in one another; a deeper expression is an error."""

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
    cursor.within(count, 1, MAX_TERMS, "number of a constraint's terms")
    stack: list[tuple[str, int]] = []  # of what is joined there, and how deep it is nested
    terms: list[Term] = []
    for _ in range(count):
        term = _term(cursor, version, third)
        terms.append(term)
        needed = {"not": 1, "and": 2, "or": 2}.get(term.kind, 0)
        if len(stack) < needed or len(stack) - needed >= MAX_DEPTH:
            raise cursor.fail("a constraint's expression does not add up", start)
        stack.append(_joined(term.kind, [stack.pop() for _ in range(needed)]))
        if stack[-1][1] > MAX_NESTING:
            raise cursor.fail(f"a constraint is nested deeper than {MAX_NESTING}", start)
    if len(stack) != 1:
        raise cursor.fail("a constraint's expression does not add up", start)
    return Constraint(vector, tuple(terms))


def _joined(kind: str, parts: list[tuple[str, int]]) -> tuple[str, int]:
    """Return a term over others and its depth: `a or b or c` is one step, like `a or b`."""
    deep = (depth + (inner != kind or kind == "not") for inner, depth in parts)
    return kind, max(deep, default=0)


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
