"""What a policy asserts: where it stands, what is read, and what is an error with its line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skerry.errors import PolicyError
from skerry.node.difference import is_other_policy
from skerry.node.kept import read_setup, save_setup
from skerry.node.setup import load_setup, make_setup, read_files
from skerry.policy.asserted import (
    MAX_WRITTEN,
    NOTHING,
    Assertions,
    assertions_of,
    read_assertions,
    write_assertions,
)
from skerry.policy.load import load_policy
from skerry.policy.source import (
    NewBooleans,
    NewPolicy,
    Source,
    changed,
    make_policy,
    read_policy,
)
from skerry.wire.system_files import MAX_ASSERTIONS, decode_files, encode_files
from tests.support import policies
from tests.support.simulated import POLICY, write_system

ONE = '[[assert]]\nnever = "clerk -> blue"\nexcept = ["red"]\n'
TWO = '[[assert]]\nnever = "broker -> clerk"\n'


def texts(asserted: Assertions | None) -> list[str] | None:
    """Return assertions as text."""
    return None if asserted is None else list(map(str, asserted.written))


def test_assertions_stand_in_a_policy_in_toml_and_beside_any() -> None:
    """Both count, each with its file and line; none at all and none on purpose are two things."""
    inside = POLICY + ONE
    found = assertions_of(inside.encode(), TWO.encode(), "p.toml")
    assert found is not None
    assert texts(found) == ["never clerk -> blue except red", "never broker -> clerk"]
    assert [one.file for one in found.written] == ["p.toml", "p.toml.assert"]
    lines = inside.splitlines()
    assert "never" in lines[found.written[0].line - 1]
    assert found.written[1].line == 2
    assert assertions_of(POLICY.encode(), b"", "p.toml") is None
    assert assertions_of(POLICY.encode(), b"assert = []", "p.toml") == NOTHING
    assert texts(assertions_of(b"<xml assert='never'/>", TWO.encode(), "p")) == texts(
        assertions_of(b"\0binary assert", TWO.encode(), "p")
    )


def test_what_a_policy_asserts_changes_no_decision() -> None:
    """The module made of it has the same digest, with and without."""
    digests = {
        make_policy([Source("p.toml", content.encode())]).stack.digest
        for content in (POLICY, POLICY + ONE)
    }
    assert len(digests) == 1


def test_what_counts_as_a_flow_is_written_beside_a_flask_policy(tmp_path: Path) -> None:
    """Weight and classes left out; inside a policy in TOML these keys are none."""
    beside = 'min-weight = 5\nexclude-classes = ["argo"]\ncontexts = ["u:*:*"]\n' + TWO
    found = assertions_of(b"\0", beside.encode(), "xen")
    assert found is not None
    assert (found.min_weight, found.exclude_classes) == (5, ("argo",))
    assert found.contexts == ("u:*:*",)
    wider = assertions_of(b"\0", beside.replace('"u:*:*"', '"*:*:*"').encode(), "xen")
    assert wider is not None
    assert wider.meaning() != found.meaning()
    assert found.within(found)
    assert not found.within(wider)
    (tmp_path / "p.toml").write_text("min-weight = 5\n" + POLICY + ONE)
    with pytest.raises(PolicyError, match="unknown key 'min-weight'"):
        load_policy(tmp_path / "p.toml")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[[assert]]\n", 1, "missing key 'never'"),
        ('[[assert]]\nnever = "a"\n', 2, 'never must be "A -> B"'),
        ('[[assert]]\nnever = "a -> "\n', 2, 'never must be "A -> B"'),
        ('[[assert]]\nnever = "a -> b -> c"\n', 2, 'never must be "A -> B"'),
        ("[[assert]]\nnever = 3\n", 2, 'never must be "A -> B"'),
        ('[[assert]]\nnever = "a -> b"\nexcept = "c"\n', 3, "except must be a list"),
        ('[[assert]]\nnever = "a -> b"\nexcept = []\n', 3, "except names nothing"),
        ('[[assert]]\nnever = "a -> b"\nexcept = [3]\n', 3, "except must hold texts"),
        ('[[assert]]\nnever = "a -> b"\nunless = ["c"]\n', 3, "unknown key 'unless'"),
        ("assert = 3\n", 1, "assert must be written [[assert]]"),
        ("[assert]\n", 1, "assert must be written [[assert]]"),
        ("# nothing\n", 0, "missing key 'assert'"),
        ("min-weight = 11\nassert = []\n", 1, "min-weight must be a number from 1 to 10"),
        ("map = 3\nassert = []\n", 1, "unknown key 'map'"),
        ("[[assert\n", 1, ""),
        ("\x00\n", 1, ""),
        ("[[assert]]\nnever = 'a -> b'\n" * (MAX_WRITTEN + 1), 1, f"more than {MAX_WRITTEN}"),
        ("#" * (MAX_ASSERTIONS + 1), 0, f"longer than {MAX_ASSERTIONS} bytes"),
        ("a = " + "[" * 10_000, 1, "nested deeper"),
    ],
)
def test_what_is_no_assertion_is_an_error_with_its_line(text: str, line: int, words: str) -> None:
    """Unknown keys, empty sides, wrong types, no TOML, too much: nothing is passed over."""
    with pytest.raises(PolicyError) as caught:
        assertions_of(POLICY.encode(), text.encode(), "p.toml")
    problem = caught.value.problems[0]
    assert (problem.file, problem.line) == ("p.toml.assert", line)
    assert words in problem.message


def test_a_key_is_read_however_it_is_written() -> None:
    """TOML has escapes, also in the names of tables, so the letters of `assert` may be missing."""
    for key in ('"\\u0061ssert"', '"\\U00000061\\u0073\\u0073ert"', "'assert'", "assert"):
        text = POLICY + ONE.replace("[[assert]]", f"[[{key}]]")
        found = assertions_of(text.encode(), b"", "p.toml")
        assert texts(found) == ["never clerk -> blue except red"]
        wrong = text.replace("clerk -> blue", "clerk")
        with pytest.raises(PolicyError, match="never must be"):
            assertions_of(wrong.encode(), b"", "p.toml")
    assert assertions_of(POLICY.encode() + b'# "\\u0061"\n', b"", "p.toml") is None
    assert assertions_of(b"\xef\xbb\xbf<xml a='\\assert'/>", b"", "p.xml") is None


def test_every_problem_is_found_at_once() -> None:
    """In the file's order."""
    text = '[[assert]]\nnever = "a"\n[[assert]]\nnever = "b"\nx = 1\n'
    with pytest.raises(PolicyError) as caught:
        assertions_of(b"", text.encode(), "p")
    assert [problem.line for problem in caught.value.problems] == [2, 4, 5]
    with pytest.raises(PolicyError, match="not readable as TOML"):
        assertions_of(b"", b"\xff\xfe", "p")


