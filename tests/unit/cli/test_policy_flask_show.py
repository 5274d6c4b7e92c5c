"""`policy show` and `check` of FLASK policies: what they count and what they warn of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from skerry.cli.policy import policy
from tests.support import policies

SOURCE = """
class process
class file
sid kernel
sid security
class process { signal fork }
class file { read write }
attribute files;
attribute empty;
type a_t;
type b_t, files;
type idle_t;
type loose_t;
permissive loose_t;
bool asked false;
bool unasked true;
role r;
role r types { a_t b_t idle_t loose_t };
allow a_t files:file read;
allow a_t empty:file write;
if (asked) { allow a_t b_t:file write; }
user u roles r;
sid kernel u:r:a_t
sid security u:r:a_t
"""

# What `seinfo` of SETools 4.4.1 printed for the policies of Debian 12, by our words. Debian 13 has
# other policies, so only what both have in common is compared with these.
SEINFO_XEN = {
    "classes": 13, "permissions": 175, "types": 32, "attributes": 7, "users": 4, "roles": 3,
    "booleans": 2, "conditionals": 2, "allow": 163, "auditallow": 1, "dontaudit": 2,
    "type_transition": 132, "type_change": 0, "constraints": 2, "mls constraints": 0,
    "initial sids": 13,
}  # fmt: skip


def shown(path: Path) -> dict[str, Any]:
    """Return what `policy show --json` says of one policy."""
    result = CliRunner().invoke(policy, ["show", "--policy", str(path), "--json"])
    assert result.exit_code == 0
    (module,) = json.loads(result.stdout)["modules"]
    assert isinstance(module, dict)
    return module


def warnings(path: Path) -> list[str]:
    """Return the warnings of `policy check`, which must call the policy sound."""
    result = CliRunner().invoke(policy, ["check", str(path), "--json"])
    assert result.exit_code == 0, result.exception
    return [warning["message"] for warning in json.loads(result.stdout)["warnings"]]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small policy as text, with one thing of each kind that is worth a warning."""
    path = tmp_path / "small.te"
    path.write_text(SOURCE)
    return path


def test_counts_and_names_are_those_of_the_source(small: Path) -> None:
    """Rules of both branches count; booleans have their values; a permissive type is named."""
    found = shown(small)
    assert (found["target"], found["version"], found["mls"]) == ("selinux", 33, False)
    assert found["handle_unknown"] == "deny"
    assert found["types"] == ["a_t", "b_t", "idle_t", "loose_t"]
    assert found["attributes"] == ["empty", "files"]
    assert found["booleans"] == {"asked": False, "unasked": True}
    assert found["permissive"] == ["loose_t"]
    assert found["classes"] == {"file": ["read", "write"], "process": ["fork", "signal"]}
    assert (found["counts"]["allow"], found["counts"]["permissive"]) == (3, 1)
    assert found["operator"] == "u:r:a_t"


def test_xens_default_policy_is_counted_as_seinfo_counts_it() -> None:
    """Every number that seinfo prints and that is the same in every Debian."""
    counts = shown(policies.xen())["counts"]
    same = ("classes", "users", "roles", "booleans", "conditionals", "mls constraints")
    assert {name: counts[name] for name in same} == {name: SEINFO_XEN[name] for name in same}
    if counts["permissions"] == SEINFO_XEN["permissions"]:
        assert {name: counts[name] for name in SEINFO_XEN} == SEINFO_XEN


def test_the_text_has_counts_booleans_and_contexts(small: Path) -> None:
    """For people: version, target, each count and each boolean."""
    text = CliRunner().invoke(policy, ["show", "--policy", str(small)]).stdout
    for part in ("version: 33 (no MLS)", "target: selinux", "bool asked = 0", "bool unasked = 1",
                 "operator: u:r:a_t"):  # fmt: skip
        assert part in text


def test_check_warns_of_what_does_nothing(small: Path) -> None:
    """Types in no rule, rules over an empty attribute, booleans unasked, permissive types."""
    found = "\n".join(warnings(small))
    for part in (
        "no rule names: idle_t, loose_t",
        "so the rules give nothing: empty",
        "that no condition asks: unasked",
        "permissive, so nothing is refused to them: loose_t",
        "lacks the class grant, which is asked here; that is denied",
    ):
        assert part in found, found


def test_check_says_what_the_policy_is(small: Path) -> None:
    """One line: target, version, counts and how many warnings; damage is an error elsewhere."""
    line = CliRunner().invoke(policy, ["check", str(small)]).stdout
    assert line.startswith(f"{small}: sound, target selinux, version 33, no MLS, 2 classes, ")
    assert "4 types" in line
    whole = CliRunner().invoke(policy, ["check", str(policies.xen())])
    assert "target xen, version 30, no MLS, " in whole.stdout
    assert "lacks" not in whole.stderr


def test_debians_policy_is_counted() -> None:
    """A policy of real size: more than a hundred classes, thousands of types."""
    counts = shown(policies.selinux())["counts"]
    assert counts["classes"] > 100
    assert counts["types"] > 3_000
    assert counts["allow"] > 100_000
    assert min(counts["constraints"], counts["mls constraints"]) > 50
