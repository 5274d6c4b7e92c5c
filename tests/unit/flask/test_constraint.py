"""Constraints are shown in the policy language's words, and what is shown is what was asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from skerry.policy.policydb.read import read_policydb
from skerry.xsm.flask.constraint import bindings, compile_constraint, infix
from skerry.xsm.flask.model import Constraint, FlaskPolicy
from tests.oracle.compare import Draw
from tests.oracle.generate import conf, draw
from tests.oracle.naive import holds
from tests.support.policies import compile_conf
from tests.unit.flask import small

TYPES = """
attribute domain; type app_t, domain; type tool_t, domain; role run_r; role run_r types app_t;
user one_u roles run_r; user two_u roles run_r;
"""


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("u1 == u2", "u1 == u2"),
        ("(u1 == u2) and (r1 != r2)", "u1 == u2 and r1 != r2"),
        ("u1 == u2 or (r1 == r2 and t1 == t2)", "u1 == u2 or r1 == r2 and t1 == t2"),
        ("(u1 == u2 or r1 == r2) and t1 == t2", "(u1 == u2 or r1 == r2) and t1 == t2"),
        ("not (u1 == u2 or r1 dom r2)", "not (u1 == u2 or r1 dom r2)"),
        ("not u1 == u2 and r1 domby r2", "not u1 == u2 and r1 domby r2"),
        ("not (not (r1 incomp r2))", "not not r1 incomp r2"),
        ("t1 == app_t", "t1 == app_t"),
        ("t2 != domain", "t2 != domain"),
        ("t1 == { app_t tool_t }", "t1 == { app_t tool_t }"),
        ("u1 == { one_u two_u }", "u1 == { one_u two_u }"),
        ("r2 == run_r", "r2 == run_r"),
    ],
)
def test_an_expression_is_written_in_infix(tmp_path: Path, source: str, shown: str) -> None:
    """With as few brackets as its meaning needs; a set in the order of its numbers."""
    text = small.conf(TYPES + f"constrain file read ({source});")
    policy = small.ask(tmp_path, text).policy
    tclass = policy.class_named("file")
    assert tclass
    assert _sets_sorted(infix(tclass.constraints[0], policy)) == shown


def _sets_sorted(text: str) -> str:
    """Return an expression with its sets in order: versions of checkpolicy number differently."""
    return re.sub(r"\{ (.*?) \}", lambda found: f"{{ {' '.join(sorted(found[1].split()))} }}", text)


def test_bindings_name_what_each_side_stood_for(tmp_path: Path) -> None:
    """Each side of the expression once, with its value in this question."""
    text = small.conf(TYPES + "constrain file read (u1 == u2 or (t1 == app_t and u1 != one_u));")
    asked = small.ask(tmp_path, text)
    tclass = asked.policy.class_named("file")
    assert tclass
    one = asked.contexts.parse("one_u:run_r:app_t")
    two = asked.contexts.parse("two_u:object_r:tool_t")
    constraint = tclass.constraints[0]
    written = bindings(constraint, asked.policy, asked.contexts, one, two)
    assert written == "u1 = one_u, u2 = two_u, t1 = app_t"


def _shown(policy: FlaskPolicy) -> list[tuple[str, str, Constraint]]:
    """Return all constraints as class, text and terms, in the texts' order."""
    found = []
    for tclass in policy.classes.values():
        for constraint in (*tclass.constraints, *tclass.validatetrans):
            given = f" {{ {' '.join(tclass.names(constraint.permissions))} }}"
            change = constraint in tclass.validatetrans
            kind = "validatetrans" if change else "constrain"
            head = f"{kind} {tclass.name}{'' if change else given}"
            found.append((tclass.name, f"{head} ({infix(constraint, policy)});", constraint))
    return sorted(found, key=lambda item: item[:2])


def test_what_is_shown_means_what_was_evaluated(tmp_path: Path) -> None:
    """Random expressions, shown in infix and compiled again from that, are true where they were."""
    truths = [truth for seed in range(15) for truth in _compared(seed, tmp_path)]
    assert truths.count(True) > 500
    assert truths.count(False) > 500


def _compared(seed: int, tmp_path: Path) -> list[bool]:
    """Compare the constraints of one policy; return what they said."""
    made = draw(seed, "selinux", "conf")
    made.version = 33
    made.dominance = None  # Debian 13's checkpolicy has unlearnt it
    source = conf(made)
    first = _compiled(source, tmp_path / "first.33", made.mls)
    texts = [text for _, text, _ in _shown(first)]
    kinds = ("constrain", "mlsconstrain", "validatetrans", "mlsvalidatetrans")
    lines = [line for line in source.splitlines() if not line.startswith(kinds)]
    if made.mls:
        # In the language, comparisons of levels have their place; and one must be there.
        place = lines.index("level s3:c0.c3;") + 1
        lines[place:place] = [f"mls{text}" for text in texts if _LEVELS.search(text)]
        lines.insert(place, "mlsconstrain wide p31 (l1 == h1);")
    place = next(n for n, line in enumerate(lines) if line.startswith("sid ") and ":" in line)
    lines[place:place] = [text for text in texts if not _LEVELS.search(text)]
    second = _compiled("\n".join(lines) + "\n", tmp_path / "second.33", made.mls)
    again = _shown(second)
    if made.mls:
        again.remove(next(item for item in again if "p31 } (l1 == h1)" in item[1]))
    assert [text for _, text, _ in again] == texts
    contexts = Draw(first, seed)
    seen = []
    for (_, _, one), (_, _, two) in zip(_shown(first), again, strict=True):
        for _ in range(60):
            sides = [contexts.context(contexts.random.choice(contexts.types)) for _ in range(3)]
            truth = holds(first, one, sides[0], sides[1], sides[2])
            assert holds(second, two, sides[0], sides[1], sides[2]) is truth
            assert compile_constraint(one, first)(sides[0], sides[1], sides[2]) is truth
            seen.append(truth)
    return seen


_LEVELS = re.compile(r"\b[lh][12]\b")


def _compiled(text: str, to: Path, mls: bool) -> FlaskPolicy:
    path = compile_conf(text, to, "selinux", 33, mls=mls)
    return read_policydb(path.read_bytes(), path.name)
