"""The two forms of a policy: TOML's errors, and that both forms carry the same model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import PolicyError
from skerry.policy.acm_toml import read_acm_toml, write_acm_toml
from skerry.policy.lint import find_warnings
from skerry.policy.load import MAX_POLICY_BYTES, load_policy, parse_acm
from skerry.policy.shype import read_shype
from skerry.policy.shype_write import write_shype
from skerry.policy.source import load_stack
from skerry.xsm.acm.model import AcmPolicy
from skerry.xsm.acm.module import AcmModule
from tests.unit.policy.samples import CLASSICAL, DEFAULT, TOML, policies


@given(policies())
def test_xml_and_toml_carry_the_same_policy(policy: AcmPolicy) -> None:
    """Model to XML to model to TOML to model: equal apart from lines, and stable bytes."""
    from_xml = read_shype(write_shype(policy).encode(), "f")
    from_toml = read_acm_toml(write_acm_toml(from_xml).encode(), "g")
    assert from_xml.without_lines() == policy
    assert from_toml.without_lines() == policy
    assert write_shype(from_toml) == write_shype(policy)
    assert from_toml.digest() == from_xml.digest() == policy.digest()


def test_the_classical_policies_survive_both_forms() -> None:
    """Policies as sHype's manual and xend wrote them convert without loss."""
    for text in (CLASSICAL, DEFAULT, TOML):
        policy = parse_acm(text.encode(), "f")
        for written in (write_shype(policy), write_acm_toml(policy)):
            assert parse_acm(written.encode(), "f").without_lines() == policy.without_lines()


def test_history_is_written_in_a_namespace_of_its_own() -> None:
    """Only a policy that keeps a history names the extension; others are plain sHype."""
    assert 'skerry:history="true"' in write_shype(parse_acm(TOML.encode(), "f"))
    assert "skerry" not in write_shype(parse_acm(CLASSICAL.encode(), "f"))


def test_the_digest_tells_meanings_apart_and_nothing_else() -> None:
    """Comments, order and dates do not change it; a type of a label does."""
    digest = parse_acm(TOML.encode(), "f").digest()
    assert parse_acm(b"# a comment\n" + TOML.encode(), "g").digest() == digest
    assert parse_acm(TOML.replace('["bank-a", "bank-b"]', '["bank-b", "bank-a"]').encode(),
                     "f").digest() == digest  # fmt: skip
    assert parse_acm(TOML.replace("history = true\n", "").encode(), "f").digest() != digest


BAD = [
    ('name = "example.two-banks"\n', "", 1, "lacks the key 'name'"),
    ('version = "1.0"', 'version = "one"', 3, "major.minor"),
    ('version = "1.0"', "version = 1.0", 3, "version is not a text"),
    ('version = "1.0"', 'version = "1\\u00010"', 3, "major.minor"),
    ('bootstrap = "dom0"', 'bootstrap = "root"', 4, "bootstrap label 'root'"),
    ('bootstrap = "dom0"', 'bootstrap = "dom0"\nprimary = "wall"', 5, "primary is none of"),
    ('bootstrap = "dom0"', 'bootstrap = "dom0"\nfrom = { name = "x" }', 5, "lacks the key 'versi"),
    ('bootstrap = "dom0"', 'bootstrap = "dom0"\nurl = "a\\nb"', 2, "is not printable"),
    ("[policy]", "typo = 1\n[policy]", 1, "unknown key 'typo'"),
    ("[simple-type-enforcement]\ntypes", "[simple-type-enforcement]\ntype", 7, "unknown key"),
    ('types = ["bank-a", "bank-b"]', "types = []", 7, "at least one type"),
    ('types = ["bank-a", "bank-b"]', 'types = ["bank-a", "bank-b", 3]', 7, "not a text"),
    ('types = ["bank-a", "bank-b"]', 'types = ["bank-a", "bank-b",\n"bank-a"]', 8, "duplicate"),
    ('types = ["bank-a", "bank-b"]\nhistory', 'types = ["x"]\nhistory', 12, "undeclared Chinese"),
    ('types = ["bank-a", "bank-b"]\nhistory', "types = []\nhistory", 12, "has no types"),
    ("history = true", 'history = "yes"', 15, "history is not true or false"),
    ("history = true", "history = true\nsince = 3", 16, "unknown key 'since'"),
    ('cw = ["bank-a"]', 'cw = ["bank-a", "bank-b"]', 20, "2 types of the conflict set 'banks'"),
    ('cw = ["bank-a"]', 'cw = "bank-a"', 22, "cw is not a list of texts"),
    ('cw = ["bank-a"]', 'chinese = ["bank-a"]', 22, "unknown key 'chinese'"),
    ("[labels.broker]", '[labels."bro:ker"]', 28, "contains ':'"),
    ("[labels.broker]", '[labels." broker"]', 28, "spaces that cannot be shown"),
    ("[labels.broker]", "[labels.__NULL_LABEL__]", 28, "reserved"),
    ("[resources.ledger-a]\nste = ", "[resources.ledger-a]\nkind = ", 31, "lacks the key 'ste'"),
    ('ledger-a]\nste = "bank-a"', 'ledger-a]\nste = "x"', 31, "undeclared Simple Type"),
    ("[labels.broker]", "[labels.broker", 28, ""),
    ("[labels.broker]", "[labels.dom0]", 28, ""),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), BAD)
