"""The commands against a running node: what they print, for people and as JSON, and exit codes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from contextlib import suppress

import pytest

from tests.support.cli import IN_SHELL, SKERRY, Cli


def states(node: Cli) -> dict[str, str]:
    """Return each domain's state."""
    return {row["name"]: row["state"] for row in node.rows("ps")}


def failed(node: Cli, *words: str) -> str:
    """Run a command that must fail with exit 1 and nothing on its output; return its line."""
    done = node.run(*words)
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_up_twice_changes_nothing_and_says_so(node: Cli) -> None:
    """The same file again, with or without --detach, and its plan: all goes on as it is."""
    before, system = node.processes(), str(node.home / "system.toml")
    for more in ([], ["--detach"]):
        said = node.ok("up", system, *more)
        assert said == "nothing to change: 3 domains and 1 channel went on untouched\n"
    assert node.ok("plan", system) == "nothing to change\n"
    assert node.processes() == before
    assert states(node)["red"] == "running"


def test_ps_and_channels_show_what_runs(node: Cli) -> None:
    """Columns for people, one object a line for programs."""
    text = node.ok("ps").splitlines()
    assert text[0].split() == ["NAME", "LABEL", "MACHINE", "STATE", "MEMORY", "SINCE", "REASON"]
    assert text[2].split()[:5] == ["red", "red", "simulator", "running", "192M"]
    rows = node.rows("ps")
    assert [row["state"] for row in rows] == ["running", "running", "running", "defined"]
    assert rows[3]["seconds"] is None
    (channel,) = node.rows("channels")
    assert (channel["source"], channel["sink"], channel["port"]) == ("red", "broker", "orders")
    assert f"{channel['id']}   stream  red ↔ broker  orders" in node.ok("channels")


def test_exec_gives_output_and_exit_code(node: Cli) -> None:
    """What the command printed goes where it printed it; its exit code is ours."""
    done = node.run("exec", "red", "--", "echo", "-n", "--json", "--", "x")
    assert (done.stdout, done.stderr, done.returncode) == ("-n --json -- x\n", "", 0)
    assert node.run("exec", "red", "false").returncode == 1
    done = node.run("exec", "red", "--", "--", "frob")
    assert (done.stdout, done.returncode) == ("", 127)
    assert node.ok("exec", "--", "red", "echo", "hi") == "hi\n"
    assert node.run("exec", "nope", "echo", "--json").stdout == ""


def test_a_channel_is_bound_used_and_cut(node: Cli) -> None:
    """`connect` prints the id; what is queued when it is cut is discarded and counted."""
    number = node.ok("connect", "broker", "red", "--name", "more").strip()
    node.ok("exec", "red", "send", "more", "hello")
    assert node.ok("exec", "broker", "recv", "more") == "hello"
    node.ok("exec", "red", "send", "more", "lost")
    assert node.ok("cut", number) == f"channel {number} is cut; 4 queued bytes were discarded\n"
    assert "there is no channel" in failed(node, "cut", number)
    (made,) = node.rows("connect", "red", "clerk")
    assert made["port"] == f"ch{made['id']}"
    assert made["state"] == "live"
    assert node.rows("cut", str(made["id"])) == [{"channel": made["id"], "drained": 0}]


def test_a_refused_channel_is_explained_and_recorded(node: Cli) -> None:
    """Exit 3; the same words on standard error, as an object, and in the trail."""
    done = node.run("connect", "clerk", "broker", "--json")
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert found["code"] == found["explanation"]["code"] == "STE-NO-SHARED-TYPE"
    assert "have no type in common [STE-NO-SHARED-TYPE]" in done.stderr
    assert "policy.toml:27" in done.stderr
    why = node.ok("why", str(found["record"]))
    assert done.stderr.strip() in why
    (record,) = node.rows("why", str(found["record"]))
    assert record["fields"]["why"]["sentence"] == found["error"]
    assert len(node.rows("channels")) == 1


def test_pause_and_resume_stop_and_go_on(node: Cli) -> None:
    """A paused domain keeps its channels; each call in the wrong state names both states."""
    assert node.ok("pause", "clerk") == "clerk is paused\n"
    assert "clerk is paused: cannot pause it" in failed(node, "pause", "clerk")
    assert node.rows("resume", "clerk") == [{"domain": "clerk", "state": "running"}]
    assert "clerk is running: cannot resume it" in failed(node, "resume", "clerk")


