"""A plan says what `up` would do, also where one step decides the next."""

from __future__ import annotations

import asyncio
from pathlib import Path

from skerry.node.plan import make_plan
from skerry.node.setup import load_setup
from skerry.policy.history import MemoryHistory
from skerry.policy.manager import PolicyManager

POLICY = """
[policy]
name = "plan"
version = "1.0"
bootstrap = "op"
[simple-type-enforcement]
types = ["all"]
[chinese-wall]
types = ["x", "y"]
[[chinese-wall.conflicts]]
name = "rivals"
types = ["x", "y"]
history = {history}
[labels.op]
ste = ["all"]
[labels.x]
ste = ["all"]
cw = ["x"]
[labels.broker]
ste = ["all"]
[labels.clerk]
ste = ["all"]
"""

SYSTEM = """
name = "plan"
policy = "policy.toml"
[domains.x]
label = "x"
machine = "simulator"
[domains.broker]
label = "broker"
machine = "simulator"
[domains.clerk]
label = "clerk"
machine = "simulator"
[[channels]]
kind = "stream"
from = "x"
to = "broker"
name = "one"
[[channels]]
kind = "stream"
from = "broker"
to = "clerk"
name = "two"
"""


def test_what_a_planned_exchange_touches_counts_for_the_next_step(tmp_path: Path) -> None:
    """A clerk that once touched y is refused a broker of x; the control keeps no history."""
    (tmp_path / "system.toml").write_text(SYSTEM)
    for history, allowed in (("true", [True, False]), ("false", [True, True])):
        (tmp_path / "policy.toml").write_text(POLICY.format(history=history))
        setup = load_setup(tmp_path / "system.toml")
        before = MemoryHistory({"acm": {"clerk": frozenset({"y"})}})
        steps = asyncio.run(make_plan(setup, PolicyManager(setup.stack, before)))
        assert [step.allowed for step in steps if step.action == "bind"] == allowed


def test_the_use_of_a_resource_is_planned_and_touches_no_label_of_it(tmp_path: Path) -> None:
    """What a resource's history adds is asked at the bind; a plan with walls does not fail."""
    use = '[resources.disk]\nkind = "disk"\nlabel = "files"\nfile = "disk.img"\n'
    system = SYSTEM.replace("[domains.x]\n", '[domains.x]\nuses = ["disk"]\n') + use
    (tmp_path / "system.toml").write_text(system)
    policy = POLICY.format(history="true") + '[resources.files]\nste = "all"\n'
    (tmp_path / "policy.toml").write_text(policy)
    setup = load_setup(tmp_path / "system.toml")
    steps = asyncio.run(make_plan(setup, PolicyManager(setup.stack, MemoryHistory())))
    found = [(step.what, step.allowed) for step in steps if step.action == "bind"]
    assert ("x uses disk (disk)", True) in found


def test_the_node_s_own_domains_are_planned_first_and_count_in_no_wall(tmp_path: Path) -> None:
    """By the core's fixed rule; what follows is planned as without them."""
    (tmp_path / "policy.toml").write_text(POLICY.format(history="true"))
    planned = []
    for homes in ("", 'policy-manager = "domain"\naudit = "domain"\n'):
        name, rest = SYSTEM.lstrip().split("\n", 1)
        (tmp_path / "system.toml").write_text(f"{name}\n{homes}{rest}")
        setup = load_setup(tmp_path / "system.toml")
        manager = PolicyManager(setup.stack, MemoryHistory())
        planned.append(asyncio.run(make_plan(setup, manager)))
    without, (manager_step, audit_step, *rest_of_it) = planned
    for step, what in ((manager_step, "policy-manager"), (audit_step, "audit")):
        assert (step.action, step.what, step.allowed, step.code) == (
            "start",
            what,
            True,
            "BOOTSTRAP",
        )
    assert rest_of_it == without


def test_what_a_planned_channel_joins_is_asked_about_too(tmp_path: Path) -> None:
    """The broker's own channel to x comes last, but is live with the clerk's to y: one is refused.

    The control keeps no history.
    """
    system = SYSTEM.partition("[[channels]]")[0]
    system += '[domains.y]\nlabel = "also"\nmachine = "simulator"\n'
    for one, two in (("broker", "clerk"), ("x", "broker"), ("clerk", "y")):
        system += f'[[channels]]\nkind = "stream"\nfrom = "{one}"\nto = "{two}"\nname = "{one}"\n'
    (tmp_path / "system.toml").write_text(system)
    for history, last in (("true", False), ("false", True)):
        policy = POLICY.format(history=history) + '[labels.also]\nste = ["all"]\n'
        (tmp_path / "policy.toml").write_text(policy)
        setup = load_setup(tmp_path / "system.toml")
        before = MemoryHistory({"acm": {"also": frozenset({"y"})}})
        steps = asyncio.run(make_plan(setup, PolicyManager(setup.stack, before)))
        assert [s.allowed for s in steps if s.action == "bind"] == [True, True, last]
