"""Role dominance, in a compiled policy that is kept.

Debian 13's checkpolicy no longer knows the statement; the format and the kernels still do.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.policy.policydb.read import read_policydb
from tests.oracle.worker import Task, total
from tests.unit.flask.small import Asked

COMPILED = Path(__file__).parent / "data/roles.30"
EVERY = {"append", "execute", "read", "write"}


@pytest.mark.parametrize(
    ("one", "two", "refused"),
    [
        ("top_r:app_t", "low_r:app_t", {"write", "append"}),
        ("top_r:app_t", "side_r:tool_t", {"write", "append"}),
        ("mid_r:app_t", "low_r:app_t", {"write", "append", "execute"}),
        ("low_r:app_t", "mid_r:app_t", {"read", "append", "execute"}),
        ("mid_r:app_t", "side_r:tool_t", {"read", "write", "execute"}),
        ("low_r:app_t", "low_r:app_t", {"append"}),
    ],
)
def test_a_role_dominates_what_lies_under_it(one: str, two: str, refused: set[str]) -> None:
    """Dominance goes all the way down, and to oneself; roles beside are incomparable."""
    asked = Asked(read_policydb(COMPILED.read_bytes(), COMPILED.name), {}, None)
    assert set(asked.names(f"one_u:{one}", f"one_u:{two}", "file")) == EVERY - refused


def test_dominance_is_decided_as_libsepol_does() -> None:
    """The same, over questions at random; and without its constraints it would not be."""
    tally = total([Task("decisions", 1, 1_000, str(COMPILED))])
    assert tally.mismatches == []
    assert tally.constrained > 300
    assert total([Task("decisions", 1, 1_000, str(COMPILED), broken="constraints")]).differing > 0
