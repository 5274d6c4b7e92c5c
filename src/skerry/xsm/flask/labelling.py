"""The context of a new or relabelled object: transitions of type, role and range.

Sources: `security_compute_sid` and `mls_compute_sid` of Linux for the flavour `selinux` (libsepol
does the same but for `default_user`, `default_role` and `default_type`, which it does not look
at, and for sockets, to which Linux gives role, type and range of their maker), and of Xen, which
has no defaults and knows no transitions by name.

The rule this module keeps: a context that the policy does not allow is never given to anything.
"""

from __future__ import annotations

from typing import Literal

from skerry.errors import Denied
from skerry.xsm.flask.context import Contexts
from skerry.xsm.flask.model import NO_RANGE, OBJECT_ROLE, Context, Level, PolicyClass, Range
from skerry.xsm.flask.server import TYPE_RULE_KINDS, SecurityServer

Kind = Literal["transition", "member", "change"]

_SOURCE, _TARGET = 1, 2


class Labelling:
    """Answers what a new object is labelled, by one policy."""

    def __init__(self, server: SecurityServer, contexts: Contexts) -> None:
        self._server = server
        self.policy = server.policy
        self._contexts = contexts
        self._xen = server.policy.flavour == "xen"
        self._by_name = {
            (t.source, t.target, t.tclass, t.name): t.new_type
            for t in reversed(server.policy.file_transitions)  # the first of two is Linux's
        }
        self._roles: dict[tuple[int, int, int], int] = {}
        for rule in server.policy.role_transitions:
            # Xen, and files too old to name a class, mean the class of what acts.
            tclass = server.process_class if self._xen else rule.tclass or server.process_class
            self._roles.setdefault((rule.role, rule.type, tclass), rule.new_role)

    def new_context(
        self, source: Context, target: Context, tclass: PolicyClass, kind: Kind, name: str = ""
    ) -> Context:
        """Return the context of what `source` makes toward `target`.

        Raises `Denied` if the policy's rules lead to a context that the policy does not allow.
        """
        acts = self._acts(tclass)
        defaults = PolicyClass("", 0, ()) if self._xen else tclass
        user, role, new = source.user, OBJECT_ROLE, target.type
        if kind == "member" or defaults.default_user == _TARGET:
            user = target.user
        if defaults.default_role:
            role = source.role if defaults.default_role == _SOURCE else target.role
        elif acts:
            role = source.role
        if defaults.default_type == _SOURCE or (acts and not defaults.default_type):
            new = source.type
        key = source.type, target.type, tclass.value
        ruled = self._server.new_type(*key, TYPE_RULE_KINDS[kind])
        if kind == "transition":
            if name:
                ruled = self._by_name.get((*key, name), ruled)
            role = self._roles.get((source.role, target.type, tclass.value), role)
        span = self._range(source, target, tclass, kind) if self.policy.mls else NO_RANGE
        context = Context(user, role, ruled or new, span)
        problem = self._contexts.problem(context)
        if problem:
            text = self._contexts.text(context)
            raise Denied(
                f"the label of a new {tclass.name} would be {text}, which is no label: {problem}",
                fix="mend the policy's transitions",
                code="LABEL-INVALID",
            )
        return context

    def _range(self, source: Context, target: Context, tclass: PolicyClass, kind: Kind) -> Range:
        low = Range(source.range.low, source.range.low)
        if kind == "member":
            return low
        if kind == "transition":
            key = source.type, target.type, tclass.value
            ruled = self.policy.range_transitions.get(key)
            if ruled is not None:
                return ruled
            wanted = 0 if self._xen else tclass.default_range
            if wanted == 7:
                return _common(source.range, target.range)
            if wanted:
                side = source.range if wanted <= 3 else target.range
                first = side.high if wanted % 3 == 2 else side.low
                return side if wanted % 3 == 0 else Range(first, first)
        return source.range if self._acts(tclass) else low

    def _acts(self, tclass: PolicyClass) -> bool:
        """Tell whether things of a class act for their maker: processes, domains, sockets."""
        if tclass.value == self._server.process_class:
            return True
        return not self._xen and tclass.name.endswith("socket")


def _common(one: Range, two: Range) -> Range:
    """Return the greatest lower and least upper bounds (`glblub`). Raises `Denied` if disjoint."""
    low = max(one.low.sensitivity, two.low.sensitivity)
    high = min(one.high.sensitivity, two.high.sensitivity)
    if high < low:
        raise Denied("the two ranges have no level in common", code="LABEL-INVALID")
    return Range(
        Level(low, one.low.categories & two.low.categories),
        Level(high, one.high.categories & two.high.categories),
    )
