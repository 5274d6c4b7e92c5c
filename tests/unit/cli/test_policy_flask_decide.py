"""`policy decide` with FLASK policies: one question, batches, booleans and stacks."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from skerry.cli.policy import policy
from skerry.cli.policy_batch import MAX_BATCH_LINE
from skerry.errors import InputError
from skerry.policy.load import load_policy
from skerry.xsm.flask.module import FlaskModule
from tests.support import policies
from tests.support.cli import SKERRY

DATA = Path(__file__).parents[1] / "policydb/data"
SMALL = str(DATA / "xen.30")
ONE, TWO = "user_1:vm_r:guest_t", "user_2:vm_r:guest_t"
DOM0 = "system_u:system_r:dom0_t"

ACM = """\
[policy]
name = "pair"
version = "1.0"
bootstrap = "dom0"
[simple-type-enforcement]
types = ["red", "blue"]
[labels]
dom0.ste = ["red", "blue"]
red.ste = ["red"]
blue.ste = ["blue"]
"""


def run(*words: str, given: str | bytes | None = None) -> Result:
    """Run a `policy` command."""
    return CliRunner().invoke(policy, words, input=given)


def batch(*words: str, given: str) -> list[dict[str, Any]]:
    """Return the answers to a batch."""
    result = run("decide", *words, "--batch", "-", given=given)
    assert result.exit_code == 0, result.exception
    return [json.loads(line) for line in result.stdout.splitlines()]


def problem(*words: str, given: str | bytes | None = None) -> tuple[int, str]:
    """Return line and message of the one mistake that a command must find."""
    result = run(*words, given=given)
    assert isinstance(result.exception, InputError), result.output
    (found,) = result.exception.problems
    return found.line, found.message


def test_one_question_is_explained() -> None:
    """An allow is 0 with its rule, a denial 3 with its constraint."""
    allowed = run("decide", "--policy", SMALL, DOM0, ONE, "domain", "pause")
    assert allowed.exit_code == 0
    assert "allow dom0_t domain_type:domain { pause };" in allowed.stdout
    denied = run("decide", "--policy", SMALL, ONE, TWO, "grant", "map_read", "--json")
    assert denied.exit_code == 3
    found = json.loads(denied.stdout)
    assert (found["code"], found["class"]) == ("CONSTRAINT-FALSE", "grant")
    assert "u1 = user_1, u2 = user_2" in found["sentence"]


def test_a_batch_gives_names_sorted_and_three_vectors() -> None:
    """The form that programs rely on, for Xen's default policy."""
    xen = str(policies.xen())
    line = f"{DOM0} system_u:system_r:domU_t domain\n"
    (answer,) = batch("--policy", xen, given=line)
    assert list(answer) == ["subject", "target", "class", "allowed", "auditallow", "dontaudit"]
    assert (answer["subject"], answer["class"]) == (DOM0, "domain")
    assert answer["allowed"] == sorted(answer["allowed"])
    assert {"create", "pause", "unpause"} <= set(answer["allowed"])
    security = batch("--policy", xen, given=f"{DOM0} system_u:system_r:security_t security\n")
    assert "load_policy" in security[0]["allowed"]


def test_a_batch_answers_as_single_questions_do() -> None:
    """Every pair of Xen's domain types and every class, permission by permission."""
    module = load_policy(policies.xen())
    assert isinstance(module, FlaskModule)
    contexts = ["system_u:system_r:domU_t", "user_1:vm_r:domU_t", "user_2:vm_r:domU_t",
                "system_u:system_r:isolated_domU_t", DOM0]  # fmt: skip
    asked = list(itertools.product(contexts, contexts, module.classes))
    lines = "".join(f"{one} {two} {tclass}\n" for one, two, tclass in asked)
    answers = batch("--policy", str(policies.xen()), given=lines)
    assert len(answers) == len(asked)
    for (one, two, tclass), answer in zip(asked, answers, strict=True):
        names = [name for name in module.classes[tclass].permissions if name]
        single = [n for n in sorted(names) if module.decide(one, two, tclass, (n,)).allowed]
        assert answer["allowed"] == single
        vectors = module.vectors(one, two, tclass)
        assert answer["auditallow"] == list(module.classes[tclass].names(vectors.auditallow))
        assert answer["dontaudit"] == list(module.classes[tclass].names(vectors.dontaudit))
    assert any(answer["allowed"] for answer in answers)
    assert not all(answer["allowed"] for answer in answers)


