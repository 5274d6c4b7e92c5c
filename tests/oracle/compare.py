"""Random questions about a policy, put to our security server and to libsepol.

Most are drawn from granted and dontaudited pairs, since a uniform draw almost never allows
anything. The draw is made from a seed, so that a mismatch can be repeated.
"""

from __future__ import annotations

import random
from pathlib import Path

import msgspec

from skerry.policy.policydb.read import read_policydb
from skerry.xsm.flask.context import Contexts
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

MAX_SHOWN = 20
"""Most mismatches kept as text."""

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
        self.types = [t.value for t in policy.types.values() if not t.attribute]
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
            source, target = self.random.choice(self.types), self.random.choice(self.types)
            tclass = self.random.choice(list(self.policy.classes))
        return self._of(source), self._of(target), tclass

    def _of(self, kind: int) -> Context:
        return self.context(self.random.choice(self._members.get(kind) or self.types))

    def booleans(self) -> dict[str, bool]:
        """Return a state for each boolean, at random."""
        return {b.name: self.random.random() < 0.5 for b in self.policy.booleans.values()}


class Tally(msgspec.Struct):
    """What was asked and what differed; `mismatches` holds the first ones as text."""

    asked: int = 0
    allowing: int = 0
    constrained: int = 0
    differing: int = 0
    mismatches: list[str] = []

    def differ(self, text: str) -> None:
        """Count a mismatch."""
        self.differing += 1
        if len(self.mismatches) < MAX_SHOWN:
            self.mismatches.append(text)

    def add(self, other: Tally) -> None:
        """Add another tally to this one."""
        self.asked += other.asked
        self.allowing += other.allowing
        self.constrained += other.constrained
        self.differing += other.differing
        self.mismatches += other.mismatches[: MAX_SHOWN - len(self.mismatches)]


def without(policy: FlaskPolicy, part: str) -> FlaskPolicy:
    """Return a policy that lacks a part: what a server decides that overlooks it."""
    replace = msgspec.structs.replace
    classes = policy.classes.items()
    if part == "constraints":
        return replace(policy, classes={n: replace(c, constraints=()) for n, c in classes})
    if part == "validatetrans":
        return replace(policy, classes={n: replace(c, validatetrans=()) for n, c in classes})
    if part == "conditionals":
        return replace(policy, conditionals=())
    if part == "bounds":
        types = policy.types.items()
        return replace(policy, types={n: replace(t, bounds=0) for n, t in types})
    if part == "role allows":
        every = frozenset((a, b) for a in policy.roles for b in policy.roles)
        return replace(policy, role_allows=every)
    if part == "dontaudits":
        return replace(policy, rules=tuple(r for r in policy.rules if r[3] != AUDITDENY))
    if part == "attributes":
        alone = {value: 1 << value - 1 for value in policy.attributes}
        return replace(policy, attributes=alone)
    if part == "type rules":
        return replace(policy, rules=tuple(r for r in policy.rules if r[3] & VECTORS))
    if part == "role transitions":
        return replace(policy, role_transitions=())
    if part == "range transitions":
        return replace(policy, range_transitions={})
    assert part == "", part
    return policy


def compare(
    path: Path, seed: int, count: int, scratch: Path, *, flip: bool, broken: str = ""
) -> Tally:
    """Put `count` questions to both; with `flip`, under booleans set at random.

    `broken` names a part of the policy that our side shall overlook: a control.
    """
    policy = read_policydb(path.read_bytes(), str(path))
    draw = Draw(policy, seed)
    asked_file, states = set_booleans(draw, path, scratch) if flip else (path, {})
    oracle = Sepol(asked_file)
    server = SecurityServer(without(policy, broken), states, "selinux")
    tally = Tally()
    for _ in range(count):
        query = draw.query()
        if not _bounded_twice(policy, query[0].type):
            _one(draw, server, oracle, query, tally)
    return tally


def set_booleans(draw: Draw, path: Path, scratch: Path) -> tuple[Path, dict[int, bool]]:
    """Set booleans at random; return the file that libsepol made so, and the states by value."""
    named = draw.booleans()
    states = {b.value: named[b.name] for b in draw.policy.booleans.values()}
    return with_booleans(path, named, scratch / f"booleans.{draw.policy.version}"), states


def _bounded_twice(policy: FlaskPolicy, kind: int) -> bool:
    """Tell whether a type's bound is bounded itself: libsepol 3.4 may crash over such a source.

    It writes the reason of the inner refusal through a null pointer.
    """
    parent = policy.types[kind].bounds
    return parent != 0 and policy.types[parent].bounds != 0


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
        tally.differ(f"{one} {two} {name}: ours {ours}, libsepol {theirs}")