def test_only_a_regular_file_that_holds_something_is_read(tmp_path: Path) -> None:
    """None is none; an empty one, a folder, a FIFO and one too long are errors, not none."""
    path, beside = tmp_path / "p.toml", tmp_path / "p.toml.assert"
    assert read_assertions(path) == b""
    beside.write_text(ONE)
    assert read_assertions(path) == ONE.encode()
    beside.write_text("")
    with pytest.raises(PolicyError, match="is empty"):
        read_assertions(path)
    beside.write_text("#" * (MAX_ASSERTIONS + 1))
    with pytest.raises(PolicyError, match="longer than"):
        read_assertions(path)
    beside.unlink()
    beside.mkdir()
    with pytest.raises(PolicyError, match="not a regular file"):
        read_assertions(path)
    beside.rmdir()
    os.mkfifo(beside)
    with pytest.raises(PolicyError, match="not a regular file"):
        read_assertions(path)


def test_what_is_written_is_read_back_as_the_same() -> None:
    """Names with quotes, commas and other letters come back."""
    text = ONE + "[[assert]]\nnever = 'a\"b -> c,ö'\nexcept = ['x \\ y', 'z']\n"
    found = assertions_of(b"", text.encode(), "p")
    assert found is not None
    again = assertions_of(b"", write_assertions(found).encode(), "p")
    assert again is not None
    assert again.meaning() == found.meaning()


def test_assertions_go_along_to_a_node_and_into_what_it_keeps(tmp_path: Path) -> None:
    """From the file over the wire to the setup, and back from a kept one; another makes another
    policy of it."""
    path = Path(write_system(tmp_path))
    plain = load_setup(path)
    (tmp_path / "policy.toml.assert").write_text(ONE)
    _, files = read_files(path)
    made = make_setup(decode_files(encode_files(files)))
    assert texts(made.policy.sources[0].assertions) == ["never clerk -> blue except red"]
    assert load_setup(path).policy.sources == made.policy.sources
    kept = read_setup(tmp_path, save_setup(tmp_path, made))
    assert kept.policy.sources == made.policy.sources
    assert is_other_policy(plain, made)
    assert not is_other_policy(kept, made)


