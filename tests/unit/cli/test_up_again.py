"""`up` and `plan` on a running system, signed policies, and the service as systemd starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import SKERRY, Cli, left_of
from tests.support.simulated import POLICY, SYSTEM, small_node, write_system

UNIT = Path(__file__).parents[3] / "packaging/skerryd.service"
FRESH = """
[domains.fresh]
label = "broker"
machine = "simulator"

[[channels]]
kind = "stream"
from = "red"
to = "fresh"
name = "more"
"""


@pytest.fixture
def node() -> Iterator[Cli]:
    """A small system that the test may change."""
    with small_node() as cli:
        yield cli


def test_up_shows_the_plan_and_carries_it_out(node: Cli) -> None:
    """The plan is that of `plan`; what stayed is counted; --json gives one object a line."""
    write_system(node.home, SYSTEM + FRESH)
    system = str(node.home / "system.toml")
    plan = node.ok("plan", system)
    assert [line.split()[0] for line in plan.splitlines() if line[0] != " "] == ["start", "bind"]
    said = node.ok("up", system)
    assert said.startswith(plan)
    assert said.splitlines()[-4:] == [
        "starting fresh",
        "channel 2: red ↔ fresh (more)",
        "fresh is running",
        "done: 3 domains and 1 channel went on untouched",
    ]
    write_system(node.home, SYSTEM)
    rows = [json.loads(line) for line in node.ok("up", system, "--json").splitlines()]
    assert [(row["event"], row.get("action")) for row in rows] == [
        ("plan", "cut"), ("plan", "remove"), ("cut", None), ("stopped", None), ("done", None),
    ]  # fmt: skip
    assert (rows[-1]["left"], rows[-1]["domains"], rows[-1]["channels"]) == ([], 3, 1)
    node.ok("audit", "verify")


def test_what_the_policy_refuses_is_exit_3_and_what_failed_exit_1(node: Cli) -> None:
    """With what is left; a file that is wrong is exit 2 and touches nothing."""
    system = write_system(node.home, SYSTEM.replace("autostart = false\n", ""))
    done = node.run("up", system)
    assert done.returncode == 3
    assert "refused: domain blue\n" in done.stderr
    assert "[CW-CONFLICT]" in done.stderr
    assert "left: start blue" in done.stderr
    node.ok("connect", "red", "broker", "--name", "taken")
    write_system(node.home, SYSTEM + FRESH.replace('"more"', '"orders.2"') + TAKEN)
    done = node.run("up", system)
    assert (done.returncode, "already has a port taken" in done.stderr) == (1, True)
    write_system(node.home, SYSTEM.replace('"broker"', '"brokre"', 1))
    done = node.run("up", system)
    assert (done.returncode, "brokre" in done.stderr) == (2, True)
    assert [row["state"] for row in node.rows("ps")][:3] == ["running"] * 3


TAKEN = '[[channels]]\nkind = "stream"\nfrom = "fresh"\nto = "red"\nname = "taken"\n'


def test_a_signed_policy_from_its_key_to_its_load(node: Cli) -> None:
    """keygen, sign, up; an unsigned load is refused, a signed one comes into force."""
    home = node.home
    key, policy, system = str(home / "key"), str(home / "policy.toml"), str(home / "system.toml")
    node.ok("policy", "keygen", key)
    assert (home / "key").stat().st_mode & 0o777 == 0o600
    assert node.run("policy", "keygen", key).returncode == 2
    write_system(home, f'policy-key = "key.pub"\n{SYSTEM}')
    assert "not signed with the policy key" in node.run("up", system).stderr
    node.ok("policy", "sign", policy, "--key", key)
    node.ok("check", system)
    assert node.ok("up", system).splitlines()[0] == "change  the policy key"
    Path(policy).write_text(POLICY.replace('"1.0"', '"1.1"'))
    done = node.run("policy", "load", policy)
    assert (done.returncode, "does not verify" in done.stderr) == (2, True)
    assert "POLICY-UNSIGNED" in node.ok("audit", "tail", "-n", "1")
    node.ok("policy", "sign", policy, "--key", key, "--add")
    assert (home / "policy.toml.sig").read_text().count("\n") == 2
    assert "generation 2 is in force" in node.ok("policy", "load", policy)


def test_the_service_tells_systemd_when_the_system_stands() -> None:
    """It becomes the supervisor itself, says READY=1, and SIGTERM ends all of it with exit 0."""
    cli = Cli()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.settimeout(30)
        heard.bind(str(cli.home / "notify"))
        service = subprocess.Popen(
            [SKERRY, "up", "--service", write_system(cli.home)],
            env={**cli.env, "NOTIFY_SOCKET": str(cli.home / "notify")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert heard.recv(100) == b"READY=1"
    assert [row["state"] for row in cli.rows("ps")][:3] == ["running"] * 3
    assert "skerry.supervisor.main" in Path(f"/proc/{service.pid}/cmdline").read_text()
    assert "starting or ending" in cli.run("up", "--service", str(cli.home / "system.toml")).stderr
    before = cli.processes()
    service.send_signal(signal.SIGTERM)
    output, _ = service.communicate(timeout=30)
    assert service.returncode == 0, output
    assert left_of(before) == {}
    cli.down()


def test_the_unit_is_one_that_systemd_accepts(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say, and does say something of a broken one."""
    text = UNIT.read_text()
    for key in ("Type=notify", "KillMode=mixed", "Restart=on-failure", "NotifyAccess=all"):
        assert re.search(f"^{key}$", text, re.M)
    assert "FileDescriptorStore" not in text
    unit = tmp_path / "skerryd.service"
    for old, new, complains in (("", "", False), ("KillMode=mixed", "KillMode=never", True)):
        ours = text.replace("/usr/local/bin/skerry", f'"{SKERRY}"')  # its path may hold a space
        unit.write_text(ours.replace(old, new))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(unit)],
            env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
            capture_output=True,
            text=True,
            check=False,
        )
        own = [line for line in done.stderr.splitlines() if "skerryd" in line]
        assert bool(own) is complains, done.stderr
