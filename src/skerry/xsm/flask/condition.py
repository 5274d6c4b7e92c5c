"""Rules that stand under a condition over booleans: found and shown with it, for explanations.

The rule this module keeps: it shows conditions and decides nothing; which rules are in force is
the security server's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from skerry.xsm.flask.model import ALLOW, FlaskPolicy

_RANKS = {"or": 1, "xor": 2, "and": 3, "==": 4, "!=": 4, "not": 5}
_SHOWN = {"or": "||", "xor": "^", "and": "&&", "==": "==", "!=": "!="}
_ATOM = 6

_SHOWN_TERMS = 200
"""Most terms of a condition that is written out."""

_SHOWN_BOOLEANS = 12


class ConditionalRule(msgspec.Struct, frozen=True):
    """An allow rule in one of the two branches of a conditional; `branch` is true in `if`."""

    source: int
    target: int
    vector: int
    expression: tuple[tuple[str, int], ...]
    branch: bool


class ConditionalRules:
    """The allow rules of a policy's conditionals, by class."""

    def __init__(self, policy: FlaskPolicy) -> None:
        self._policy = policy
        self._rules: dict[int, list[ConditionalRule]] = {}
        self._of: dict[tuple[int, int, int], list[ConditionalRule]] = {}
        for conditional in policy.conditionals:
            for branch, rules in ((True, conditional.if_true), (False, conditional.if_false)):
                for source, target, tclass, kind, vector in rules:
                    if kind == ALLOW:
                        rule = ConditionalRule(
                            source, target, vector, conditional.expression, branch
                        )
                        self._rules.setdefault(tclass, []).append(rule)
                        self._of.setdefault((source, target, tclass), []).append(rule)
        self._always: dict[tuple[int, int, int], int] = {}
        for source, target, tclass, kind, vector in policy.rules:
            key = source, target, tclass
            if kind == ALLOW and key in self._of:
                self._always[key] = self._always.get(key, 0) | vector

    def over(self, source: int, target: int, tclass: int, vector: int) -> Iterator[ConditionalRule]:
        """Yield what would give two types some of a vector, in force or not."""
        attributes = self._policy.attributes
        one, two = attributes[source], attributes[target]
        for rule in self._rules.get(tclass, ()):
            if rule.vector & vector and one >> rule.source - 1 & 1 and two >> rule.target - 1 & 1:
                yield rule

    def condition_of(self, source: int, target: int, tclass: int, vector: int) -> str:
        """Return under which condition a rule that is in force gives a vector; "" for none."""
        key = source, target, tclass
        if not vector & ~self._always.get(key, 0):
            return ""
        for rule in self._of.get(key, ()):
            if rule.vector & vector:
                return self.text(rule)
        return ""

    def text(self, rule: ConditionalRule) -> str:
        """Write a rule's condition: `guests_may_share && !locked`."""
        if len(rule.expression) > _SHOWN_TERMS:
            return f"a condition of {len(rule.expression)} terms"
        text, rank = _infix(rule.expression, self._policy)
        if rule.branch:
            return text
        return f"!{text}" if rank >= _RANKS["not"] else f"!({text})"

    def states(self, rule: ConditionalRule, booleans: Mapping[int, bool]) -> str:
        """Write how the booleans of a rule's condition are set: `guests_may_share = 0`."""
        named = dict.fromkeys(value for word, value in rule.expression if word == "bool")
        names = self._policy.booleans
        shown = [f"{names[v].name} = {int(booleans[v])}" for v in list(named)[:_SHOWN_BOOLEANS]]
        more = len(named) - len(shown)
        return ", ".join([*shown, *([f"{more} more as they are"] if more else [])])


def _infix(expression: tuple[tuple[str, int], ...], policy: FlaskPolicy) -> tuple[str, int]:
    """Write an expression with as few brackets as needed; with the rank of its last operator."""
    stack: list[tuple[str, int]] = []
    for word, value in expression:
        if word == "bool":
            stack.append((policy.booleans[value].name, _ATOM))
        elif word == "not":
            stack.append((f"!{_bracket(stack.pop(), _RANKS['not'])}", _RANKS["not"]))
        else:
            right, left = stack.pop(), stack.pop()
            rank = _RANKS[word]
            joined = f"{_bracket(left, rank)} {_SHOWN[word]} {_bracket(right, rank + 1)}"
            stack.append((joined, rank))
    return stack.pop()


def _bracket(part: tuple[str, int], rank: int) -> str:
    text, own = part
    return f"({text})" if own < rank else text
