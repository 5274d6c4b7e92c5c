"""What needs no node: checks, plans, usage, and what each command says where nothing runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import IN_SHELL, SKERRY, Cli
from tests.support.simulated import POLICY, SYSTEM, write_system


@pytest.fixture(scope="module")
def cli() -> Iterator[Cli]:
    """The command with a place of its own, where nothing runs."""
    made = Cli()
    write_system(made.home)
    yield made
    made.down()


def broken(cli: Cli, tmp_path: Path, *, system: str = SYSTEM, policy: str = POLICY) -> list[str]:
    """Return the lines of `up` for files that are wrong: exit 2, and nothing was started."""
    path = write_system(tmp_path, system, policy)
    done = cli.run("up", path, "--detach")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert not (cli.home / "run").exists()
    assert not (cli.home / "state/audit.log").exists()
    assert cli.processes() == {}
    return done.stderr.splitlines()


NEED_A_NODE = [
    ["down"], ["restart"], ["ps"], ["channels"], ["start", "red"], ["stop", "red"], ["kill", "red"],
    ["pause", "red"], ["resume", "red"], ["relabel", "red", "blue"], ["console", "red"],
    ["exec", "red", "--", "true"], ["connect", "red", "broker"], ["cut", "1"], ["policy", "show"],
]  # fmt: skip


@pytest.mark.parametrize("words", NEED_A_NODE, ids=" ".join)
def test_a_command_without_a_node_says_how_to_start_one(cli: Cli, words: list[str]) -> None:
    """Exit 1 and one line; with `--json` an object on standard output as well."""
    done = cli.run(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: no system is running here; start one with `skerry up SYSTEM --detach`\n"
    )


def test_json_is_on_the_output_and_text_on_the_error(cli: Cli) -> None:
    """A program reads standard output alone, also of a failure."""
    done = cli.run("ps", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"] == "no system is running here"
    assert done.stderr.startswith("error: ")


MEMORY = ("connect", "red", "broker", "--kind", "memory", "--size")

WRONG_USAGE = [
    (["frob"], "No such command"),
    (["start"], "Missing argument"),
    (["start", "-x"], "No such option"),
    (["exec", "--frob", "red", "--", "true"], "No such option"),
    (["exec", "red"], "Missing argument"),
    (["exec", "red", "--"], "no command after"),
    (["exec", "red", *["x"] * 300], "at most 256 words"),
    (["exec", "red", "x" * 3000], "at most 256 words"),
    (["exec", "--wait", "nan", "red", "true"], "not a span of time"),
    (["stop", "red", "--timeout", "-1"], "not in the range"),
    (["down", "--timeout", "1e9"], "not in the range"),
    (["kill", ""], "no domain's name"),
    (["kill", "x" * 65], "no domain's name"),
    (["kill", "a\x1b[31m"], "no domain's name"),
    (["cut", "one"], "not a channel's number"),
    (["cut", "--", "-1"], "not a channel's number"),
    (["connect", "red", "broker", "--name", "Bad_Name"], "a port's name has"),
    (["connect", "red", "broker", "--name", "skerry.agent"], "a port's name has"),
    (["connect", "red", "broker", "--kind", "pipe"], "is not one of"),
    ([*MEMORY, "8G"], "a memory's size is a power of two, from 4K to 1G"),
    ([*MEMORY, "3K"], "3K is none: a memory's size is a power of two"),
    ([*MEMORY, "12K"], "12K is none"),
    ([*MEMORY, "2K"], "2K is none"),
    ([*MEMORY, "0K"], "0K is none"),
    ([*MEMORY, "4"], "not a size such as"),
    (["why", "first"], "not a valid integer"),
    (["audit", "verify", "--head", "xyz"], "64 hexadecimal digits"),
    (["audit", "tail", "-n", "-1"], "not in the range"),
    (["policy", "convert", "FILE", "--to", "yaml"], "is not one of"),
]


@pytest.mark.parametrize(("words", "says"), WRONG_USAGE)
def test_wrong_usage_is_exit_2_and_says_what(cli: Cli, words: list[str], says: str) -> None:
    """Nothing of it reaches a node, and no message shows what stands inside the program."""
    done = cli.run(*words)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert says in done.stderr
    assert "malformed" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("size", ["4K", "1M", "1G"])
def test_the_size_of_a_memory_is_no_wrong_usage(cli: Cli, size: str) -> None:
    """The control: there it is the node that is missing."""
    done = cli.run(*MEMORY, size)
    assert done.returncode == 1
    assert "skerry up" in done.stderr


def test_help_is_on_every_command(cli: Cli) -> None:
    """The list of commands is that of the handbook, and each explains itself."""
    listed = cli.ok("--help")
    for words in [*NEED_A_NODE, ["check"], ["plan"], ["up"], ["image"], ["audit"], ["why"]]:
        assert words[0] in listed
    assert "Usage: skerry exec [OPTIONS] DOMAIN COMMAND..." in cli.ok("exec", "-h")
    assert "Exit codes: 0 done or allowed, 1 failed, 2 wrong usage" in listed


def test_check_reports_what_a_sound_system_holds(cli: Cli) -> None:
    """People get a line, programs the counts and the policy's digest."""
    path = str(cli.home / "system.toml")
    assert "4 domains, 2 channels, 1 assertion proven, no errors" in cli.ok("check", path)
    (found,) = cli.rows("check", path)
    assert (found["domains"], found["warnings"], len(found["policy"])) == (4, [], 64)


