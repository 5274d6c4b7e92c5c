"""What is done for speed changes no answer: blocks of rules, chains of constraints, kept sets."""

from __future__ import annotations

import random
import struct
from itertools import product
from pathlib import Path

import pytest

from skerry.errors import PolicyError
from skerry.policy.policydb import rules
from skerry.policy.policydb.read import read_policydb
from skerry.xsm.flask import server
from skerry.xsm.flask.constraint import compile_constraint
from skerry.xsm.flask.model import (
    ALLOW,
    NO_RANGE,
    Constraint,
    Context,
    FlaskPolicy,
    Level,
    Range,
    Term,
)
from skerry.xsm.flask.server import SecurityServer, Vectors

DATA = Path(__file__).parent / "data"
FILES = ("small.24", "small.30", "small.33", "xen.24", "xen.30")


def outcome(untrusted: bytes) -> FlaskPolicy | str:
    """Return the model of a file, or the error's words."""
    try:
        return read_policydb(untrusted, "file")
    except PolicyError as error:
        return str(error)


@pytest.mark.parametrize("name", FILES)
def test_the_size_of_a_block_changes_neither_model_nor_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules read one by one, by threes and all at once are the same, and so is what is refused."""
    whole = (DATA / name).read_bytes()
    rand = random.Random(name)
    files = [whole]
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rand.randrange(len(whole) // 2, len(whole))] ^= 1 << rand.randrange(8)
        files.append(bytes(damaged))
    expected = [outcome(file) for file in files]
    assert isinstance(expected[0], FlaskPolicy)
    assert any(isinstance(item, str) for item in expected)
    for size in (1, 3):
        monkeypatch.setattr(rules, "_BLOCK", size)
        assert [outcome(file) for file in files] == expected


@pytest.mark.parametrize("damage", ["source", "target", "class", "kind"])
def test_a_bad_rule_in_the_midst_of_a_block_is_named_by_its_own_offset(damage: str) -> None:
    """The rule at fault is told from its good neighbours."""
    whole = (DATA / "small.33").read_bytes()
    policy = read_policydb(whole, "file")
    place = len(policy.rules) // 2
    offset = whole.index(struct.pack("<4HI", *policy.rules[place]))
    damaged = bytearray(whole)
    field = ("source", "target", "class", "kind").index(damage)
    struct.pack_into("<H", damaged, offset + 2 * field, 0x7FF0)
    with pytest.raises(PolicyError, match=f"at offset {offset}:"):
        read_policydb(bytes(damaged), "file")


def naive(terms: tuple[Term, ...], one: Context, two: Context) -> bool:
    """Evaluate an expression by its definition."""
    sides = {"1": one, "2": two}
    stack: list[bool] = []
    for term in terms:
        if term.kind == "not":
            stack.append(not stack.pop())
        elif term.kind in ("and", "or"):
            right, left = stack.pop(), stack.pop()
            stack.append(left and right if term.kind == "and" else left or right)
        elif term.kind == "names":
            kind = {"u": "user", "r": "role", "t": "type"}[term.left[0]]
            value = getattr(sides[term.left[1]], kind)
            stack.append((bool(term.values & 1 << value - 1)) is (term.operator == "=="))
        elif term.left[0] == "u":
            stack.append((one.user == two.user) is (term.operator == "=="))
        else:
            first, second = (level(side, sides) for side in (term.left, term.right))
            stack.append(
                {
                    "==": first == second,
                    "!=": first != second,
                    "dom": first.dominates(second),
                    "domby": second.dominates(first),
                    "incomp": not (first.dominates(second) or second.dominates(first)),
                }[term.operator or "=="]
            )
    return stack.pop()


def level(side: str, sides: dict[str, Context]) -> Level:
    """Return the level that `l1` to `h2` stand for."""
    span = sides[side[1]].range
    return span.low if side[0] == "l" else span.high


def expression(rand: random.Random, depth: int) -> tuple[Term, ...]:
    """Return an expression at random, mostly chains of `and` and `or`."""
    chance = rand.random()
    if depth == 0 or chance < 0.15:
        if chance < 0.05:
            return (Term("pair", "u1", rand.choice(("==", "!=")), "u2"),)
        if chance < 0.09 or rand.random() < 0.4:
            left, right = rand.choice(("l1 l2", "l1 h2", "h1 l2", "h1 h2", "l1 h1")).split()
            return (Term("pair", left, rand.choice(("==", "!=", "dom", "domby", "incomp")), right),)
        side = rand.choice("urt") + rand.choice("12")
        return (Term("names", side, rand.choice(("==", "!=")), values=rand.getrandbits(3)),)
    if chance < 0.3:
        return (*expression(rand, depth - 1), Term("not"))
    both = (*expression(rand, depth - 1), *expression(rand, depth - 1))
    return (*both, Term(rand.choice(("and", "or"))))


def test_a_constraint_means_what_its_terms_say() -> None:
    """Chains that became one loop give the truth value of the expression, for every pair."""
    policy = read_policydb((DATA / "small.33").read_bytes(), "file")
    rand = random.Random(3)
    levels = [Level(rank, categories) for rank, categories in product((1, 2), (0, 1, 3))]
    contexts = [
        Context(rand.randint(1, 3), rand.randint(1, 3), rand.randint(1, 3), Range(*pair))
        for pair in product(levels, levels)
    ]
    truths = 0
    for _ in range(300):
        terms = expression(rand, 5)
        check = compile_constraint(Constraint(1, terms), policy)
        for _ in range(30):
            one, two = rand.choice(contexts), rand.choice(contexts)
            truths += check(one, two, None)
            assert check(one, two, None) is naive(terms, one, two), terms
    assert 2000 < truths < 7000


def test_a_long_chain_is_no_deep_one() -> None:
    """An expression with thousands of `or` is evaluated, however deep Python may go."""
    policy = read_policydb((DATA / "small.33").read_bytes(), "file")
    never, always = Term("names", "t1", "==", values=0), Term("names", "t1", "!=", values=0)
    terms = (never, *(never, Term("or")) * 20_000, always, Term("or"))
    context = Context(1, 1, 1, NO_RANGE)
    assert compile_constraint(Constraint(1, terms), policy)(context, context, None)
    assert not compile_constraint(Constraint(1, terms[:-2]), policy)(context, context, None)


@pytest.mark.parametrize("most", [0, 3])
def test_sets_that_are_made_anew_give_the_same_vectors(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for hardly any set of attributes, every answer is what it was."""
    policy = read_policydb((DATA / "small.33").read_bytes(), "file")
    expected = everything(SecurityServer(policy))
    assert any(answer.allowed for answer in expected)
    monkeypatch.setattr(server, "MAX_MEMBERS", most)
    assert everything(SecurityServer(policy)) == expected


