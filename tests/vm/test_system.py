"""The first running system, by the command line, seen from inside the guests."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli, left_of

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def banks() -> Iterator[Cli]:
    """The example `two-banks`, running: the broker, bank A and its bookkeeping."""
    cli = Cli()
    cli.ok("up", str(EXAMPLES / "two-banks/system.toml"), "--detach")
    yield cli
    cli.down()


def ports(cli: Cli, domain: str) -> set[str]:
    """Return the ports that a guest sees."""
    return set(cli.ok("exec", domain, "--", "ls", "/dev/virtio-ports").split())


def test_an_allowed_channel_carries_bytes_between_guests(banks: Cli) -> None:
    """What bank A writes, the broker reads, byte for byte, and the other way round."""
    send = "head -c 300000 /dev/urandom > /tmp/x; cat /tmp/x > /dev/virtio-ports/orders-a"
    banks.ok("exec", "bank-a", "--", "sh", "-c", f"({send}) > /dev/null 2>&1 &")
    got = banks.ok(
        "exec", "broker", "--", "sh", "-c", "head -c 300000 /dev/virtio-ports/orders-a | sha256sum"
    )
    assert got == banks.ok("exec", "bank-a", "--", "sh", "-c", "sha256sum < /tmp/x")


def test_a_refused_channel_does_not_exist_in_the_guests(banks: Cli) -> None:
    """The refusal says why; neither guest gets a port. The control: an allowed one appears."""
    before = ports(banks, "broker")
    why = banks.denied("connect", "bookkeeping-a", "broker", "--name", "gossip")
    assert "have no type in common [STE-NO-SHARED-TYPE]" in why
    assert "policy.xml:" in why
    assert ports(banks, "broker") == before
    number = banks.ok("connect", "bank-a", "broker", "--name", "gossip").strip()
    time.sleep(0.5)
    assert "gossip" in ports(banks, "broker")
    banks.ok("cut", number)


def test_a_cut_ends_the_peers_reading(banks: Cli) -> None:
    """The guest that reads gets the end of file; the port is gone from both."""
    number = banks.ok("connect", "bank-a", "broker", "--name", "short").strip()
    reader = banks.popen(
        "exec", "broker", "--", "sh", "-c", "sleep 0.5; cat /dev/virtio-ports/short; echo over"
    )
    banks.ok("exec", "bank-a", "--", "sh", "-c", "sleep 0.5; echo first > /dev/virtio-ports/short")
    time.sleep(1)
    banks.ok("cut", number)
    out, _ = reader.communicate(timeout=20)
    assert out.startswith("first")
    assert "over" in out
    assert "short" not in ports(banks, "broker") | ports(banks, "bank-a")


def test_a_load_ends_the_reading_of_what_the_new_policy_refuses(banks: Cli) -> None:
    """The guest gets what was sent before, then the end; what stays allowed goes on."""
    policy = banks.ok("policy", "convert", str(EXAMPLES / "two-banks/policy.xml"), "--to", "toml")
    wide, narrow = banks.home / "wide.toml", banks.home / "narrow.toml"
    wide.write_text(policy)
    narrow.write_text(re.sub(r"(\[labels\.bank-a\]\nste = ).*", r'\1["books-a"]', policy))
    banks.ok("connect", "bank-a", "broker", "--name", "doomed")
    reader = banks.popen(
        "exec", "broker", "--", "sh", "-c", "sleep 0.5; cat /dev/virtio-ports/doomed; echo over"
    )
    banks.ok("exec", "bank-a", "--", "sh", "-c", "sleep 0.5; echo first > /dev/virtio-ports/doomed")
    time.sleep(1)
    foretold = banks.rows("policy", "load", str(narrow), "--dry-run")[0]
    assert "doomed" in ports(banks, "bank-a"), "a dry run changes nothing"
    done = banks.rows("policy", "load", str(narrow))[0]
    assert done["cut"] == foretold["cut"]
    assert "[STE-NO-SHARED-TYPE]" in done["cut"][0]["why"]
    out, _ = reader.communicate(timeout=20)
    assert out.startswith("first")
    assert "over" in out
    assert "doomed" not in ports(banks, "broker") | ports(banks, "bank-a")
    assert "ledger-a" in ports(banks, "bank-a")
    banks.denied("connect", "bank-a", "broker", "--name", "doomed")
    banks.ok("policy", "load", str(wide))
    number = banks.ok("connect", "bank-a", "broker", "--name", "doomed").strip()
    banks.ok("cut", number)
    banks.ok("connect", "bank-a", "broker", "--name", "orders-a")


def test_a_guest_knows_its_label_and_cannot_change_it(banks: Cli) -> None:
    """The label comes from the host and is read-only, also to the guest's root."""
    assert banks.ok("exec", "broker", "--", "cat", "/run/skerry/label").strip() == "broker"
    raw = "/sys/firmware/qemu_fw_cfg/by_name/opt/skerry/label/raw"
    assert banks.run("exec", "broker", "--", "sh", "-c", f"echo x > {raw}").returncode != 0


