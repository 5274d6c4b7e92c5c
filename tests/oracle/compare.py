"""Random questions about a policy, put to our security server and to libsepol.

Most are drawn from granted and dontaudited pairs, since a uniform draw almost never allows
anything. The draw is made from a seed, so that a mismatch can be repeated.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from skerry.errors import Denied
from skerry.policy.policydb.read import read_policydb
from skerry.xsm.flask.context import Contexts
from skerry.xsm.flask.labelling import Kind, Labelling
from skerry.xsm.flask.model import (
    ALLOW,
    AUDITALLOW,
    AUDITDENY,
    NO_RANGE,
    OBJECT_ROLE,
    VECTORS,
    Context,
    FlaskPolicy,
    Level,
    Range,
    TeRule,
    User,
    values,
)
from skerry.xsm.flask.server import SecurityServer
from tests.oracle.sepol import BOUNDS, CONSTRAINT, RBAC, TE, Sepol, with_booleans

MAX_CONTEXTS = 3_000
"""Most contexts in one run: libsepol searches them one after the other."""

Query = tuple[Context, Context, int]


class Draw:
    """Draws contexts and questions from a policy."""

    def __init__(self, policy: FlaskPolicy, seed: int) -> None:
        self.random = random.Random(seed)
        self.policy = policy
        self.contexts = Contexts(policy)
        self._rules: dict[int, list[TeRule]] = {kind: [] for kind in (ALLOW, AUDITALLOW, AUDITDENY)}
        conditional = (r for c in policy.conditionals for r in (*c.if_true, *c.if_false))
        for rule in (*policy.rules, *conditional):
            if rule[3] & VECTORS:
                self._rules[rule[3]].append(rule)
        self._members: dict[int, list[int]] = {}
        for kind, attributes in policy.attributes.items():
            found = policy.types.get(kind)
            if found and not found.attribute:
                for attribute in values(attributes):
                    self._members.setdefault(attribute, []).append(kind)
        self._types = [t.value for t in policy.types.values() if not t.attribute]
        self._made: dict[int, list[Context]] = {}
        self._count = 0

    def context(self, kind: int) -> Context:
        """Return a context of a type, new or one that was drawn before."""
        known = self._made.setdefault(kind, [])
        if known and (self._count >= MAX_CONTEXTS or self.random.random() < 0.6):
            return self.random.choice(known)
        made = self._make(kind)
        if made not in known:
            known.append(made)
            self._count += 1
        return made

    def _make(self, kind: int) -> Context:
        policy, rand = self.policy, self.random
        users = list(policy.users.values())
        pairs = [
            (user, role)
            for user in users
            for role in values(user.roles)
            if policy.roles[role].types >> kind - 1 & 1
        ]
        if pairs and rand.random() < 0.9:
            user, role = rand.choice(pairs)
        else:
            user, role = rand.choice(users), OBJECT_ROLE
        for _ in range(20):
            made = Context(user.value, role, kind, self._range(user))
            if not self.contexts.problem(made):
                return made
        return Context(user.value, role, kind, user.range)

    def _range(self, user: User) -> Range:
        if not self.policy.mls:
            return NO_RANGE
        low, high = user.range.low, user.range.high
        spare = list(values(high.categories & ~low.categories))
        few = self.random.sample(spare, min(len(spare), self.random.choice((0, 0, 1, 2))))
        more = self.random.sample(spare, min(len(spare), self.random.choice((0, 0, 1, 3))))
        first = sum(1 << value - 1 for value in few) | low.categories
        second = first | sum({1 << value - 1 for value in more})
        if self.random.random() < 0.2:
            second = high.categories
        for value in more:
            second |= 1 << value - 1
        ranks = sorted(self.random.randint(low.sensitivity, high.sensitivity) for _ in range(2))
        return Range(Level(ranks[0], first), Level(ranks[1], second))

    def query(self) -> Query:
        """Return a question: mostly of a pair that a rule names."""
        chance = self.random.random()
        kind = ALLOW if chance < 0.65 else AUDITDENY if chance < 0.8 else AUDITALLOW
        rules = self._rules[kind]
        if chance < 0.9 and rules:
            source, target, tclass, _, _ = self.random.choice(rules)
        else:
            source, target = self.random.choice(self._types), self.random.choice(self._types)
            tclass = self.random.choice(list(self.policy.classes))
        return self._of(source), self._of(target), tclass

    def _of(self, kind: int) -> Context:
        return self.context(self.random.choice(self._members.get(kind) or self._types))

    def booleans(self) -> dict[str, bool]:
        """Return a state for each boolean, at random."""
        return {b.name: self.random.random() < 0.5 for b in self.policy.booleans.values()}


class Tally:
    """What was asked and what differed."""

    def __init__(self) -> None:
        self.asked = 0
        self.allowing = 0
        self.constrained = 0
        self.mismatches: list[str] = []


def compare(path: Path, seed: int, count: int, scratch: Path, *, flip: bool) -> Tally:
    """Put `count` questions to both; with `flip`, under booleans set at random."""
    policy = read_policydb(path.read_bytes(), str(path))
    draw = Draw(policy, seed)
    states: dict[int, bool] = {}
    asked_file = path
    if flip:
        named = draw.booleans()
        asked_file = with_booleans(path, named, scratch / f"booleans.{policy.version}")
        states = {b.value: named[b.name] for b in policy.booleans.values()}
    oracle = Sepol(asked_file)
    server = SecurityServer(policy, states, "selinux")
    tally = Tally()
    for _ in range(count):
        _one(draw, server, oracle, draw.query(), tally)
    return tally


def _one(draw: Draw, server: SecurityServer, oracle: Sepol, query: Query, tally: Tally) -> None:
    source, target, tclass = query
    one, two = draw.contexts.text(source), draw.contexts.text(target)
    name = draw.policy.classes[tclass].name
    requested = draw.random.getrandbits(32)
    theirs = oracle.decide(one, two, name, requested)
    vectors = server.vectors(source, target, tclass)
    steps = server.steps(source, target, tclass)
    reasons = (
        (TE if requested & ~steps.by_rules else 0)
        | (CONSTRAINT if requested & steps.by_rules & ~steps.by_constraints else 0)
        | (RBAC if requested & steps.by_constraints & ~steps.by_roles else 0)
        | (BOUNDS if steps.by_roles & ~steps.by_bounds else 0)
    )
    ours = (vectors.allowed, vectors.auditallow, vectors.dontaudit, reasons)
    tally.asked += 1
    tally.allowing += bool(vectors.allowed)
    tally.constrained += steps.by_rules != vectors.allowed
    if ours != theirs:
        tally.mismatches.append(f"{one} {two} {name}: ours {ours}, libsepol {theirs}")


def compare_relabelling(path: Path, seed: int, count: int) -> Tally:
    """Compare what `member` and `change` rules give; classes with defaults are left out.

    libsepol does not look at `default_user`, `default_role` and `default_type`.
    """
    policy = read_policydb(path.read_bytes(), str(path))
    draw, oracle = Draw(policy, seed), Sepol(path)
    labelling = Labelling(SecurityServer(policy), draw.contexts)
    tally = Tally()
    for source, target, value in _typed(draw, count):
        tclass = policy.classes[value]
        if tclass.default_user or tclass.default_role or tclass.default_type:
            continue
        for kind in ("member", "change"):
            theirs = oracle.new_context(
                kind, draw.contexts.text(source), draw.contexts.text(target), tclass.name
            )
            ours = new_context(labelling, draw.contexts, (source, target, value), kind)
            tally.asked += 1
            tally.allowing += theirs is not None
            if ours != theirs:
                tally.mismatches.append(f"{source} {target} {tclass.name} {kind}: {ours} {theirs}")
    return tally


def new_context(labelling: Labelling, contexts: Contexts, query: Query, kind: Kind) -> str | None:
    """Return our answer as text, None where the policy allows no such context."""
    source, target, value = query
    tclass = labelling.policy.classes[value]
    try:
        return contexts.text(labelling.new_context(source, target, tclass, kind))
    except Denied:
        return None


def _typed(draw: Draw, count: int) -> Iterator[Query]:
    rules = [r for r in draw.policy.rules if not r[3] & VECTORS]
    for _ in range(count):
        if rules and draw.random.random() < 0.7:
            source, target, tclass, _, _ = draw.random.choice(rules)
            yield draw.context(source), draw.context(target), tclass
        else:
            yield draw.query()
