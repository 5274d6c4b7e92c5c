"""`skerry policy`: what is printed, and the exit codes."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from skerry.cli.policy import policy
from skerry.errors import InputError, PolicyError
from skerry.policy.load import policy_bytes
from skerry.policy.signature import new_key, public_key, require_signed, sign
from tests.unit.policy.samples import CLASSICAL, TOML


@pytest.fixture
def banks(tmp_path: Path) -> str:
    """Write the two banks' policy and return its path."""
    (tmp_path / "banks.toml").write_text(TOML)
    return str(tmp_path / "banks.toml")


def _run(*words: str, given: str | None = None) -> Result:
    return CliRunner().invoke(policy, words, input=given)


def test_decide_explains_and_exits_by_the_answer(banks: str) -> None:
    """An allow is 0; a denial is 3, with its explanation on standard error and as an object."""
    allowed = _run("decide", "--policy", banks, "bank-a", "broker", "share")
    assert (allowed.exit_code, allowed.stdout[:8]) == (0, "allowed:")
    denied = _run("decide", "--policy", banks, "--json", "bank-a", "bank-b", "share")
    assert denied.exit_code == 3
    assert json.loads(denied.stdout)["code"] == "STE-NO-SHARED-TYPE"
    assert f"{banks}:20" in denied.stderr


def test_several_policies_must_all_allow(banks: str) -> None:
    """With the dummy module stacked, only dom0 may pause a domain."""
    words = ("broker", "bank-a", "domain", "pause")
    assert _run("decide", "--policy", banks, *words).exit_code == 0
    assert _run("decide", "--policy", banks, "--policy", "dummy", *words).exit_code == 3


def test_a_batch_answers_each_line_with_one_object(banks: str) -> None:
    """Permissions are listed by name, sorted; a refusal is an empty list."""
    lines = "bank-a broker share\n\nbank-a bank-b event\nbroker bank-a event\n"
    result = _run("decide", "--policy", banks, "--batch", "-", given=lines)
    assert result.exit_code == 0
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert answers[0] == {
        "subject": "bank-a",
        "target": "broker",
        "class": "share",
        "allowed": ["share"],
        "auditallow": [],
        "dontaudit": [],
    }
    assert [answer["allowed"] for answer in answers[1:]] == [
        [],
        ["bind", "create", "reset", "send", "status"],
    ]


@pytest.mark.parametrize("line", ["a b", "a b c", "a b share more", "a b " + "x" * 9000])
def test_a_bad_line_of_a_batch_is_told_with_its_number(banks: str, line: str) -> None:
    """Too few words, an unknown class, too many words, too long a line."""
    result = _run("decide", "--policy", banks, "--batch", "-", given=f"dom0 dom0 share\n{line}\n")
    assert isinstance(result.exception, InputError)
    assert result.exception.problems[0].line == 2


def test_wrong_questions_are_input_errors(banks: str) -> None:
    """Unknown classes, permissions and booleans are the user's to mend."""
    for words in (
        ("a", "b", "nonsense"),
        ("a", "b", "event", "nonsense"),
        ("--boolean", "x=1", "bank-a", "broker", "share"),
    ):
        assert isinstance(_run("decide", "--policy", banks, *words).exception, InputError)
    for usage in ("a b", "--boolean x=2 a b share", "--batch - a"):
        assert _run("decide", "--policy", banks, *usage.split()).exit_code == 2


def test_admit_asks_the_chinese_wall(banks: str) -> None:
    """Beside the rival it is refused, beside others it is not."""
    refused = _run("admit", "--policy", banks, "--running", "broker,bank-a", "bank-b", "--json")
    assert refused.exit_code == 3
    assert json.loads(refused.stdout)["code"] == "CW-CONFLICT"
    assert _run("admit", "--policy", banks, "--running", "broker", "bank-b").exit_code == 0
    assert _run("admit", "--policy", banks, "bank-b").exit_code == 0
    stacked = ("--policy", banks, "--policy", "dummy", "--running", "acm=bank-a,dummy=x;broker")
    assert _run("admit", *stacked, "acm=bank-b,dummy=x").exit_code == 3


def test_convert_goes_both_ways(tmp_path: Path) -> None:
    """XML to TOML to XML gives the same bytes as XML to XML."""
    (tmp_path / "p.xml").write_text(CLASSICAL)
    canonical = _run("convert", str(tmp_path / "p.xml"), "--to", "xml").stdout
    (tmp_path / "p.toml").write_text(
        _run("convert", str(tmp_path / "p.xml"), "--to", "toml").stdout
    )
    assert _run("convert", str(tmp_path / "p.toml"), "--to", "xml").stdout == canonical


def test_check_tells_errors_and_warnings(banks: str, tmp_path: Path) -> None:
    """A sound file is 0 and its warnings are shown; a broken one is a `PolicyError` (exit 2)."""
    assert _run("check", banks).exit_code == 0
    dead = tmp_path / "dead.toml"
    dead.write_text(
        TOML.replace('types = ["bank-a", "bank-b"]', 'types = ["bank-a", "bank-b", "x"]', 1)
    )
    assert f"warning: {dead}:7: dead" in _run("check", str(dead)).stderr
    assert len(json.loads(_run("check", "--json", str(dead)).stdout)["warnings"]) == 1
    dead.write_text("[policy]")
    assert isinstance(_run("check", str(dead)).exception, PolicyError)


def test_show_lists_digest_modules_and_labels(banks: str) -> None:
    """For people and as an object."""
    shown = json.loads(_run("show", "--policy", banks, "--json").stdout)
    assert shown["modules"][0]["labels"] == ["dom0", "bank-a", "bank-b", "broker"]
    text = _run("show", "--policy", banks).stdout
    assert shown["digest"] in text
    assert "dom0  (operator)" in text
    assert "resource:ledger-a" in text


def test_importing_the_commands_is_light() -> None:
    """The module brings in click and nothing of the policy machinery, nor asyncio or rich."""
    program = (
        "import sys, skerry.cli.policy; "
        "heavy = {'msgspec', 'asyncio', 'rich', 'qemu.qmp', 'xml.parsers.expat', 'tomllib'}; "
        "print(*(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout == "\n"


def test_a_batch_that_cannot_be_read_is_an_input_error(banks: str, tmp_path: Path) -> None:
    """A missing file and a folder are told in words, as everywhere."""
    for place in (tmp_path / "missing", tmp_path):
        result = _run("decide", "--policy", banks, "--batch", str(place))
        assert isinstance(result.exception, InputError)


def test_a_raw_signature_of_a_policy_is_added_to(banks: str, tmp_path: Path) -> None:
    """As OpenSSL writes it; both keys verify the policy then, as the first did before."""
    keys = [new_key() for _ in range(2)]
    for index, (private, _) in enumerate(keys):
        (tmp_path / str(index)).write_bytes(private)
    content, place = policy_bytes(banks), Path(f"{banks}.sig")
    place.write_bytes(base64.b64decode(sign(keys[0][0], content, "")))
    assert _run("sign", banks, "--key", str(tmp_path / "1"), "--add").exit_code == 0
    for _, public in keys:
        require_signed(public_key(public, ""), content, place.read_bytes(), banks)
