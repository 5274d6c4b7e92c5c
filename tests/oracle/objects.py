"""Labels of new objects, changes of labels, and which contexts are valid: ours and libsepol's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from skerry.errors import Denied, UnknownLabel
from skerry.policy.policydb.read import read_policydb
from skerry.xsm.flask.context import Contexts
from skerry.xsm.flask.labelling import Kind, Labelling
from skerry.xsm.flask.model import VECTORS, Context, FlaskPolicy, PolicyClass
from skerry.xsm.flask.server import SecurityServer
from tests.oracle.compare import Draw, Query, Tally, set_booleans, without
from tests.oracle.naive import Naive
from tests.oracle.sepol import LIBRARY, Sepol

MAX_SIDS = 600
"""Most contexts that are compared as such and not only for being valid: libsepol searches them."""

KINDS: tuple[Kind, ...] = ("transition", "member", "change")


def _typed(draw: Draw, count: int) -> Iterator[Query]:
    """Yield questions, most of them of pairs that a type, role or range rule names."""
    policy, rand = draw.policy, draw.random
    ruled = [(r[0], r[1], r[2]) for r in policy.rules if not r[3] & VECTORS]
    conditional = (r for c in policy.conditionals for r in (*c.if_true, *c.if_false))
    ruled += [(r[0], r[1], r[2]) for r in conditional if not r[3] & VECTORS]
    moves = [(move.role, move.type, move.tclass) for move in policy.role_transitions]
    actor = policy.class_named(policy.process_class)
    for _ in range(count):
        chance = rand.random()
        if ruled and chance < 0.5:
            source, target, tclass = rand.choice(ruled)
        elif policy.range_transitions and chance < 0.65:
            source, target, tclass = rand.choice(list(policy.range_transitions))
        elif moves and actor and chance < 0.8:
            role, target, tclass = rand.choice(moves)
            types = [t for t in draw.types if policy.roles[role].types >> t - 1 & 1]
            source, tclass = rand.choice(types or draw.types), tclass or actor.value
        else:
            yield draw.query()
            continue
        yield draw.context(source), draw.context(target), tclass


def _in_libsepol(policy: FlaskPolicy, tclass: PolicyClass) -> bool:
    """Tell whether libsepol and Linux agree on a class.

    libsepol looks at no `default_user`, `default_role` and `default_type`, and does not know that
    Linux gives a socket the role, type and range of its maker.
    """
    if tclass.default_user or tclass.default_role or tclass.default_type:
        return False
    return policy.flavour == "xen" or not tclass.name.endswith("socket")


def compare_relabelling(
    path: Path,
    seed: int,
    count: int,
    scratch: Path,
    *,
    flip: bool = False,
    library: str = LIBRARY,
    broken: str = "",
) -> Tally:
    """Compare the labels of new objects with libsepol's; `transition` needs its whole library."""
    policy = read_policydb(path.read_bytes(), str(path))
    draw = Draw(policy, seed)
    asked_file, states = set_booleans(draw, path, scratch) if flip else (path, {})
    oracle = Sepol(asked_file, library)
    labelling = Labelling(SecurityServer(without(policy, broken), states), draw.contexts)
    kinds = KINDS if library != LIBRARY else KINDS[1:]
    tally = Tally()
    for source, target, value in _typed(draw, count):
        tclass = policy.classes[value]
        if not _in_libsepol(policy, tclass):
            continue
        one, two = draw.contexts.text(source), draw.contexts.text(target)
        for kind in kinds:
            theirs = oracle.new_context(kind, one, two, tclass.name)
            ours = new_context(labelling, draw.contexts, (source, target, value), kind)
            tally.asked += 1
            tally.allowing += theirs is not None
            if theirs != (oracle.sid(ours) if ours else None):
                shown = oracle.text(theirs) if theirs else None
                tally.differ(f"{one} {two} {tclass.name} {kind}: ours {ours}, libsepol {shown}")
    return tally


def new_context(
    labelling: Labelling, contexts: Contexts, query: Query, kind: Kind, name: str = ""
) -> str | None:
    """Return our answer as text, None where the policy allows no such context."""
    source, target, value = query
    tclass = labelling.policy.classes[value]
    try:
        return contexts.text(labelling.new_context(source, target, tclass, kind, name))
    except Denied:
        return None


def compare_naive(path: Path, seed: int, count: int, *, broken: str = "") -> Tally:
    """Compare all that our server says, in the policy's own flavour, with the naive model.

    `constrained` counts the questions on which the bounds of Linux and of Xen differ.
    """
    policy = read_policydb(path.read_bytes(), str(path))
    draw = Draw(policy, seed)
    named = draw.booleans()
    states = {b.value: named[b.name] for b in policy.booleans.values()}
    server = SecurityServer(without(policy, broken), states)
    naive, labelling = Naive(policy, states), Labelling(server, draw.contexts)
    names = ("", *sorted({rule.name for rule in policy.file_transitions}))
    tally = Tally()
    for _ in range(count):
        source, target, value = draw.query()
        vectors = server.vectors(source, target, value)
        ours = vectors.allowed, vectors.auditallow, vectors.dontaudit
        theirs = _naive_answer(naive, (source, target, value))
        one, two = draw.contexts.text(source), draw.contexts.text(target)
        tally.asked += 1
        tally.allowing += bool(vectors.allowed)
        other = "xen" if policy.flavour == "selinux" else "selinux"
        tally.constrained += naive.allowed(source, target, value, other) != theirs[0]
        if ours != theirs:
            tally.differ(f"{one} {two} class {value}: ours {ours}, naive {theirs}")
    for query in _typed(draw, count):
        source, target, value = query
        kind, name = draw.random.choice(KINDS), draw.random.choice(names)
        made = naive.new_context(source, target, value, kind, name)
        expected = draw.contexts.text(made) if made else None
        got = new_context(labelling, draw.contexts, query, kind, name)
        tally.asked += 1
        if got != expected:
            one, two = draw.contexts.text(source), draw.contexts.text(target)
            tally.differ(f"{one} {two} {value} {kind} {name}: ours {got}, naive {expected}")
    return tally


