"""Constraints: made into a function once, shown in the policy language's infix form.

The rule this module keeps: what is shown is what was evaluated; both come from the same terms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import attrgetter

from skerry.xsm.flask.context import Contexts
from skerry.xsm.flask.model import Constraint, Context, FlaskPolicy, Level, Term, values

Check = Callable[[Context, Context, Context | None], bool]
"""Whether a constraint holds for the first, second and (validatetrans only) third context."""

_SHOWN_NAMES = 12
"""Most names of a set that an explanation lists; the rest is counted."""


def compile_constraint(constraint: Constraint, policy: FlaskPolicy) -> Check:
    """Return a function that evaluates the constraint."""
    stack: list[_Chain] = []
    for term in constraint.terms:
        if term.kind == "not":
            stack.append(("not", [_negate(_joined(stack.pop()))]))
        elif term.kind in ("and", "or"):
            right, left = stack.pop(), stack.pop()
            parts = _parts(left, term.kind)
            parts += _parts(right, term.kind)
            stack.append((term.kind, parts))
        else:
            check = _named(term) if term.kind == "names" else _pair(term, policy)
            stack.append((term.kind, [check]))
    return _joined(stack.pop())


_Chain = tuple[str, list[Check]]
"""A term and its parts: `a or b or c` is one chain, so that a decision goes no deeper for it."""


def _parts(chain: _Chain, kind: str) -> list[Check]:
    return chain[1] if chain[0] == kind else [_joined(chain)]


def _joined(chain: _Chain) -> Check:
    kind, parts = chain
    if len(parts) == 1:
        return parts[0]
    return _every(tuple(parts)) if kind == "and" else _any(tuple(parts))


def _negate(inner: Check) -> Check:
    return lambda one, two, three: not inner(one, two, three)


def _every(parts: tuple[Check, ...]) -> Check:
    def check(one: Context, two: Context, three: Context | None) -> bool:
        for part in parts:  # noqa: SIM110  # a generator would cost more than the parts
            if not part(one, two, three):
                return False
        return True

    return check


def _any(parts: tuple[Check, ...]) -> Check:
    def check(one: Context, two: Context, three: Context | None) -> bool:
        for part in parts:  # noqa: SIM110  # a generator would cost more than the parts
            if part(one, two, three):
                return True
        return False

    return check


def _named(term: Term) -> Check:
    wanted, named = int(term.operator == "=="), term.values
    value, side = attrgetter(_FIELDS[term.left[0]]), term.left[1]
    if side == "1":
        return lambda one, two, three: named >> value(one) - 1 & 1 == wanted
    if side == "2":
        return lambda one, two, three: named >> value(two) - 1 & 1 == wanted
    return lambda one, two, three: named >> value(_third(three)) - 1 & 1 == wanted


def _third(context: Context | None) -> Context:
    if context is None:
        raise ValueError("this constraint needs a third context")
    return context


def _pair(term: Term, policy: FlaskPolicy) -> Check:
    if term.left[0] in "lh":
        return _levels(term)
    operator = term.operator
    if operator == "==":
        return _SAME[term.left[0]]
    if operator == "!=":
        return _negate(_SAME[term.left[0]])
    roles = policy.roles

    def dominates(one: Context, two: Context, three: Context | None) -> bool:
        return bool(roles[one.role].dominates >> two.role - 1 & 1)

    def dominated(one: Context, two: Context, three: Context | None) -> bool:
        return bool(roles[two.role].dominates >> one.role - 1 & 1)

    if operator == "dom":
        return dominates
    if operator == "domby":
        return dominated
    return _negate(_any((dominates, dominated)))


_FIELDS = {"u": "user", "r": "role", "t": "type"}

_SAME: dict[str, Check] = {
    "u": lambda one, two, three: one.user == two.user,
    "r": lambda one, two, three: one.role == two.role,
    "t": lambda one, two, three: one.type == two.type,
}


def _levels(term: Term) -> Check:
    if term.operator == "domby":
        return _dominance(term.right, term.left)
    if term.operator == "dom":
        return _dominance(term.left, term.right)
    if term.operator == "incomp":
        either = _dominance(term.left, term.right), _dominance(term.right, term.left)
        return _negate(_any(either))
    left, right, same = _level(term.left), _level(term.right), term.operator == "=="
    return lambda one, two, three: (left(one, two) == right(one, two)) is same


def _dominance(high: str, low: str) -> Check:
    left, right = _level(high), _level(low)

    def check(one: Context, two: Context, three: Context | None) -> bool:
        a, b = left(one, two), right(one, two)
        # `Level.dominates`, written out: most decisions under MLS come through here.
        return a.sensitivity >= b.sensitivity and not b.categories & ~a.categories

    return check


def _level(side: str) -> Callable[[Context, Context], Level]:
    choices: dict[str, Callable[[Context, Context], Level]] = {
        "l1": lambda one, two: one.range.low,
        "h1": lambda one, two: one.range.high,
        "l2": lambda one, two: two.range.low,
        "h2": lambda one, two: two.range.high,
    }
    return choices[side]


def infix(constraint: Constraint, policy: FlaskPolicy) -> str:
    """Write the expression as the policy language does, with as few brackets as needed."""
    # Pieces are joined once: a text that grew with each term would cost their number squared.
    stack: list[tuple[deque[str], int]] = []
    for term in constraint.terms:
        if term.kind == "not":
            pieces = _bracket(stack.pop(), 3)
            pieces.appendleft("not ")
            stack.append((pieces, 3))
        elif term.kind in ("and", "or"):
            rank = 2 if term.kind == "and" else 1
            right, left = stack.pop(), stack.pop()
            pieces = _bracket(left, rank)
            pieces.append(f" {term.kind} ")
            pieces.extend(_bracket(right, rank))
            stack.append((pieces, rank))
        else:
            right_side = term.right if term.kind == "pair" else _set_text(term, policy)
            stack.append((deque([f"{term.left} {term.operator} {right_side}"]), 4))
    return "".join(stack.pop()[0])


def bindings(
    constraint: Constraint, policy: FlaskPolicy, contexts: Contexts, one: Context, two: Context
) -> str:
    """Write what each side named in the expression stood for: `u1 = system_u, t1 = domU_t`."""
    sides = dict.fromkeys(
        side for term in constraint.terms for side in (term.left, term.right) if side
    )
    written = []
    for side in sides:
        context = one if side[1] == "1" else two
        if side[0] in "lh":
            level = context.range.low if side[0] == "l" else context.range.high
            written.append(f"{side} = {contexts.level_text(level)}")
        else:
            value = getattr(context, _FIELDS[side[0]])
            written.append(f"{side} = {_name(side[0], value, policy)}")
    return ", ".join(written)


def _bracket(part: tuple[deque[str], int], rank: int) -> deque[str]:
    pieces, own = part
    if own < rank:
        pieces.appendleft("(")
        pieces.append(")")
    return pieces


def _set_text(term: Term, policy: FlaskPolicy) -> str:
    if term.left[0] != "t":
        return _names(term.left[0], term.values, policy)
    if term.any == "*" and not term.shown:
        return "*"
    shown = _names("t", term.shown or term.values, policy)
    if term.excluded:
        shown = f"{{ {shown} - {_names('t', term.excluded, policy)} }}"
    return f"~{shown}" if term.any == "~" else shown


def _names(kind: str, named: int, policy: FlaskPolicy) -> str:
    listed = list(values(named))
    if len(listed) == 1:
        return _name(kind, listed[0], policy)
    names = [_name(kind, value, policy) for value in listed[:_SHOWN_NAMES]]
    more = len(listed) - len(names)
    return "{ " + " ".join([*names, *([f"(and {more} more)"] if more else [])]) + " }"


def _name(kind: str, value: int, policy: FlaskPolicy) -> str:
    if kind == "t":
        return policy.type_name(value)
    table = policy.users if kind == "u" else policy.roles
    found = table.get(value)
    return found.name if found else f"#{value}"