def test_exec_gives_output_error_and_exit_code(banks: Cli) -> None:
    """What the command wrote and returned is what the operator's command does."""
    done = banks.run("exec", "broker", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)
    assert banks.ok("exec", "-i", "broker", "--", "cat", stdin=b"in\n" * 1000) == "in\n" * 1000


def test_the_console_shows_what_the_guest_printed(banks: Cli) -> None:
    """The kept output comes first, and what is typed is answered by the guest's shell."""
    console = banks.popen("console", "broker", stdin=-1)
    assert console.stdin is not None
    console.stdin.write("echo $((6*7))-typed\n")
    console.stdin.flush()
    time.sleep(2)
    console.send_signal(signal.SIGINT)
    out, _ = console.communicate(timeout=10)
    assert "skerry: ready" in out
    assert "42-typed" in out


def test_the_wall_keeps_competitors_apart_until_the_first_has_ended(banks: Cli) -> None:
    """Bank B is refused beside bank A, starts when A's side has ended, and then A is refused."""
    assert "[CW-CONFLICT]" in banks.denied("start", "bank-b")
    banks.ok("stop", "bank-a")
    assert "[CW-CONFLICT]" in banks.denied("start", "bank-b"), "A's bookkeeping still runs"
    banks.ok("stop", "bookkeeping-a")
    banks.ok("start", "bank-b")
    states = {row["name"]: row["state"] for row in banks.rows("ps")}
    assert states["bank-b"] == "running"
    assert states["bank-a"] == "ended"
    assert "[CW-CONFLICT]" in banks.denied("start", "bank-a")
    banks.ok("exec", "bank-b", "--", "sh", "-c", "echo hello > /dev/virtio-ports/orders-b")
    line = banks.ok(
        "exec", "broker", "--", "timeout", "20", "head", "-n1", "/dev/virtio-ports/orders-b"
    )
    assert line == "hello\n"


def test_every_decision_is_in_a_trail_that_verifies(banks: Cli) -> None:
    """The refusal's record explains itself, and the chain holds to its head."""
    records = banks.rows("audit", "tail", "-n", "1000")
    denials = [r for r in records if r["event"] == "deny"]
    assert any(r["fields"]["why"]["code"] == "CW-CONFLICT" for r in denials)
    assert "CW-CONFLICT" in banks.ok("why", str(denials[-1]["n"]))
    assert records[0]["event"] == "up"
    assert {"code", "policy", "layers"} <= records[0]["fields"].keys()
    banks.ok("audit", "verify")


def test_ctrl_c_in_the_foreground_leaves_nothing() -> None:
    """No process, no socket: the terminal's interrupt ends everything that was started."""
    cli = Cli()
    up = cli.popen("up", str(EXAMPLES / "one-guard/system.toml"))
    assert up.stdout is not None
    for line in up.stdout:
        if "the system stands" in line:
            break
    before = cli.processes()
    assert len(before) > 4, "the control: node, supervisor and jails run before the interrupt"
    up.send_signal(signal.SIGINT)
    up.communicate(timeout=30)
    assert up.returncode == 0
    assert left_of(before) == {}
    assert not (cli.home / "run/control.sock").exists()
    cli.down()


def test_nothing_outlives_a_killed_supervisor() -> None:
    """Law 7: if the supervisor dies, everything it forked stops."""
    cli = Cli()
    cli.ok("up", str(EXAMPLES / "one-guard/system.toml"), "--detach")
    before = cli.processes()
    supervisor = next(pid for pid, words in before.items() if "skerry.supervisor" in words)
    assert len(before) > 4, "the control: node and jails run"
    os.kill(supervisor, signal.SIGKILL)
    until = time.monotonic() + 10
    while left_of(before) and time.monotonic() < until:
        time.sleep(0.1)
    assert left_of(before) == {}
    cli.down()