def _naive_answer(naive: Naive, query: Query) -> tuple[int, int, int]:
    source, target, value = query
    _, audit, silent = naive.rules(source, target, value)
    return naive.allowed(source, target, value, naive.policy.flavour), audit, silent


def compare_changes(path: Path, seed: int, count: int, *, broken: str = "") -> Tally:
    """Compare `validatetrans`; `constrained` counts the changes that are refused."""
    policy = read_policydb(path.read_bytes(), str(path))
    draw, oracle = Draw(policy, seed), Sepol(path)
    server = SecurityServer(without(policy, broken))
    classes = [c for c in policy.classes.values() if c.validatetrans]
    tally = Tally()
    for _ in range(count if classes else 0):
        tclass = draw.random.choice(classes)
        old, new, task = (draw.context(draw.random.choice(draw.types)) for _ in range(3))
        texts = tuple(draw.contexts.text(context) for context in (old, new, task))
        theirs = oracle.valid_transition(texts, tclass.name)
        ours = server.valid_transition(old, new, task, tclass.value)
        tally.asked += 1
        tally.allowing += theirs
        tally.constrained += not theirs
        if ours != theirs:
            tally.differ(f"{' '.join(texts)} {tclass.name}: ours {ours}, libsepol {theirs}")
    return tally


def compare_contexts(path: Path, seed: int, count: int) -> Tally:
    """Compare which texts are contexts of a policy; most are nearly right."""
    policy = read_policydb(path.read_bytes(), str(path))
    oracle, contexts = Sepol(path), Contexts(policy)
    words = _Words(policy, seed)
    tally = Tally()
    for _ in range(count):
        text = words.context()
        theirs = oracle.valid(text)
        try:
            made: Context | None = contexts.parse(text)
        except UnknownLabel:
            made = None
        tally.asked += 1
        tally.allowing += theirs
        if theirs != (made is not None):
            tally.differ(f"{text!r}: ours {made is not None}, libsepol {theirs}")
        elif made is not None and len(oracle.sids) < MAX_SIDS:
            written = contexts.text(made)
            if oracle.sid(text) != oracle.sid(written):
                tally.differ(f"{text!r} is another context than {written!r}")
    return tally


class _Words:
    """Draws texts of contexts, valid and nearly valid."""

    def __init__(self, policy: FlaskPolicy, seed: int) -> None:
        self.policy = policy
        self.rand = random.Random(seed)
        types = policy.types.values()
        self.users = [user.name for user in policy.users.values()]
        self.roles = [role.name for role in policy.roles.values()]
        self.types = [t.name for t in types if not t.attribute]
        self.odd_types = [t.name for t in types if t.attribute]
        self.odd_types += [alias for t in types for alias in t.aliases]

    def context(self) -> str:
        """Return one text."""
        rand = self.rand
        user, role, kind = map(rand.choice, (self.users, self.roles, self.types))
        if rand.random() < 0.6:
            found = next(u for u in self.policy.users.values() if u.name == user)
            known = [r for v, r in self.policy.roles.items() if found.roles >> v - 1 & 1]
            if known:
                holder = rand.choice(known)
                types = [v for v in self.policy.types if holder.types >> v - 1 & 1]
                role = holder.name
                kind = self.policy.type_name(rand.choice(types)) if types else kind
        if rand.random() < 0.06:
            user, role = rand.choice(((user, "nobody_r"), ("nobody_u", role)))
        if rand.random() < 0.06 and self.odd_types:
            kind = rand.choice(self.odd_types)
        text = f"{user}:{role}:{kind}"
        if self.policy.mls is (rand.random() < 0.95):
            text += f":{self.range(user)}"
        return text

    def range(self, user: str) -> str:
        """Return a range, oftener than not one that a user may have."""
        rand = self.rand
        if rand.random() < 0.15:
            return self.level()
        if rand.random() < 0.5:
            return f"{self.level()}-{self.level()}"
        span = next((u.range for u in self.policy.users.values() if u.name == user), None)
        if span is None or not self.policy.mls or rand.random() < 0.1:
            return self.level()
        contexts = Contexts(self.policy)
        return contexts.range_text(span)

    def level(self) -> str:
        """Return a level, perhaps one that does not exist."""
        rand, policy = self.rand, self.policy
        ranks = [s.name for s in policy.sensitivities.values()] or ["s0"]
        names = [c.name for c in policy.categories.values()] or ["c0"]
        text = rand.choice(ranks) if rand.random() < 0.97 else "s99"
        if rand.random() < 0.4:
            return text
        items = []
        for _ in range(rand.choice((1, 1, 2, 3))):
            one, two = rand.choice(names), rand.choice(names)
            items.append(one if rand.random() < 0.6 else f"{one}.{two}")
        if rand.random() < 0.03:
            items.append("c9999")
        return f"{text}:{','.join(items)}"
