"""What a policy is made from: it can be made again, to the digest, also after changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.errors import PolicyError
from skerry.policy.source import (
    NewBooleans,
    NewPolicy,
    Source,
    changed,
    make_policy,
    read_policy,
)
from tests.unit.policy.samples import TOML

DATA = Path(__file__).parents[1] / "policydb/data"

WAS = True
"""The boolean `guests_may_share` in the policy `xen.30`."""


def test_the_same_sources_make_the_same_stack(tmp_path: Path) -> None:
    """A compiled policy, a text and the module without a file; booleans set since count."""
    (tmp_path / "acm.toml").write_text(TOML)
    policy = read_policy([tmp_path / "acm.toml", str(DATA / "xen.30"), "dummy"])
    again = make_policy(policy.sources)
    assert again.stack.digest == policy.stack.digest
    set_ = changed(policy, NewBooleans({"guests_may_share": not WAS}))
    assert set_.stack.digest != policy.stack.digest
    assert make_policy(set_.sources).stack.digest == set_.stack.digest
    back = changed(set_, NewBooleans({"guests_may_share": WAS}))
    assert make_policy(back.sources).stack.digest == policy.stack.digest


def test_a_change_replaces_the_source_of_its_module_alone(tmp_path: Path) -> None:
    """The other modules keep theirs, with the booleans that were set in them."""
    (tmp_path / "acm.toml").write_text(TOML)
    policy = changed(
        read_policy([str(DATA / "xen.30"), tmp_path / "acm.toml"]),
        NewBooleans({"guests_may_share": not WAS}),
    )
    wider = TOML.replace('"1.0"', '"1.1"').encode()
    new = changed(policy, NewPolicy("wider.toml", wider))
    assert new.sources[0] is policy.sources[0]
    assert new.sources[1] == Source("wider.toml", wider)
    assert make_policy(new.sources).stack.digest == new.stack.digest


def test_every_problem_of_every_source_is_reported(tmp_path: Path) -> None:
    """A file that is missing hides nothing of one that is wrong."""
    (tmp_path / "bad.toml").write_text("[policy]\n")
    with pytest.raises(PolicyError) as caught:
        read_policy([tmp_path / "none", tmp_path / "bad.toml"])
    files = {problem.file for problem in caught.value.problems}
    assert files == {str(tmp_path / "none"), str(tmp_path / "bad.toml")}
