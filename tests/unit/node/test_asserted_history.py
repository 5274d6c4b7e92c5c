"""Assertions that walls with history make true: on request, of a system's file and of a policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.errors import InputError, PolicyError
from skerry.flow.deadline import Deadline, TookTooLong
from skerry.node.assertions import claims_of, policy_violations, violations
from skerry.node.kept import read_setup, save_setup
from skerry.node.proving import prove_change
from skerry.node.setup import Setup, load_setup
from skerry.policy.asserted import assertions_of, write_assertions
from skerry.policy.source import NewPolicy
from skerry.xsm.explain import Refused
from tests.unit.flow.test_history import HISTORY

POLICY = HISTORY.replace('[labels.hub]\nste = ["x"]', '[labels.hub]\nste = ["a", "b", "x"]')
SYSTEM = """\
name = "banks"
policy = "policy.toml"
[domains.one]
label = "bank-a"
[domains.two]
label = "bank-b"
autostart = false
[domains.middle]
label = "adviser"
"""
NEVER = '[[assert]]\nnever = "one -> two"\n'
OF_LABELS = '[[assert]]\nnever = "bank-a -> bank-b"\nexcept = ["hub"]\n'
PAST = "history = true\n"


def setup_of(folder: Path, system: str = "", policy: str = "", wall: str = "true") -> Setup:
    """Load the banks with what the system, and what the policy, asserts."""
    text = POLICY.replace("history = true", f"history = {wall}")
    (folder / "policy.toml").write_text(text + policy)
    (folder / "system.toml").write_text(SYSTEM + system)
    return load_setup(folder / "system.toml")


def test_an_assertion_of_a_file_may_count_walls_with_history(tmp_path: Path) -> None:
    """The adviser may serve either bank, and never both. The controls: without the key, and where
    the wall keeps no history."""
    assert violations(setup_of(tmp_path, NEVER + PAST)) == []
    for system in (NEVER, NEVER + PAST.replace("true", "false")):
        (broken,) = violations(setup_of(tmp_path, system))
        assert broken.path == ("one", "middle", "two")
    (broken,) = violations(setup_of(tmp_path, NEVER + PAST, wall="false"))
    assert broken.path == ("one", "middle", "two")


def test_so_may_one_of_a_policy(tmp_path: Path) -> None:
    """Inside it and beside it, and it is written and told apart as such."""
    assert policy_violations(setup_of(tmp_path, policy=OF_LABELS + PAST).policy) == []
    (broken,) = policy_violations(setup_of(tmp_path, policy=OF_LABELS).policy)
    assert broken.path == ("bank-a", "adviser", "bank-b")
    with_it, without = (assertions_of(b"", (OF_LABELS + more).encode(), "p") for more in (PAST, ""))
    assert with_it is not None
    assert without is not None
    assert not with_it.within(without)
    assert str(with_it.written[0]) == "never bank-a -> bank-b except hub by history"
    assert write_assertions(with_it).strip() == (OF_LABELS + PAST).strip()


def test_a_load_that_takes_the_wall_away_is_refused(tmp_path: Path) -> None:
    """Nothing else changes. The control: the wall stays."""
    setup = setup_of(tmp_path, NEVER + PAST)

    def load(text: str) -> None:
        prove_change(setup, NewPolicy("next.toml", text.encode()), setup, "policy_load")

    load(POLICY.replace('"1.0"', '"1.1"'))
    with pytest.raises(Refused, match="one -> middle -> two"):
        load(POLICY.replace("history = true", "history = false"))


def test_it_is_read_back_from_what_a_node_keeps(tmp_path: Path) -> None:
    """After a restart the same is asserted."""
    setup = setup_of(tmp_path, NEVER + PAST)
    again = read_setup(tmp_path, save_setup(tmp_path, setup))
    assert [claim.history for claim in claims_of(again)] == [True]
    assert violations(again) == []


def test_its_proof_has_the_bound_of_any_other(tmp_path: Path) -> None:
    """The time is looked at while clingo is asked, too."""
    setup = setup_of(tmp_path, NEVER + PAST)
    now = iter(range(10**6))
    assert violations(setup, Deadline(1e6, lambda: next(now))) == []
    used = next(now)
    now = iter(range(10**6))
    with pytest.raises(TookTooLong):
        violations(setup, Deadline(used - 4, lambda: next(now)))


def test_the_key_is_true_or_false(tmp_path: Path) -> None:
    """Anything else is an error at its line."""
    with pytest.raises(InputError, match="12: history must be true or false"):
        setup_of(tmp_path, NEVER + 'history = "yes"\n')
    with pytest.raises(PolicyError, match="history must be true or false"):
        assertions_of(b"", (OF_LABELS + "history = 1\n").encode(), "p")