def test_the_classes_are_those_of_the_policy() -> None:
    """An SELinux policy's own class is known; one of Xen's that it lacks is not."""
    small = str(DATA / "small.33")
    module = load_policy(small)
    assert isinstance(module, FlaskModule)
    label = module.operator_label()
    (answer,) = batch("--policy", small, given=f"{label} {label} process\n")
    assert set(answer["allowed"]) <= {"transition", "dyntransition", "signal", "fork"}
    line, message = problem("decide", "--policy", small, label, label, "grant")
    assert message.startswith("no class 'grant'; known: ")
    line, message = problem(
        "decide", "--policy", small, "--batch", "-", given=f"\n{label} {label} grant\n"
    )
    assert (line, message[:16]) == (2, "no class 'grant'")
    _, message = problem("decide", "--policy", small, label, label, "process", "map_read")
    assert message.startswith("class process has no 'map_read'; it has ")


def test_booleans_are_set_for_one_question_and_for_a_batch() -> None:
    """The small policy lets guests share while a boolean is set, as it is in the file."""
    question = ("grant", "map_read")
    assert run("decide", "--policy", SMALL, ONE, ONE, *question).exit_code == 0
    off = ("--policy", SMALL, "--boolean", "guests_may_share=0")
    denied = run("decide", *off, ONE, ONE, *question)
    assert denied.exit_code == 3
    assert "not while guests_may_share = 0" in denied.stderr
    assert "map_read" not in batch(*off, given=f"{ONE} {ONE} grant\n")[0]["allowed"]
    on = ("--policy", SMALL, "--boolean", "guests_may_share=1")
    assert "map_read" in batch(*on, given=f"{ONE} {ONE} grant\n")[0]["allowed"]


@pytest.mark.parametrize(
    "setting", ["no_such=1", "guests_may_share=1 --boolean no_such=0", "GUESTS_MAY_SHARE=1"]
)
def test_an_unknown_boolean_is_an_input_error(setting: str) -> None:
    """The message lists those that there are."""
    options = f"--boolean {setting}".split()
    _, message = problem("decide", "--policy", SMALL, *options, ONE, ONE, "grant")
    assert message.endswith("it has: guests_may_share")


def test_a_boolean_needs_a_value_and_a_policy_that_has_some(tmp_path: Path) -> None:
    """Wrong usage is exit 2; an ACM policy has no booleans."""
    for setting in ("guests_may_share", "guests_may_share=2", "=1", "guests_may_share="):
        words = ("decide", "--policy", SMALL, "--boolean", setting, ONE, ONE, "grant")
        assert run(*words).exit_code == 2
    (tmp_path / "acm.toml").write_text(ACM)
    acm = ("--policy", str(tmp_path / "acm.toml"))
    _, message = problem("decide", *acm, "--boolean", "x=1", "red", "red", "event")
    assert "only a FLASK policy has booleans" in message


BAD_CONTEXTS = [
    ("user_1:vm_r:nobody_t", "no type 'nobody_t'"),
    ("user_1:vm_r", "is written user:role:type"),
    ("user_1:vm_r:guest_t:s0:c1", "is written user:role:type"),
    ("user_1:system_r:guest_t", "may not have the type"),
    ("x" * 3000, "1 to 2048 characters"),
]


@pytest.mark.parametrize(("context", "words"), BAD_CONTEXTS)
def test_what_is_no_context_is_an_input_error(context: str, words: str) -> None:
    """On either side, in a question and in a batch, which names the line."""
    for sides in ((context, ONE), (ONE, context)):
        result = run("decide", "--policy", SMALL, *sides, "grant")
        assert result.exception is not None
        assert words in str(result.exception)
        given = f"{ONE} {ONE} grant\n{sides[0]} {sides[1]} grant\n"
        line, message = problem("decide", "--policy", SMALL, "--batch", "-", given=given)
        assert (line, words in message) == (2, True)


def test_answers_before_a_bad_line_are_written() -> None:
    """What was asked well has its answer, though the batch ends with an error."""
    given = f"{ONE} {ONE} grant\n\n{ONE} {ONE} event\nnonsense\n{ONE} {ONE} grant\n"
    result = run("decide", "--policy", SMALL, "--batch", "-", given=given)
    assert isinstance(result.exception, InputError)
    assert result.exception.problems[0].line == 4
    assert [json.loads(line)["class"] for line in result.stdout.splitlines()] == ["grant", "event"]


