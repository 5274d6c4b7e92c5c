"""The security server once more, as slowly and plainly as possible.

An oracle where libsepol is none: type bounds as Xen checks them, and the labels of new objects
with all that Linux looks at. Written from what the kernels document and do, not from our server;
it shares with it the model that the reader makes, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

from skerry.xsm.flask.model import (
    Constraint,
    Context,
    FlaskPolicy,
    Level,
    Range,
    Term,
    TeRule,
)

_ALLOW, _AUDITALLOW, _AUDITDENY = 1, 2, 4
_KINDS = {"transition": 16, "member": 32, "change": 64}


def _has(bits: int, value: int) -> bool:
    return bits & (1 << (value - 1)) != 0


class Naive:
    """Answers by going through all rules of a policy, one by one."""

    def __init__(self, policy: FlaskPolicy, booleans: Mapping[int, bool] | None = None) -> None:
        self.policy = policy
        states = {b.value: b.state for b in policy.booleans.values()} | dict(booleans or {})
        self.plain = list(policy.rules)
        self.conditional: list[TeRule] = []
        for conditional in policy.conditionals:
            truth = _postfix(conditional.expression, states)
            self.conditional += conditional.if_true if truth else conditional.if_false
        actor = "domain" if policy.flavour == "xen" else "process"
        self.actor = next((c.value for c in policy.classes.values() if c.name == actor), 0)

    def allowed(self, source: Context, target: Context, tclass: int, flavour: str) -> int:
        """Return the permissions that are allowed, with the bounds of Linux or of Xen."""
        vector, _, _ = self.rules(source, target, tclass)
        item = self.policy.classes[tclass]
        for constraint in item.constraints:
            if not holds(self.policy, constraint, source, target, None):
                vector &= ~constraint.permissions
        if tclass == self.actor and source.role != target.role:
            change = (source.role, target.role)
            if change not in self.policy.role_allows:
                names = ("transition",) if self.policy.flavour == "xen" else _MOVES
                for bit, name in enumerate(item.permissions):
                    if name in names:
                        vector &= ~(1 << bit)
        bounds = self._xen_bounds if flavour == "xen" else self._linux_bounds
        return bounds(vector, source, target, tclass)

    def rules(self, source: Context, target: Context, tclass: int) -> tuple[int, int, int]:
        """Return what the rules in force allow, audit and do not audit."""
        ones = self.policy.attributes[source.type]
        twos = self.policy.attributes[target.type]
        allow = audit = silent = 0
        for one, two, ruled, kind, datum in self.plain + self.conditional:
            if ruled == tclass and _has(ones, one) and _has(twos, two):
                if kind == _ALLOW:
                    allow |= datum
                elif kind == _AUDITALLOW:
                    audit |= datum
                elif kind == _AUDITDENY:
                    silent |= ~datum & 0xFFFFFFFF
        return allow, audit, silent

    def _linux_bounds(self, vector: int, source: Context, target: Context, tclass: int) -> int:
        parent = self.policy.types[source.type].bounds
        if not parent:
            return vector
        over = self.policy.types[target.type].bounds or target.type
        return vector & self.allowed(_as(source, parent), _as(target, over), tclass, "selinux")

    def _xen_bounds(self, vector: int, source: Context, target: Context, tclass: int) -> int:
        parent = self.policy.types[source.type].bounds
        over = self.policy.types[target.type].bounds
        masked = 0
        if parent:
            masked = vector & ~self.allowed(_as(source, parent), target, tclass, "xen")
            if masked == 0:
                return vector
        if over:
            masked = vector & ~self.allowed(source, _as(target, over), tclass, "xen")
            if masked == 0:
                return vector
        if parent and over:
            bound = self.allowed(_as(source, parent), _as(target, over), tclass, "xen")
            masked = vector & ~bound
        return vector & ~masked

    def new_context(
        self, source: Context, target: Context, tclass: int, kind: str, name: str = ""
    ) -> Context | None:
        """Return the context of a new object, None if the policy does not allow what results."""
        policy, item = self.policy, self.policy.classes[tclass]
        linux = policy.flavour == "selinux"
        acts = tclass == self.actor or (linux and item.name.endswith("socket"))
        user = target.user if kind == "member" else source.user
        role = source.role if acts else 1
        new = source.type if acts else target.type
        if linux:
            if kind != "member" and item.default_user == 2:
                user = target.user
            role = (role, source.role, target.role)[item.default_role]
            new = (new, source.type, target.type)[item.default_type]
        for rules in (self.conditional, self.plain):  # what is not conditional wins
            for one, two, ruled, what, datum in rules:
                if (one, two, ruled, what) == (source.type, target.type, tclass, _KINDS[kind]):
                    new = datum
        if kind == "transition":
            if linux and name:
                for named in policy.file_transitions:
                    key = (named.source, named.target, named.tclass, named.name)
                    if key == (source.type, target.type, tclass, name):
                        new = named.new_type
            for move in policy.role_transitions:
                same = (move.role, move.type) == (source.role, target.type)
                if same and tclass == ((move.tclass or self.actor) if linux else self.actor):
                    role = move.new_role
                    break
        span = self._range(source, target, tclass, kind, acts) if policy.mls else source.range
        if span is None:
            return None
        made = Context(user, role, new, span)
        return made if valid(policy, made) else None

    def _range(
        self, source: Context, target: Context, tclass: int, kind: str, acts: bool
    ) -> Range | None:
        one, two = source.range, target.range
        if kind == "transition":
            key = (source.type, target.type, tclass)
            if key in self.policy.range_transitions:
                return self.policy.range_transitions[key]
            wanted = self.policy.classes[tclass].default_range
            if self.policy.flavour == "selinux" and wanted:
                both = {
                    1: (one.low, one.low),
                    2: (one.high, one.high),
                    3: (one.low, one.high),
                    4: (two.low, two.low),
                    5: (two.high, two.high),
                    6: (two.low, two.high),
                }.get(wanted)
                return Range(*both) if both else _shared(one, two)
        if kind == "member" or not acts:
            return Range(one.low, one.low)
        return one

    def may_change(self, old: Context, new: Context, task: Context, tclass: int) -> bool:
        """Tell whether every validatetrans of a class holds."""
        every = self.policy.classes[tclass].validatetrans
        return all(holds(self.policy, one, old, new, task) for one in every)


_MOVES = ("transition", "dyntransition")


def _shared(one: Range, two: Range) -> Range | None:
    if one.high.sensitivity < two.low.sensitivity or two.high.sensitivity < one.low.sensitivity:
        return None
    low = max(one.low.sensitivity, two.low.sensitivity)
    high = min(one.high.sensitivity, two.high.sensitivity)
    return Range(
        Level(low, one.low.categories & two.low.categories),
        Level(high, one.high.categories & two.high.categories),
    )


def _as(context: Context, kind: int) -> Context:
    return Context(context.user, context.role, kind, context.range)


def _postfix(expression: tuple[tuple[str, int], ...], states: Mapping[int, bool]) -> bool:
    stack: list[bool] = []
    for word, value in expression:
        if word == "bool":
            stack.append(states[value])
        elif word == "not":
            stack[-1] = not stack[-1]
        else:
            right = stack.pop()
            left = stack.pop()
            table = {
                "and": left and right,
                "or": left or right,
                "xor": left != right,
                "==": left == right,
                "!=": left != right,
            }
            stack.append(table[word])
    assert len(stack) == 1
    return stack[0]


def holds(
    policy: FlaskPolicy, constraint: Constraint, one: Context, two: Context, three: Context | None
) -> bool:
    """Evaluate a constraint over two contexts, or three (validatetrans)."""
    stack: list[bool] = []
    for term in constraint.terms:
        if term.kind == "not":
            stack.append(not stack.pop())
        elif term.kind in ("and", "or"):
            right, left = stack.pop(), stack.pop()
            stack.append((left and right) if term.kind == "and" else (left or right))
        else:
            stack.append(_term(policy, term, one, two, three))
    assert len(stack) == 1
    return stack[0]


def _attribute(side: str, one: Context, two: Context, three: Context | None) -> int:
    context = {"1": one, "2": two, "3": three}[side[1]]
    assert context is not None
    return {"u": context.user, "r": context.role, "t": context.type}[side[0]]


def _term(
    policy: FlaskPolicy, term: Term, one: Context, two: Context, three: Context | None
) -> bool:
    if term.kind == "names":
        named = _has(term.values, _attribute(term.left, one, two, three))
        return named if term.operator == "==" else not named
    if term.left[0] in "lh":
        levels = {"l1": one.range.low, "h1": one.range.high}
        levels |= {"l2": two.range.low, "h2": two.range.high}
        a, b = levels[term.left], levels[term.right]
        over, under = _dominates(a, b), _dominates(b, a)
        same = over and under
    else:
        left = _attribute(term.left, one, two, three)
        right = _attribute(term.right, one, two, three)
        same = left == right
        over = under = False
        if term.left[0] == "r":
            over = _has(policy.roles[left].dominates, right)
            under = _has(policy.roles[right].dominates, left)
    table = {"==": same, "!=": not same, "dom": over, "domby": under}
    return table.get(term.operator, not over and not under)


def _dominates(one: Level, two: Level) -> bool:
    return one.sensitivity >= two.sensitivity and one.categories | two.categories == one.categories


def valid(policy: FlaskPolicy, context: Context) -> bool:
    """Tell whether a policy allows a context."""
    user, role = policy.users[context.user], policy.roles[context.role]
    ordinary = context.role != 1
    if ordinary and not (_has(role.types, context.type) and _has(user.roles, context.role)):
        return False
    if not policy.mls:
        return True
    span = context.range
    for level in (span.low, span.high):
        found = policy.sensitivities.get(level.sensitivity)
        if found is None or level.categories & ~found.level.categories:
            return False
    if not _dominates(span.high, span.low):
        return False
    within = _dominates(span.low, user.range.low) and _dominates(user.range.high, span.high)
    return within or not ordinary