def test_a_mistake_in_toml_is_an_error_with_its_line(
    old: str, new: str, line: int, message: str
) -> None:
    """The unbroken text is a policy; broken in one place, it is refused at that line."""
    assert read_acm_toml(TOML.encode(), "f").name
    text = TOML.replace(old, new, 1)
    assert text != TOML
    with pytest.raises(PolicyError) as caught:
        read_acm_toml(text.encode(), "bad.toml")
    found = [problem for problem in caught.value.problems if message in problem.message]
    assert found, caught.value
    assert (found[0].file, found[0].line) == ("bad.toml", line)


_SOURCE = TOML.encode()


@given(st.lists(st.tuples(st.integers(0, len(_SOURCE)), st.integers(0, 9), st.binary(max_size=9))))
def test_mutated_toml_is_a_policy_or_a_policy_error(edits: list[tuple[int, int, bytes]]) -> None:
    """Whatever bytes are cut out or put in, nothing but `PolicyError` is raised."""
    content = _SOURCE
    for position, cut, put in edits:
        content = content[:position] + put + content[position + cut :]
    try:
        parse_acm(content, "f")
    except PolicyError as error:
        assert error.problems


def test_values_of_every_wrong_kind_are_policy_errors() -> None:
    """Any TOML value in the place of any other is told, not raised as something else."""
    values = ("1", "true", "1.5", "[]", "[[1]]", "{}", "{a=1}", "1979-05-27", '""', "9" * 5000)
    for line in TOML.splitlines():
        key, equals, _ = line.partition(" = ")
        for value in values if equals else ():
            text = TOML.replace(line, f"{key} = {value}", 1)
            try:
                read_acm_toml(text.encode(), "f")
            except PolicyError as error:
                assert error.problems
    with pytest.raises(PolicyError):
        read_acm_toml(b"policy = 1\nlabels = [1]\nresources = 2\nchinese-wall = []", "f")


def test_the_form_is_recognised_by_content(tmp_path: Path) -> None:
    """A file's name plays no part; compiled policies and nothing at all are told by name."""
    for name, content in (("a.toml", CLASSICAL), ("b.xml", TOML), ("c", "\ufeff" + TOML)):
        (tmp_path / name).write_text(content)
        assert isinstance(load_policy(tmp_path / name), AcmModule)
    assert load_policy("dummy").name == "dummy"
    for broken, message in (
        (bytes.fromhex("8cff7cf9") + b"XenFlask", "offset"),
        (bytes.fromhex("0001debc"), "compiled ACM policy"),
        (b" \n", "empty"),
        (b"a\0b", "nor XML nor TOML"),
        ("<a/>".encode("utf-16"), "nor XML nor TOML"),
    ):
        (tmp_path / "x").write_bytes(broken)
        with pytest.raises(PolicyError, match=message):
            load_policy(tmp_path / "x")


def test_only_regular_files_within_the_limit_are_read(tmp_path: Path) -> None:
    """A FIFO, a device, a folder, a missing and an endless file are refused without waiting."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "long").write_bytes(b"#" * (MAX_POLICY_BYTES + 1))
    for path, message in (
        (tmp_path / "fifo", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "none", "No such file"),
        (tmp_path / "long", "longer than"),
        (Path("a\0b"), "cannot be read"),
    ):
        with pytest.raises(PolicyError, match=message):
            load_policy(path)
    (tmp_path / "good").write_text(TOML)
    assert load_stack([tmp_path / "good", "dummy"]).names == ("acm", "dummy")


def test_a_stack_reports_the_mistakes_of_all_its_files(tmp_path: Path) -> None:
    """Two bad files give one error with the problems of both."""
    (tmp_path / "a").write_text("[policy")
    with pytest.raises(PolicyError) as caught:
        load_stack([tmp_path / "a", tmp_path / "none"])
    assert {problem.file for problem in caught.value.problems} == {
        str(tmp_path / "a"),
        str(tmp_path / "none"),
    }


def test_warnings_name_what_is_probably_not_meant() -> None:
    """Dead types, lonely labels, one-typed, repeated and shadowed sets; a clean one has none."""
    assert find_warnings(parse_acm(TOML.encode(), "f")) == []
    text = TOML.replace('version = "1.0"', 'version = "1-0"')
    text = text.replace('types = ["bank-a", "bank-b"]', 'types = ["bank-a", "bank-b", "dead"]', 2)
    text += """
[labels.alone]
ste = ["dead"]
[labels."with space"]
cw = ["bank-a", "bank-a"]
[[chinese-wall.conflicts]]
name = "banks"
types = ["bank-a", "bank-b"]
[[chinese-wall.conflicts]]
name = "one"
types = ["bank-a"]
"""
    found = "\n".join(str(warning) for warning in find_warnings(parse_acm(text.encode(), "f")))
    for part in (
        "not written as major.minor",
        "dead Chinese Wall type 'dead'",
        "'alone' can share with no other label",
        "'with space' has no Simple Type Enforcement type",
        "'with space' can't be named in lists",
        "lists the type 'bank-a' more than once",
        "'banks' is used 2 times",
        "'one' has one type",
        "'one' is shadowed by 'banks' (line 12)",
        "'banks' is shadowed by 'banks'",
    ):
        assert part in found, part