@pytest.mark.parametrize(
    ("given", "line", "words"),
    [
        (b"\n\n\xff\xfe x y\n", 3, "not UTF-8"),
        (b"\n" + b"x" * (MAX_BATCH_LINE + 2), 2, "line longer than"),
        (b"\n" + b"x " * MAX_BATCH_LINE + b"\n", 2, "line longer than"),
        (b"\n" * 70_000 + b"one two", 70_001, "a line is SUBJECT TARGET CLASS"),
    ],
)
def test_a_line_that_cannot_be_read_is_told_with_its_number(
    given: bytes, line: int, words: str
) -> None:
    """Also beyond the first piece that is read at once."""
    found, message = problem("decide", "--policy", SMALL, "--batch", "-", given=given)
    assert (found, words in message) == (line, True)


def test_lines_may_end_in_any_way(tmp_path: Path) -> None:
    """Carriage returns, blanks, no newline at the end; from a file as from the input."""
    text = f"{ONE} {ONE} grant\r\n\t{ONE}   {ONE}\tevent"
    (tmp_path / "asked").write_text(text, newline="")
    result = run("decide", "--policy", SMALL, "--batch", str(tmp_path / "asked"))
    classes = [json.loads(line)["class"] for line in result.stdout.splitlines()]
    assert classes == ["grant", "event"]


def test_a_batch_answers_while_its_input_is_open() -> None:
    """A program may ask, read the answer, and ask again."""
    argv = [str(SKERRY), "policy", "decide", "--policy", SMALL, "--batch", "-"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdin and run.stdout
        for tclass in ("grant", "event"):
            run.stdin.write(f"{ONE} {ONE} {tclass}\n")
            run.stdin.flush()
            assert json.loads(run.stdout.readline())["class"] == tclass
        run.stdin.close()
        assert run.wait() == 0


def test_in_a_stack_all_must_allow(tmp_path: Path) -> None:
    """The answer names each module's; a batch gives what all of them allow."""
    (tmp_path / "acm.toml").write_text(ACM)
    stack = ("--policy", SMALL, "--policy", str(tmp_path / "acm.toml"))
    red, blue = f"acm=red,flask={ONE}", f"acm=blue,flask={ONE}"
    allowed = run("decide", *stack, red, red, "grant", "map_read")
    assert allowed.exit_code == 0
    assert "  flask: allows: guest_t may map_read guest_t (grant) [TE-ALLOWED]" in allowed.stdout
    assert "  acm: allows: " in allowed.stdout
    denied = run("decide", *stack, red, blue, "grant", "map_read", "--json")
    answers = json.loads(denied.stdout)["answers"]
    assert [(a["module"], a["allowed"]) for a in answers] == [("flask", True), ("acm", False)]
    lines = (
        f"{red} {red} grant\n{red} {blue} grant\nacm=red,flask={ONE} acm=red,flask={TWO} grant\n"
    )
    both, neither, users = batch(*stack, given=lines)
    assert {"map_read", "map_write"} <= set(both["allowed"])
    assert neither["allowed"] == []
    assert "map_read" not in users["allowed"]


def test_in_a_stack_a_label_without_a_part_is_a_mistake_in_typing(tmp_path: Path) -> None:
    """In a question and in a batch alike: the message says how to write the parts."""
    (tmp_path / "acm.toml").write_text(ACM)
    stack = ("--policy", SMALL, "--policy", str(tmp_path / "acm.toml"))
    whole = f"acm=red,flask={ONE}"
    for lacking, words in (
        ("red", "with several policies, write flask=...,acm=..."),
        ("acm=red", "on the command line flask=...,acm=..."),
        (f"flask={ONE}", "for module acm"),
    ):
        _, message = problem("decide", *stack, whole, lacking, "grant")
        assert words in message
        given = f"{whole} {whole} grant\n{lacking} {whole} grant\n"
        assert problem("decide", *stack, "--batch", "-", given=given) == (2, message)
    assert run("decide", *stack, whole, whole, "grant", "map_read").exit_code == 0


def test_a_batch_over_debians_policy_is_exact_for_its_classes() -> None:
    """Classes of SELinux, MLS contexts, dontaudit."""
    asked = "system_u:system_r:sshd_t:s0 system_u:object_r:shadow_t:s0 file\n"
    module = load_policy(policies.selinux())
    assert isinstance(module, FlaskModule)
    (answer,) = batch("--policy", str(policies.selinux()), given=asked)
    vectors = module.vectors(*asked.split())
    known = module.classes["file"]
    assert answer["dontaudit"] == list(known.names(vectors.dontaudit)) != []
    assert answer["allowed"] == list(known.names(vectors.allowed))