def test_plan_says_what_up_would_do_and_starts_nothing(cli: Cli) -> None:
    """Each step with its reason; what waits for a start by hand is marked."""
    path = str(cli.home / "system.toml")
    steps = {(s["action"], s["what"]): s for s in cli.rows("plan", path)}
    assert steps["start", "red"]["allowed"]
    blue = steps["start", "blue"]
    assert (blue["allowed"], blue["later"], blue["code"]) == (False, True, "CW-CONFLICT")
    assert steps["bind", "red ↔ broker (orders)"]["code"] == "STE-SHARED-TYPE"
    assert "refuse  blue (when it is started by hand)" in cli.ok("plan", path)
    assert cli.processes() == {}


def test_check_warns_of_what_the_policy_would_refuse(cli: Cli, tmp_path: Path) -> None:
    """It is no error, because `up` starts the rest; it is said all the same."""
    more = '\n[[channels]]\nkind = "stream"\nfrom = "clerk"\nto = "broker"\nname = "leak"\n'
    done = cli.run("check", write_system(tmp_path, SYSTEM + more))
    assert done.returncode == 0
    assert "warning: refused by the policy: bind clerk ↔ broker (leak)" in done.stderr


def test_every_error_of_a_system_file_is_named_with_its_line(cli: Cli, tmp_path: Path) -> None:
    """All at once, and nothing is started."""
    wrong = SYSTEM.replace('machine = "simulator"', 'machin = "simulator"', 1)
    wrong = wrong.replace('kind = "stream"', 'kind = "tube"', 1).replace(
        "autostart = false", "cpus = 0"
    )
    lines = broken(cli, tmp_path, system=wrong)
    path = tmp_path / "system.toml"
    assert len(lines) == 3
    assert lines[0].startswith(f"error: {path}:6: ")
    assert lines[1].startswith(f"error: {path}:19: ")
    assert lines[2].startswith(f"error: {path}:22: ")


def test_every_error_of_a_policy_is_named_with_its_line(cli: Cli, tmp_path: Path) -> None:
    """An unknown type, undeclared types in a conflict set, two types of one set in a label."""
    wrong = POLICY.replace('["red", "blue"]\n\n[labels', '["red", "green"]\n\n[labels')
    wrong = wrong.replace('ste = ["books"]', 'ste = ["cooks"]')
    lines = broken(cli, tmp_path, policy=wrong)
    path = tmp_path / "policy.toml"
    assert len(lines) == 2
    assert lines[0].startswith(f"error: {path}:13: ")
    assert "green" in lines[0]
    assert lines[1].startswith(f"error: {path}:27: ")
    assert "cooks" in lines[1]


def test_a_label_with_two_types_of_one_conflict_set_is_an_error(cli: Cli, tmp_path: Path) -> None:
    """Such a domain would conflict with itself."""
    (line,) = broken(cli, tmp_path, policy=POLICY.replace('cw = ["blue"]', 'cw = ["red", "blue"]'))
    assert "policy.toml:" in line
    assert "rivals" in line


def test_an_unknown_label_in_the_system_is_an_error_with_its_line(cli: Cli, tmp_path: Path) -> None:
    """It is never guessed; each one is named."""
    wrong = SYSTEM.replace('label = "clerk"', 'label = "clark"')
    lines = broken(cli, tmp_path, system=wrong.replace('label = "blue"', 'label = "bleu"'))
    assert [line.split(": ")[1] for line in lines] == [
        f"{tmp_path / 'system.toml'}:{n}" for n in (13, 17)
    ]
    assert "'clark'" in lines[0]