def test_a_policy_without_assertions_keeps_those_in_force(tmp_path: Path) -> None:
    """Also over a change of booleans; its own take their place, and `assert = []` ends them."""
    (tmp_path / "policy.toml").write_text(POLICY + ONE)
    (tmp_path / "xen.30").write_bytes(policies.xen().read_bytes())
    (tmp_path / "xen.30.assert").write_text('[[assert]]\nnever = "domU_t -> isolated_domU_t"\n')
    policy = read_policy([tmp_path / "policy.toml", tmp_path / "xen.30"])
    kept = [source.assertions for source in policy.sources]
    booleans = changed(policy, NewBooleans({"prot_doms_locked": True}))
    assert [source.assertions for source in booleans.sources] == kept
    version = POLICY.replace('"1.0"', '"1.1"').encode()
    assert [s.assertions for s in changed(policy, NewPolicy("n", version)).sources] == kept
    other = changed(policy, NewPolicy("n", version, assertions=TWO.encode()))
    assert texts(other.sources[0].assertions) == ["never broker -> clerk"]
    assert other.sources[1].assertions == kept[1]
    ended = changed(policy, NewPolicy("n", version, assertions=b"assert = []"))
    assert texts(ended.sources[0].assertions) == []
    with pytest.raises(PolicyError, match="missing key"):
        changed(policy, NewPolicy("n", version, assertions=b"[[assert]]"))


RENAMES = """
[policy]
name = "m"
version = "1.0"
bootstrap = "sys"
[simple-type-enforcement]
types = ["s", "a", "p"]
[labels.sys]
ste = ["s"]
[labels.bank-a]
ste = ["a"]
[labels.public]
ste = ["p"]
"""
UPDATE = RENAMES.replace(
    'version = "1.0"', 'version = "2.0"\nfrom = { name = "m", version = "1.0" }'
)
WIDER = '[labels.bank-x]\nfrom = "bank-a"\nste = ["a", "p"]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (UPDATE.replace('ste = ["a"]', 'ste = ["s"]') + WIDER, r"bank-a \(renamed to bank-x\)"),
        (
            UPDATE.replace("[labels.bank-a]\n", '[labels.bank-a]\nfrom = "public"\n'),
            r"bank-a \(now another label\)",
        ),
        (RENAMES.replace('[labels.bank-a]\nste = ["a"]\n', "") + WIDER, r"bank-a \(renamed"),
    ],
)
def test_a_rename_does_not_empty_assertions_that_stay_in_force(text: str, words: str) -> None:
    """They are written anew under the new names, or ended on purpose. The controls: an update that
    renames nothing keeps them, one of a policy without any may rename, and so may one with its own.
    """
    never = '[[assert]]\nnever = "bank-a -> public"\n'
    written = assertions_of(b"", never.encode(), "p")
    policy = make_policy([Source("p", RENAMES.encode(), assertions=written)])
    with pytest.raises(PolicyError, match=words) as caught:
        changed(policy, NewPolicy("n", text.encode()))
    assert "n.assert" in str(caught.value)
    kept = changed(policy, NewPolicy("n", UPDATE.encode()))
    assert kept.sources[0].assertions == written
    changed(policy, NewPolicy("n", RENAMES.encode()))
    own = b"assert = []"
    assert changed(policy, NewPolicy("n", text.encode(), assertions=own)).sources[0].assertions
    changed(make_policy([Source("p", RENAMES.encode())]), NewPolicy("n", text.encode()))


def test_a_type_that_becomes_an_alias_does_not_empty_them_either(tmp_path: Path) -> None:
    """A pattern would not find it under its other name. The control keeps the name."""
    text = policies.XEN_CLASSES + (
        "type bank_t; type other_t; role r; role r types { bank_t other_t };\n"
        "allow bank_t bank_t:domain { create transition };\n"
        "user u roles r;\nsid kernel u:r:bank_t\nsid security u:r:bank_t\n"
    )

    def made(text: str, name: str) -> bytes:
        return policies.compile_conf(text, tmp_path / name, "selinux", 33).read_bytes()

    written = assertions_of(b"", b'[[assert]]\nnever = "bank_t -> other_t"\n', "p")
    policy = make_policy([Source("p", made(text, "p"), assertions=written)])
    renamed = text.replace("type bank_t;", "type x_t alias bank_t;")
    with pytest.raises(PolicyError, match=r"bank_t \(now an alias of x_t\)"):
        changed(policy, NewPolicy("n", made(renamed, "renamed")))
    kept = made(text.replace("type bank_t;", "type bank_t alias x_t;"), "kept")
    assert changed(policy, NewPolicy("n", kept)).sources[0].assertions == written