def test_the_wall_refuses_the_rival_until_the_first_has_ended(node: Cli) -> None:
    """stop, start, kill, and what `ps` says of the ended ones."""
    assert "[CW-CONFLICT]" in node.denied("start", "blue")
    assert node.ok("stop", "red") == "red has ended: the guest switched off\n"
    assert node.rows("kill", "clerk") == [{"domain": "clerk", "state": "ended"}]
    for words in (["stop", "red"], ["kill", "red"], ["pause", "red"], ["exec", "red", "true"]):
        assert "ended" in failed(node, *words)
    (started,) = node.rows("start", "blue")
    assert [channel["port"] for channel in started["bound"]] == ["blue-orders"]
    assert "blue is already running" in failed(node, "start", "blue")
    assert "[CW-CONFLICT]" in node.denied("start", "red")
    reasons = {row["name"]: row["reason"] for row in node.rows("ps")}
    assert (reasons["red"], reasons["clerk"]) == ("the guest switched off", "killed")
    assert node.ok("kill", "blue") == "blue has ended\n"
    assert node.ok("start", "red").splitlines()[0] == "red is running"
    node.ok("start", "clerk")


def test_relabel_cuts_what_the_new_label_may_not_have(node: Cli) -> None:
    """It names what was kept and cut; an unknown label is denied and recorded."""
    (one,) = node.rows("connect", "red", "clerk")
    orders = next(row["id"] for row in node.rows("channels") if row["port"] == "orders")
    said = node.ok("relabel", "red", "clerk").splitlines()
    assert said[0].startswith("red is now clerk (record ")
    assert said[1:] == [f"cut: channel {orders}", f"kept: channel {one['id']}"]
    assert [row["label"] for row in node.rows("ps") if row["name"] == "red"] == ["clerk"]
    assert "[LABEL-UNKNOWN]" in node.denied("relabel", "red", "mauve")
    assert "[LABEL-UNKNOWN]" in node.ok("audit", "tail", "-n", "1")
    node.ok("relabel", "red", "red")
    node.ok("cut", str(one["id"]))
    node.ok("connect", "red", "broker", "--name", "orders")


