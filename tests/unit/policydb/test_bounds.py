"""Policies that are sound but for their size: refused, or shown within bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.errors import PolicyError, UnknownLabel
from skerry.policy.policydb.constraints import MAX_NESTING, MAX_TERMS
from skerry.policy.policydb.read import read_policydb
from skerry.xsm.flask.constraint import compile_constraint
from skerry.xsm.flask.context import MAX_CONTEXT, Contexts
from skerry.xsm.flask.model import NO_RANGE, Context, FlaskPolicy, Level
from skerry.xsm.flask.module import FlaskModule
from tests.support.policies import compile_conf
from tests.unit.flask.small import conf

USER = "role one_r; role one_r types first_t; user one_u roles one_r"


def read(tmp_path: Path, text: str, *, mls: bool = False) -> FlaskPolicy:
    """Compile a policy and read it."""
    compiled = compile_conf(text, tmp_path / "policy", "selinux", 33, mls=mls)
    return read_policydb(compiled.read_bytes(), "policy")


def constrained(*expressions: str) -> str:
    """Return a policy with these constraints."""
    lines = [f"constrain file write ({expression});" for expression in expressions]
    return conf("\n".join([f"{USER};", *lines]))


def chain(depth: int) -> str:
    """Return an expression in which `and` and `or` are nested so deep."""
    text = "u1 == u2"
    for number in range(depth):
        text = f"({text} {'and' if number % 2 else 'or'} u1 == u2)"
    return text


@pytest.mark.parametrize("nested", [chain, lambda depth: "not " * depth + "u1 == u2"])
def test_an_expression_too_deep_to_evaluate_is_an_error(tmp_path: Path, nested) -> None:  # type: ignore[no-untyped-def]
    """The compiler takes it, and it is never half evaluated; one step less is evaluated."""
    with pytest.raises(PolicyError, match=r"at offset \d+: a constraint is nested deeper than 64"):
        read(tmp_path, constrained(nested(MAX_NESTING + 1)))
    policy = read(tmp_path, constrained(nested(MAX_NESTING)))
    tclass = policy.class_named("file")
    assert tclass is not None
    check = compile_constraint(tclass.constraints[0], policy)
    one, other = Context(1, 1, 1, NO_RANGE), Context(2, 1, 1, NO_RANGE)
    assert check(one, one, None)
    assert not check(one, other, None)


def test_constraints_too_many_to_go_through_are_an_error(tmp_path: Path) -> None:
    """However they are spread; as many as are allowed are read."""
    quarter = " or\n".join(["u1 == u2"] * 2048)  # 4,095 terms
    most = [*[quarter] * 4, *["u1 == u2"] * 4]
    policy = read(tmp_path, constrained(*most))
    tclass = policy.class_named("file")
    assert tclass is not None
    assert sum(len(constraint.terms) for constraint in tclass.constraints) == MAX_TERMS
    with pytest.raises(PolicyError, match="number of terms of all constraints is 16385"):
        read(tmp_path, constrained(*most, "u1 == u2"))
    with pytest.raises(PolicyError, match="number of a constraint's terms is 20479"):
        read(tmp_path, constrained(" or\n".join([quarter] * 5)))


def categories(count: int) -> str:
    """Return a policy with categories, and a user whose own level has every other one."""
    names = [f"c{number}" for number in range(count)]
    head = "\n".join(
        [
            "sensitivity s0; dominance { s0 }",
            *(f"category {name};" for name in names),
            f"level s0:c0.c{count - 1};",
            "mlsconstrain file write (l1 dom l2);",
        ]
    )
    separator = ",\n"  # the compiler takes no longer lines
    level = f"s0:{separator.join(names[::2])}"
    users = f"{USER} level {level} range s0 - s0:c0.c{count - 1};"
    text = conf(f"allow first_t first_t:domain2 relabelto;\n{users}", head=head)
    text = text.replace("class file\n", "class file\nclass domain2\n")
    text = text.replace("class file {", "class domain2 { relabelto }\nclass file {")
    return text.replace("one_u:object_r:first_t", "one_u:object_r:first_t:s0")


def test_a_level_too_long_for_a_label_is_cut_off_and_never_reads_as_one(tmp_path: Path) -> None:
    """However many categories there are; those that fit are listed, and read back."""
    short = read(tmp_path, categories(100), mls=True)
    level = short.users[1].default_level
    assert level.categories.bit_count() == 50
    (label,) = FlaskModule(short).labels()
    assert Contexts(short).parse(label).range.low == level
    long = read(tmp_path, categories(4000), mls=True)
    contexts, level = Contexts(long), long.users[1].default_level
    text = contexts.level_text(level)
    assert MAX_CONTEXT < len(text) < MAX_CONTEXT + 200
    assert FlaskModule(long).labels() == ()
    with pytest.raises(UnknownLabel, match="longer than 4096"):
        contexts.parse(f"one_u:one_r:first_t:{text}")
    other = Level(level.sensitivity, level.categories | 1 << 3999)
    assert contexts.level_text(other) != text
    assert contexts.level_text(Level(level.sensitivity, (1 << 4000) - 1)) == "s0:c0.c3999"