def everything(asked: SecurityServer) -> list[Vectors]:
    """Ask for all vectors between all types; constraints see contexts of one user and role."""
    policy = asked.policy
    span = policy.object_contexts[0].contexts[0].range
    contexts = [Context(1, 1, kind.value, span) for kind in policy.types.values()]
    return [
        asked.vectors(one, two, tclass)
        for one, two in product(contexts, contexts)
        for tclass in policy.classes
    ]


def test_every_rule_in_force_is_named_as_granting() -> None:
    """Rules outside and inside conditions share one table, and none is lost in it."""
    policy = read_policydb((DATA / "small.33").read_bytes(), "file")
    found = 0
    for states in product((False, True), repeat=len(policy.booleans)):
        asked = SecurityServer(policy, dict(zip(policy.booleans, states, strict=True)))
        conditional = [rule for rule in asked.enabled if rule[3] == ALLOW]
        found += len(conditional)
        for source, target, tclass, kind, vector in (*policy.rules, *conditional):
            if kind == ALLOW:
                sides = _members(policy, source, target)
                granting = asked.granting(*sides, tclass, vector)
                assert (source, target, vector) in list(granting)
    assert found


def _members(policy: FlaskPolicy, *sides: int) -> tuple[int, int]:
    first, second = (
        next(kind for kind, bits in policy.attributes.items() if bits >> side - 1 & 1)
        for side in sides
    )
    return first, second
