"""`skerry policy diff --flows` with the options that say what counts as a flow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from skerry.cli.flow import flow
from skerry.cli.policy import policy
from skerry.errors import InputError
from tests.support.policies import compile_conf
from tests.unit.flow.sample import HEAD

TYPES = ("a_t", "b_t", "c_t", "d_t")
OLD = "allow a_t b_t:file getattr;"
NEW = """
allow a_t b_t:file { getattr write };
allow b_t c_t:process signal;
if (one) { allow c_t d_t:file write; }
"""


WITHOUT_DIR = HEAD.replace("class dir\n", "").replace("class dir { search add_name read }\n", "")


def compiled(folder: Path, name: str, rules: str, *more: str, head: str = HEAD) -> str:
    """Compile a policy of these rules."""
    types = [*TYPES, *more]
    lines = [head, *(f"type {one};" for one in types), "bool one false;" if "one" in rules else ""]
    lines += ["role r;", f"role r types {{ {' '.join(types)} }};", rules]
    lines += ["user u roles r;", "sid kernel u:r:a_t", "sid security u:r:a_t"]
    text = "\n".join(lines) + "\n"
    return str(compile_conf(text, folder / name, "selinux", 33))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """The policies of before and after; only the second has the boolean, e_t and the class dir."""
    return compiled(tmp_path, "old", OLD, head=WITHOUT_DIR), compiled(tmp_path, "new", NEW, "e_t")


def run(*words: str) -> Result:
    """Compare two policies' flows."""
    return CliRunner().invoke(policy, ["diff", *words, "--flows"])


def direct(*words: str) -> set[tuple[str, str]]:
    """Return the direct flows that the second policy has more; it has none less."""
    result = run(*words, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert {row["effect"] for row in rows} <= {"allowed"}
    return {
        (one, two)
        for row in rows
        if row["kind"] == "flow"
        for one in row["sources"]
        for two in row["targets"]
    }


def test_each_option_says_what_counts_in_both_policies(pair: tuple[str, str]) -> None:
    """As in `flow`: weight, classes, labels, booleans, and whole contexts in place of types."""
    both = {("a_t", "b_t"), ("b_t", "c_t")}
    assert direct(*pair) == both
    assert direct(*pair, "--min-weight", "10") == {("a_t", "b_t")}
    assert direct(*pair, "--exclude-class", "process") == {("a_t", "b_t")}
    assert direct(*pair, "--exclude", "a_t") == {("b_t", "c_t")}
    assert direct(*pair, "--boolean", "one=1") == {*both, ("c_t", "d_t")}
    assert direct(*pair, "--any-booleans") == {*both, ("c_t", "d_t")}
    assert direct(*pair, "--context", "u:r:[ab]_t") == {("u:r:a_t", "u:r:b_t")}


def test_a_map_of_the_users_own_counts(pair: tuple[str, str], tmp_path: Path) -> None:
    """With a signal that carries nothing, that flow is none; a map without the class is an error
    but for --skip-unknown."""
    text = CliRunner().invoke(flow, ["map", "--policy", pair[1]]).stdout
    start = text.index("class process ")
    end = text.find("\nclass ", start)
    own = tmp_path / "own.map"
    own.write_text(text[:start] + (text[end + 1 :] if end > 0 else ""))
    result = run(*pair, "--map", str(own))
    assert isinstance(result.exception, InputError)
    assert "process { signal }" in str(result.exception)
    assert direct(*pair, "--map", str(own), "--skip-unknown") == {("a_t", "b_t")}


def test_what_only_one_policy_has_is_left_out_there(pair: tuple[str, str]) -> None:
    """Its own type, class or boolean is no error; what neither has is one."""
    assert direct(*pair, "--exclude-class", "dir") == direct(*pair)
    assert direct(*pair, "--exclude", "e_t") == direct(*pair)
    assert direct(*pair, "--exclude", "[e]_t") == direct(*pair)
    for option, name, words in (
        ("--exclude", "nobody_t", "there is no label 'nobody_t'"),
        ("--exclude", "z*", "no label matches 'z*'"),
        ("--boolean", "two=1", "neither policy has a boolean two; they have: one"),
        ("--exclude-class", "socket", "the policy has no class 'socket'"),
    ):
        result = run(*pair, option, name)
        assert isinstance(result.exception, InputError), (option, result.output)
        assert words in str(result.exception)


@pytest.mark.parametrize(
    "words",
    [("--min-weight", "2"), ("--exclude", "a_t"), ("--exclude-class", "file"), ("--boolean", "x=1"),
     ("--any-booleans",), ("--skip-unknown",), ("--context", "u:*:*"), ("--map", "file")],
)  # fmt: skip
def test_the_options_go_with_flows_of_policies_alone(
    words: tuple[str, ...], pair: tuple[str, str]
) -> None:
    """Without --flows, and of a system, they are wrong usage: they would count for nothing."""
    for command in (["diff", *pair, *words], ["diff", *pair, "--flows", "--system", "s", *words]):
        result = CliRunner().invoke(policy, command)
        assert result.exit_code == 2
        assert "go with --flows of policies alone" in result.stderr
    contradiction = run(*pair, "--any-booleans", "--boolean", "one=1")
    assert contradiction.exit_code == 2
