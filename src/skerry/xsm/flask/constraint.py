"""Constraints: made into a function once, shown in the policy language's infix form.

The rule this module keeps: what is shown is what was evaluated; both come from the same terms.
"""

from __future__ import annotations

from collections.abc import Callable

from skerry.xsm.flask.context import Contexts
from skerry.xsm.flask.model import Constraint, Context, FlaskPolicy, Level, Term, values

Check = Callable[[Context, Context, Context | None], bool]
"""Whether a constraint holds for the first, second and (validatetrans only) third context."""

_SHOWN_NAMES = 12
"""Most names of a set that an explanation lists; the rest is counted."""


def compile_constraint(constraint: Constraint, policy: FlaskPolicy) -> Check:
    """Return a function that evaluates the constraint."""
    stack: list[Check] = []
    for term in constraint.terms:
        if term.kind == "not":
            stack.append(_negate(stack.pop()))
        elif term.kind in ("and", "or"):
            right, left = stack.pop(), stack.pop()
            stack.append(_both(left, right) if term.kind == "and" else _either(left, right))
        elif term.kind == "names":
            stack.append(_named(term))
        else:
            stack.append(_pair(term, policy))
    return stack.pop()


def _negate(inner: Check) -> Check:
    return lambda one, two, three: not inner(one, two, three)


def _both(left: Check, right: Check) -> Check:
    return lambda one, two, three: left(one, two, three) and right(one, two, three)


def _either(left: Check, right: Check) -> Check:
    return lambda one, two, three: left(one, two, three) or right(one, two, three)


def _named(term: Term) -> Check:
    value, wanted, named = _value(term.left), term.operator == "==", term.values

    def check(one: Context, two: Context, three: Context | None) -> bool:
        return bool(named >> value(one, two, three) - 1 & 1) is wanted

    return check


def _pair(term: Term, policy: FlaskPolicy) -> Check:
    if term.left[0] in "lh":
        return _levels(term)
    left, right, operator = _value(term.left), _value(term.right), term.operator
    if operator == "==":
        return lambda one, two, three: left(one, two, three) == right(one, two, three)
    if operator == "!=":
        return lambda one, two, three: left(one, two, three) != right(one, two, three)
    roles = policy.roles

    def dominates(one: Context, two: Context, three: Context | None) -> bool:
        return bool(roles[one.role].dominates >> two.role - 1 & 1)

    def dominated(one: Context, two: Context, three: Context | None) -> bool:
        return bool(roles[two.role].dominates >> one.role - 1 & 1)

    if operator == "dom":
        return dominates
    if operator == "domby":
        return dominated
    return _negate(_either(dominates, dominated))


def _levels(term: Term) -> Check:
    left, right, operator = _level(term.left), _level(term.right), term.operator

    def compare(one: Context, two: Context, three: Context | None) -> bool:
        a, b = left(one, two), right(one, two)
        if operator == "==":
            return a == b
        if operator == "!=":
            return a != b
        if operator == "dom":
            return a.dominates(b)
        if operator == "domby":
            return b.dominates(a)
        return not a.dominates(b) and not b.dominates(a)

    return compare


def _level(side: str) -> Callable[[Context, Context], Level]:
    choices: dict[str, Callable[[Context, Context], Level]] = {
        "l1": lambda one, two: one.range.low,
        "h1": lambda one, two: one.range.high,
        "l2": lambda one, two: two.range.low,
        "h2": lambda one, two: two.range.high,
    }
    return choices[side]


def _value(side: str) -> Callable[[Context, Context, Context | None], int]:
    def third(context: Context | None) -> Context:
        if context is None:
            raise ValueError("this constraint needs a third context")
        return context

    choices: dict[str, Callable[[Context, Context, Context | None], int]] = {
        "u1": lambda one, two, three: one.user,
        "r1": lambda one, two, three: one.role,
        "t1": lambda one, two, three: one.type,
        "u2": lambda one, two, three: two.user,
        "r2": lambda one, two, three: two.role,
        "t2": lambda one, two, three: two.type,
        "u3": lambda one, two, three: third(three).user,
        "r3": lambda one, two, three: third(three).role,
        "t3": lambda one, two, three: third(three).type,
    }
    return choices[side]


def infix(constraint: Constraint, policy: FlaskPolicy) -> str:
    """Write the expression as the policy language does, with as few brackets as needed."""
    stack: list[tuple[str, int]] = []
    for term in constraint.terms:
        if term.kind == "not":
            stack.append((f"not {_bracket(stack.pop(), 3)}", 3))
        elif term.kind in ("and", "or"):
            rank = 2 if term.kind == "and" else 1
            right, left = stack.pop(), stack.pop()
            joined = f"{_bracket(left, rank)} {term.kind} {_bracket(right, rank)}"
            stack.append((joined, rank))
        elif term.kind == "pair":
            stack.append((f"{term.left} {term.operator} {term.right}", 4))
        else:
            stack.append((f"{term.left} {term.operator} {_set_text(term, policy)}", 4))
    return stack.pop()[0]


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
            written.append(f"{side} = {_name(side[0], _value(side)(one, two, None), policy)}")
    return ", ".join(written)


def _bracket(part: tuple[str, int], rank: int) -> str:
    text, own = part
    return f"({text})" if own < rank else text


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
