"""Why Flask allowed or denied: the rule, the constraint, the roles, the bounds.

The rule this module keeps: the step that is named is the step at which the security server's own
computation lost the permission; nothing is worked out a second way.
"""

from __future__ import annotations

from itertools import islice

from skerry.xsm.flask.condition import ConditionalRules
from skerry.xsm.flask.constraint import bindings, infix
from skerry.xsm.flask.context import Contexts
from skerry.xsm.flask.model import Context, PolicyClass
from skerry.xsm.flask.server import SecurityServer
from skerry.xsm.request import Answer, Rule

MODULE = "flask"

MAX_EXPRESSION_TEXT = 4096
"""Longest expression of a constraint in a reason, in characters; the rest is cut off."""

_NEAREST = 2
"""How many rules that come nearest a denial shows."""


class Reasons:
    """Words the answers of one security server."""

    def __init__(self, server: SecurityServer, contexts: Contexts) -> None:
        self._server = server
        self._contexts = contexts
        self._policy = server.policy
        self._found: ConditionalRules | None = None

    def allowed(
        self, source: Context, target: Context, tclass: PolicyClass, asked: tuple[str, ...]
    ) -> Answer:
        """Name the rules that gave what was asked, one for each permission at most."""
        wanted = tclass.vector(frozenset(asked))
        shown = []
        rules = self._server.granting(source.type, target.type, tclass.value, wanted)
        for one, two, given in rules:
            if given & wanted:
                shown.append(self._in_force(one, two, tclass, given & wanted))
                wanted &= ~given
            if not wanted:
                break
        reason = (
            f"{self._policy.type_name(source.type)} may {', '.join(asked)}"
            f" {self._policy.type_name(target.type)} ({tclass.name})"
        )
        rule = Rule(" ".join(shown), self._policy.file)
        return Answer(MODULE, True, "TE-ALLOWED", reason, rule, asked)

    def denied(
        self,
        source: Context,
        target: Context,
        tclass: PolicyClass,
        asked: tuple[str, ...],
        granted: tuple[str, ...],
    ) -> Answer:
        """Name the step at which the first refused permission was lost."""
        lost = next(name for name in asked if name not in granted)
        vector = tclass.vector(frozenset({lost}))
        steps = self._server.steps(source, target, tclass.value)
        if not steps.by_rules & vector:
            code, reason, text = self._no_rule(source, target, tclass, lost, vector)
        elif not steps.by_constraints & vector:
            code, reason, text = self._constraint(source, target, tclass, lost, vector)
        elif not steps.by_roles & vector:
            one, two = (self._policy.roles[side.role].name for side in (source, target))
            code, text = "ROLE-NOT-ALLOWED", f"no rule: allow {one} {two};"
            reason = f"the role {one} may not change to {two}"
        else:
            code, reason, text = self._bounds(source, target, tclass, lost)
        return Answer(MODULE, False, code, reason, Rule(text, self._policy.file), granted)

    def _no_rule(
        self, source: Context, target: Context, tclass: PolicyClass, lost: str, vector: int
    ) -> tuple[str, str, str]:
        one, two = self._policy.type_name(source.type), self._policy.type_name(target.type)
        what = f"allows {one} {two}:{tclass.name} {lost}"
        conditionals = self._conditionals()
        switched = next(conditionals.over(source.type, target.type, tclass.value, vector), None)
        if switched:
            states = conditionals.states(switched, self._server.booleans)
            rule = self._rule(switched.source, switched.target, tclass, switched.vector & vector)
            text = f"if ({conditionals.text(switched)}) {{ {rule} }}"
            return "TE-NO-RULE", f"a rule {what}, but not while {states}", text
        reason = f"no rule {what}"
        near = self._server.near(source.type, target.type, tclass.value, vector)
        shown = [self._rule(a, b, tclass, given) for a, b, given in islice(near, _NEAREST)]
        text = f"nearest: {' '.join(shown)}" if shown else "no rule comes near"
        return "TE-NO-RULE", reason, text

    def _constraint(
        self, source: Context, target: Context, tclass: PolicyClass, lost: str, vector: int
    ) -> tuple[str, str, str]:
        constraint = self._server.violated(source, target, tclass.value, vector)
        if constraint is None:
            return "CONSTRAINT-FALSE", f"a constraint forbids {tclass.name} {lost}", ""
        names = " ".join(tclass.names(constraint.permissions))
        word = "mlsconstrain" if constraint.mls else "constrain"
        expression = infix(constraint, self._policy)
        if len(expression) > MAX_EXPRESSION_TEXT:
            expression = f"{expression[:MAX_EXPRESSION_TEXT]} ..."
        text = f"{word} {tclass.name} {{ {names} }} ({expression});"
        values = bindings(constraint, self._policy, self._contexts, source, target)
        return "CONSTRAINT-FALSE", f"a constraint on {tclass.name} {lost} is false: {values}", text

    def _bounds(
        self, source: Context, target: Context, tclass: PolicyClass, lost: str
    ) -> tuple[str, str, str]:
        types = self._policy.types
        bounded = [side for side in (source.type, target.type) if types[side].bounds]
        text = " ".join(
            f"typebounds {self._policy.type_name(types[side].bounds)} {types[side].name};"
            for side in dict.fromkeys(bounded)
        )
        names = " and ".join(dict.fromkeys(types[side].name for side in bounded))
        reason = f"the bounds of {names} do not have {tclass.name} {lost}"
        return "TYPE-BOUNDS", reason, text

    def _conditionals(self) -> ConditionalRules:
        if self._found is None:
            self._found = ConditionalRules(self._policy)
        return self._found

    def _in_force(self, source: int, target: int, tclass: PolicyClass, vector: int) -> str:
        """Write a rule that is in force, with its condition if it has one."""
        rule = self._rule(source, target, tclass, vector)
        condition = self._conditionals().condition_of(source, target, tclass.value, vector)
        return f"if ({condition}) {{ {rule} }}" if condition else rule

    def _rule(self, source: int, target: int, tclass: PolicyClass, vector: int) -> str:
        one, two = self._policy.type_name(source), self._policy.type_name(target)
        return f"allow {one} {two}:{tclass.name} {{ {' '.join(tclass.names(vector))} }};"