@pytest.mark.parametrize(
    "words",
    [
        ["start", "nope"], ["stop", "nope"], ["kill", "nope"], ["pause", "nope"],
        ["resume", "nope"], ["relabel", "nope", "red"], ["console", "nope"],
        ["exec", "nope", "--", "true"], ["connect", "nope", "red"], ["connect", "red", "nope"],
        ["kill", "--", "--help"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_unknown_domain_is_named(node: Cli, words: list[str]) -> None:
    """Every command says which name it did not find, and what to look at."""
    said = failed(node, *words)
    assert ("nope" in said) or ("--help" in said)
    assert ";" in said, "the second half says what to do"


def test_other_wrong_names_are_one_clear_line(node: Cli) -> None:
    """Channels, ports and kinds that are not there or taken."""
    assert "there is no channel 99; `skerry channels` lists them" in failed(node, "cut", "99")
    assert "red cannot have a channel to itself" in failed(node, "connect", "red", "red")
    taken = failed(node, "connect", "red", "broker", "--name", "orders")
    assert "red already has a port orders" in taken
    memory = ("connect", "red", "broker", "--kind", "memory")
    assert "a memory has a size" in failed(node, *memory)
    assert "a link goes both ways" in failed(node, *memory[:-1], "link", "--one-way")
    dropping = ("connect", "red", "broker", "--overflow", "drop")
    assert "--overflow drop goes with --one-way" in node.run(*dropping).stderr
    assert len(node.rows("channels")) == 1


def test_a_one_way_stream_is_bound_listed_and_cut(node: Cli) -> None:
    """Its arrow is one-way, `--verbose` says what still comes back, and it carries one way."""
    blocking = node.ok("connect", "red", "broker", "--one-way", "--name", "up").strip()
    dropping = node.ok(
        "connect", "red", "broker", "--one-way", "--overflow", "drop", "--name", "lossy"
    ).strip()
    node.ok("exec", "red", "--", "send", "up", "hello")
    assert node.ok("exec", "broker", "--", "recv", "up") == "hello"
    rows = {row["id"]: row for row in node.rows("channels")}
    assert rows[int(blocking)]["overflow"] == "block"
    assert rows[int(blocking)]["back_bits_s"] > 0
    assert rows[int(dropping)]["back_bits_s"] == 0
    text = node.ok("channels", "--verbose")
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert "red → broker" in lines[blocking]
    assert lines[blocking].endswith("kbit/s")
    assert lines[dropping].endswith("drop      none")
    assert "as measured on the machine that Skerry is made on, no bound for this one" in text
    assert "OVERFLOW" not in node.ok("channels")
    for number in (blocking, dropping):
        node.ok("cut", number)


def test_the_policy_in_force_is_shown(node: Cli) -> None:
    """Digest, generation, modules and labels."""
    text = node.ok("policy", "show")
    assert "generation: 1" in text
    assert "broker" in text
    (shown,) = node.rows("policy", "show")
    assert shown["generation"] == 1
    assert shown["digest"] in text
    assert shown["modules"][0]["module"] == "acm"


def test_the_trail_is_shown_and_proven(node: Cli) -> None:
    """`tail` one line or object a record, `verify` the chain up to a known head, `why` one."""
    rows = node.rows("audit", "tail", "-n", "100000")
    assert [row["n"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0]["event"] == "up"
    (proof,) = node.rows("audit", "verify")
    assert proof["count"] >= len(rows)
    assert "records proven" in node.ok("audit", "verify", "--head", proof["head"])
    assert "record 3" in node.ok("why", "3")
    assert "no record 999999" in failed(node, "why", "999999")
    assert node.run("audit", "verify", "--head", "f" * 64).returncode == 1


def test_a_console_shows_the_guest_and_ends_with_its_key(node: Cli) -> None:
    """Ctrl-] on a terminal leaves with exit 0, and the terminal is as it was."""
    leader, terminal = pty.openpty()
    with subprocess.Popen(
        [SKERRY, "console", "red"], env=node.env, stdin=terminal, stdout=subprocess.PIPE, stderr=2
    ) as console:
        assert console.stdout is not None
        assert console.stdout.read(8) == b"red runs"
        os.write(leader, b"\x1d")
        assert console.wait(10) == 0
    os.close(leader)
    os.close(terminal)


def test_an_open_session_ends_with_its_domain_and_says_why(node: Cli) -> None:
    """`exec` and `console` of a killed domain are denied at once with the reason."""
    session = node.popen("exec", "clerk", "--", "recv", "nothing")
    session.communicate(timeout=10)
    assert session.returncode == 1, "the control: a command ends by itself"
    number = node.ok("connect", "red", "clerk", "--name", "quiet").strip()
    session = node.popen("exec", "clerk", "--", "recv", "quiet")
    time.sleep(0.5)
    node.ok("kill", "clerk")
    out, _ = session.communicate(timeout=10)
    assert session.returncode in (1, 3), out
    assert "killed" in out or "over" in out
    assert "there is no channel" in failed(node, "cut", number)
    node.ok("start", "clerk")


def test_a_client_that_is_interrupted_says_so(node: Cli) -> None:
    """Ctrl-C in a command that waits is exit 130 without a traceback."""
    number = node.ok("connect", "red", "broker", "--name", "idle").strip()
    waiting = node.popen("exec", "broker", "--", "recv", "idle")
    time.sleep(0.5)
    waiting.send_signal(signal.SIGINT)
    out, _ = waiting.communicate(timeout=10)
    assert (waiting.returncode, out.strip()) == (130, "interrupted")
    node.ok("cut", number)


def test_output_to_a_closed_pipe_is_silent(node: Cli) -> None:
    """A reader that goes early is no reason for a traceback."""
    for words in ("audit tail -n 1000", "ps --json", "exec red echo x", "kill nope --json"):
        done = subprocess.run(
            ["bash", "-c", f"{IN_SHELL} {words} | true"],
            env=node.env,
            capture_output=True,
            check=True,
        )
        assert b"Traceback" not in done.stderr
        assert b"Exception" not in done.stderr


def test_down_stops_all_and_leaves_nothing(node: Cli) -> None:
    """No process, no socket; a second `down` has nothing to do. (The last test of this node.)"""
    assert node.processes(), "the control: it ran"
    (result,) = node.rows("down")
    assert sorted(result["stopped"]) == ["broker", "clerk", "red"]
    until = time.monotonic() + 5
    while node.processes() and time.monotonic() < until:
        time.sleep(0.05)
    assert node.processes() == {}
    assert not (node.home / "run/control.sock").exists()
    assert "no system is running here" in failed(node, "down")
    with suppress(FileNotFoundError):
        assert list((node.home / "run").iterdir()) == []
    last = [row["event"] for row in node.rows("audit", "tail", "-n", "2")]
    assert last == ["down", "checkpoint"]