def test_an_assertion_that_does_not_hold_names_the_path(cli: Cli, tmp_path: Path) -> None:
    """Before anything starts, with place, rules and what to do: `check`, `plan` and `up` deny it in
    the words of a load (exit 3). The control: as it is written it holds."""
    path = write_system(tmp_path, SYSTEM.replace('except = ["red", "blue"]', ""), POLICY)
    for command in ("check", "plan", "up"):
        done = cli.run(command, path, "--json")
        assert done.returncode == 3, done.stderr
        text = done.stderr
        assert "never clerk -> broker does not hold: clerk -> red -> broker" in text
        assert f"rule:       assertion ({tmp_path / 'system.toml'}:34)" in text
        assert "flow: allows: red -> broker: possible as" in text
        assert "policy.toml:20)" in text
        assert "try:        change the rules of the path" in text
        found = json.loads(done.stdout)
        assert found["code"] == "ASSERTION-BROKEN"
        assert found["fix"]
        assert len(found["explanation"]["answers"]) == 3
    assert not (cli.home / "run").exists()
    assert not (cli.home / "state/audit.log").exists()
    assert cli.processes() == {}
    done = cli.run("check", write_system(tmp_path, SYSTEM, POLICY))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", ["/nonexistent.toml", "/", "/dev/null"])
@pytest.mark.parametrize("command", [["check"], ["plan"], ["up"], ["policy", "check"]], ids=str)
def test_a_file_that_cannot_be_read_is_a_wrong_file(
    cli: Cli, command: list[str], what: str
) -> None:
    """Exit 2 and its name; the problems are an object with `--json`."""
    done = cli.run(*command, what, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["problems"][0]["file"] == what
    assert done.stderr.startswith(f"error: {what}: ")


def test_policy_commands_decide_admit_and_convert(cli: Cli) -> None:
    """0 allowed, 3 denied with the reason and the rule's place, 2 for a class that is none."""
    policy = ["--policy", str(cli.home / "policy.toml")]
    assert cli.run("policy", "decide", *policy, "red", "broker", "share").returncode == 0
    why = cli.denied("policy", "decide", *policy, "clerk", "broker", "share")
    assert "[STE-NO-SHARED-TYPE]" in why
    assert "policy.toml:27" in why
    assert cli.run("policy", "decide", *policy, "red", "broker", "frob").returncode == 2
    cli.ok("policy", "admit", *policy, "--running", "broker,clerk", "red")
    denied = cli.run("policy", "admit", *policy, "--running", "red", "blue", "--json")
    assert denied.returncode == 3
    assert json.loads(denied.stdout)["code"] == "CW-CONFLICT"
    assert "[CW-CONFLICT]" in denied.stderr
    xml = cli.home / "policy.xml"
    xml.write_text(cli.ok("policy", "convert", str(cli.home / "policy.toml"), "--to", "xml"))
    assert cli.ok("policy", "convert", str(xml), "--to", "toml") == POLICY
    assert "sound, 5 labels" in cli.ok("policy", "check", str(xml))


def test_image_names_what_it_has_and_has_not(cli: Cli) -> None:
    """An unknown image is an error that says what there is or how to build it."""
    assert cli.ok("image", "list", "--cache", str(cli.home / "none")).split()[0] == "NAME"
    done = cli.run("image", "show", "minimal", "--cache", str(cli.home / "none"))
    assert done.returncode == 1
    assert "skerry image build minimal" in done.stderr
    assert "there is: minimal" in cli.run("image", "build", "windows").stderr


def test_a_trail_that_is_not_there_is_said(cli: Cli) -> None:
    """`audit` and `why` name the file they looked for."""
    for words in (["audit", "tail"], ["audit", "verify"], ["why", "1"]):
        done = cli.run(*words)
        assert done.returncode == 1
        assert "there is no audit trail" in done.stderr
    assert "is not a regular file" in cli.run("audit", "tail", "--file", "/").stderr


def test_a_socket_path_that_cannot_be_is_said(cli: Cli) -> None:
    """Neither a traceback nor 'no system is running'."""
    home = f"{cli.home}/{'x' * 100}"
    done = subprocess.run(
        [str(SKERRY), "ps"], env={**cli.env, "SKERRY_HOME": home}, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"too long for a socket" in done.stderr


@pytest.mark.parametrize("target", ["/dev/full", "closed pipe"])
@pytest.mark.parametrize("words", [["plan"], ["check", "--json"]], ids=str)
def test_an_output_that_takes_nothing_is_no_traceback(
    cli: Cli, words: list[str], target: str
) -> None:
    """A full disk is said; a reader that has gone needs no words."""
    shell = {"/dev/full": "{} > /dev/full", "closed pipe": "{} | true; exit ${{PIPESTATUS[0]}}"}
    line = shell[target].format(" ".join([IN_SHELL, *words, str(cli.home / "system.toml")]))
    env = cli.env | {"PYTHONUNBUFFERED": ""}  # as users have it: Python writes again at its end
    done = subprocess.run(["bash", "-c", line], env=env, capture_output=True, check=False)
    assert done.returncode in (0, 1)  # 0 where the reader went only after the last write
    assert done.stdout == b""
    assert done.stderr == (b"error: No space left on device\n" if "full" in target else b"")
