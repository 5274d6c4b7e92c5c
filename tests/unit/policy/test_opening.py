"""Whether a change of policy opens nothing: at random, against the flows before and after."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import pytest

from skerry.flow.contexts import context_graph
from skerry.policy.opening import opens_nothing
from skerry.policy.source import Source, make_policy
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.module import Standing
from skerry.xsm.stack import Stack
from tests.support.policies import compile_conf
from tests.unit.flow.sample import loaded, pairs
from tests.unit.flow.test_contexts import constrained

ALL = ("*:*:*",)


def changed_text(text: str, chance: random.Random) -> str:
    """Return a policy's text with a few lines dropped, doubled elsewhere, or added."""
    lines = text.splitlines()
    what = chance.choice(["rules", "constrain", "role", "gain", "user", "permissive"])
    if what == "rules":
        allows = [n for n, line in enumerate(lines) if line.startswith("allow ")]
        gone = set(chance.sample(allows, min(2, len(allows))))
        lines = [line for n, line in enumerate(lines) if n not in gone]
    elif what == "constrain":
        at = next(n for n, line in enumerate(lines) if line.startswith("constrain "))
        lines.insert(at, "constrain file { read } (u1 == u2);")
    elif what == "role":
        lines = [line for line in lines if not line.startswith("role other_r types")]
        lines = [line.replace("some_r other_r", "some_r") for line in lines]
    elif what == "gain":
        at = next(n for n, line in enumerate(lines) if line.startswith("role r;"))
        lines.insert(at, "allow t0_t t1_t:file { read write };")
    elif what == "user":
        lines = [line.replace("user u roles { r some_r }", "user u roles { r }") for line in lines]
    else:
        lines = [line for line in lines if not line.startswith("permissive ")]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("seed", range(24))
def test_where_nothing_is_opened_no_context_reaches_more(seed: int, tmp_path: Path) -> None:
    """Every pair of contexts of a small FLASK policy, under constraints, roles and booleans."""
    chance = random.Random(seed)
    old = constrained(seed, tmp_path)
    text = next(tmp_path.glob("*.conf")).read_text()
    new = loaded(compile_conf(changed_text(text, chance), tmp_path / "new", "selinux", 33))
    if chance.random() < 0.3:
        new = new.with_booleans({"one": chance.random() < 0.5, "two": chance.random() < 0.5})
    before, after = (pairs(context_graph(module, ALL)) for module in (old, new))
    if opens_nothing(Stack([old]), Stack([new])):
        assert after <= before


def test_plain_losses_are_found_to_open_nothing(tmp_path: Path) -> None:
    """Rules, a constraint more, a user's role, a permissive statement: each alone; a rule more is
    not, nor is what was lost coming back."""
    old = constrained(3, tmp_path)
    text = next(tmp_path.glob("*.conf")).read_text()
    lines = text.splitlines()
    allow = next(line for line in lines if line.startswith("allow "))
    loose = next(line for line in lines if line.startswith("permissive "))
    losses = {
        "rule": text.replace(allow + "\n", "", 1),
        "constraint": text.replace("constrain ", "constrain file read (u1 == u2);\nconstrain ", 1),
        "role": text.replace("user u roles { r some_r }", "user u roles { r }"),
        "permissive": text.replace(loose + "\n", ""),
    }
    for name, changed in losses.items():
        assert changed != text
        new = loaded(compile_conf(changed, tmp_path / name, "selinux", 33))
        assert opens_nothing(Stack([old]), Stack([new])), name
        assert not opens_nothing(Stack([new]), Stack([old])), name


TYPES, WALLS = ("s", "t", "u"), ("a", "b", "c")


def banks(chance: random.Random) -> str:
    """Return an ACM policy at random, always with the same names."""
    lines = ["[policy]", 'name = "p"', 'version = "1.0"', 'bootstrap = "op"',
             "[simple-type-enforcement]", f"types = {list(TYPES)}",
             "[chinese-wall]", f"types = {list(WALLS)}"]  # fmt: skip
    for number in range(chance.randrange(3)):
        held = chance.sample(WALLS, 2)
        history = "true" if chance.random() < 0.5 else "false"
        lines += ["[[chinese-wall.conflicts]]", f'name = "w{number}"', f"types = {held}",
                  f"history = {history}"]  # fmt: skip
    lines += ["[labels.op]", f"ste = {list(TYPES)}"]
    for name in ("x", "y", "z"):
        if chance.random() < 0.85:
            ste = chance.sample(TYPES, chance.randrange(1, 3))
            cw = chance.sample(WALLS, 1)
            lines += [f"[labels.{name}]", f"ste = {ste}", f"cw = {cw}"]
    return "\n".join(lines).replace("'", '"') + "\n"


def exchanges(module: AcmModule) -> set[tuple[str, str]]:
    """Return who may share with whom and run beside him, and exchange with nothing touched."""
    nothing = Standing()
    return {
        (one, two)
        for one, two in product(module.labels(), repeat=2)
        if module.decide(one, two, "share", ("share",)).allowed
        and (module.admit(one, Standing((two,))).allowed
             or module.admit(two, Standing((one,))).allowed)
        and module.admit_bind((one, two), nothing).allowed
    }  # fmt: skip


def test_where_nothing_is_opened_no_label_exchanges_with_more() -> None:
    """ACM policies at random, 600 pairs of them; many are found to open nothing."""
    found = 0
    for seed in range(600):
        chance = random.Random(seed)
        text = banks(chance)
        # Half of the pairs are a policy and one that has lost some of it.
        head, labels, rest = text.partition("[labels.op]")
        lines = rest.splitlines()
        kept = [line for line in lines if chance.random() < 0.9 or not line.startswith("cw")]
        less = [line.replace('", "t"]', '"]') if "ste" in line and n > 1 else line
                for n, line in enumerate(kept)]  # fmt: skip
        other = banks(chance) if seed % 2 else head + labels + "\n".join(less) + "\n"
        old, new = (make_policy([Source("p", each.encode())]).stack for each in (text, other))
        one, two = old.modules[0], new.modules[0]
        assert isinstance(one, AcmModule)
        assert isinstance(two, AcmModule)
        if opens_nothing(old, new):
            found += one.digest != two.digest
            assert exchanges(two) <= exchanges(one)
    assert found > 20


def test_what_is_asked_between_steps_may_end_it(tmp_path: Path) -> None:
    """A comparison that takes too long is ended by whoever asked."""

    def late() -> None:
        raise TimeoutError

    old = constrained(1, tmp_path)
    new = old.with_booleans({"one": True})
    with pytest.raises(TimeoutError):
        opens_nothing(Stack([old]), Stack([new]), late)
