"""Guests that call their node: real machines, by the command that is in every image.

One system for all tests, in their order: each leaves it as the next one finds it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli, peer, sh
from tests.support.hypercalls import POLICY
from tests.support.simulated import write_system

SYSTEM = """
name = "services"
policy = "policy.toml"
[jail]
accept-missing = ["cgroup", "swap"]
[domains.ledger]
label = "ledger"
memory = "128M"
[domains.bank]
label = "bank"
memory = "128M"
[domains.stranger]
label = "stranger"
memory = "128M"
[services.ledger]
offered-by = "ledger"
[services.spare]
offered-by = "ledger"
[services.board]
offered-by = "ledger"
public = true
"""

PORTS = "/dev/virtio-ports"
OWN = {"skerry.agent", "skerry.control"}
FW_CFG = "/sys/firmware/qemu_fw_cfg/by_name/opt/skerry/label/raw"

GROWTH_MAX = 8 << 20
"""Bytes that the service may grow by while a guest floods its port; unread it would be hundreds."""


@pytest.fixture(scope="module")
def node() -> Iterator[Cli]:
    """Three guests; `ledger` serves its name with a command, and two more without."""
    cli = Cli()
    try:
        cli.ok("up", write_system(cli.home, SYSTEM, POLICY), "--detach")
        serve = 'read -r line; echo "$line to $SKERRY_SERVICE from $SKERRY_PEER"; cat'
        cli.ok("exec", "ledger", "--", "skerry", "offer", "ledger", serve)
        cli.ok("exec", "ledger", "--", "skerry", "offer", "spare")
        cli.ok("exec", "ledger", "--", "skerry", "offer", "board")
        yield cli
    finally:
        cli.down()


def asked(cli: Cli, domain: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Call `skerry` in a guest."""
    return cli.run("exec", domain, "--", "skerry", *words)


def channels_of(cli: Cli, domain: str) -> set[str]:
    """Return the ports of a guest but for its own two."""
    return set(sh(cli, domain, f"ls {PORTS}").split()) - OWN


def until(cli: Cli, domain: str, script: str) -> None:
    """Wait until a condition holds in a guest."""
    sh(cli, domain, f"n=0; until {script}; do n=$((n+1)); [ $n -lt 100 ]; sleep 0.1; done")


def without_record(text: str) -> str:
    """Return what a denial says but for its record's number and its name."""
    return re.sub(r"record: +\d+|connect [a-z-]+", "", text)


def test_a_guest_knows_what_it_is_and_hears_when_that_changes(node: Cli) -> None:
    """By the command and in the files; the firmware's file says what it was at the start."""
    policy = node.rows("policy", "show")[0]["digest"]
    assert asked(node, "bank", "label").stdout == "bank\n"
    each = "for file in name label generation policy; do cat $file; echo; done"
    files = f"cd /run/skerry; {each}; stat -c %a label policy"
    assert sh(node, "bank", files).split() == ["bank", "bank", "1", policy, "444", "444"]
    node.ok("relabel", "bank", "ledger")
    until(node, "bank", "[ $(cat /run/skerry/label) = ledger ]")
    assert asked(node, "bank", "label").stdout == "ledger\n"
    assert sh(node, "bank", f"cat {FW_CFG}") == "bank"
    assert node.run("exec", "bank", "--", "sh", "-c", f"echo x >{FW_CFG}").returncode != 0
    node.ok("relabel", "bank", "bank")
    until(node, "bank", "[ $(cat /run/skerry/label) = bank ]")
    shown = asked(node, "bank", "label", "--all").stdout
    assert re.search(rf"name: bank\nlabel: bank\npolicy: {policy}\ngeneration: 1\n", shown)


def test_a_program_that_calls_before_its_guest_speaks_with_the_node_waits(node: Cli) -> None:
    """As after a start from a template; where nothing comes it says so, and fails."""
    away = "mv /run/skerry/call /run/skerry/away; {}; skerry label; code=$?; {}; exit $code"
    back = "mv /run/skerry/away /run/skerry/call"
    later = away.format(f"{{ (sleep 1; {back}) & }}", "wait")
    assert sh(node, "bank", later) == "bank"
    never = node.run("exec", "bank", "--", "sh", "-c", away.format(":", back))
    assert never.returncode == 1
    assert "does not speak with its node" in never.stderr


def test_only_root_calls_until_its_guest_opens_the_pipe_to_others(node: Cli) -> None:
    """Another user is told so in one line, whatever it asks, and at once; it reads the files."""
    only = "skerry: only root may call the node, outside of a confined service\n"

    def nobody(*words: str) -> subprocess.CompletedProcess[str]:
        told = ("su", "-s", "/bin/sh", "nobody", "-c", " ".join(words))
        return node.run("exec", "bank", "--", *told)

    for words in (("label",), ("connect", "ledger"), ("offer", "ledger"), ("why", "1")):
        done = nobody("skerry", *words)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", only)
    assert nobody("cat", "/run/skerry/label").stdout == "bank"
    sh(node, "bank", "cd /run/skerry; chmod 666 call; chmod 1777 calls")
    assert nobody("skerry", "label").stdout == "bank\n"
    sh(node, "bank", "cd /run/skerry; chmod 600 call; chmod 755 calls")
    assert nobody("skerry", "label").stderr == only
    assert asked(node, "bank", "label").stdout == "bank\n"


def test_root_in_a_guest_deceives_itself_alone(node: Cli) -> None:
    """It can write its own copy; the node's answer is as before, and so is what it may."""
    sh(node, "stranger", "echo ledger >/run/skerry/label")
    assert sh(node, "stranger", "cat /run/skerry/label") == "ledger"
    assert asked(node, "stranger", "label").stdout == "stranger\n"
    assert asked(node, "stranger", "offer", "spare").returncode == 3
    assert asked(node, "stranger", "connect", "spare").returncode == 3


def test_a_stream_by_name_carries_both_ways_and_its_server_knows_whose_it_is(node: Cli) -> None:
    """Both ends have a port of one name, and the listing says who asked for it by which."""
    call = 'port=$(skerry connect ledger) && exec 3<>"$port" && echo hello >&3 && read -r a <&3'
    said = sh(node, "bank", f'{call}; echo "$a"; echo more >&3; read -r b <&3; echo "$b $port"')
    first, second = said.splitlines()
    assert first == "hello to ledger from bank"
    (row,) = node.rows("channels")
    assert (row["source"], row["sink"], row["asked"]) == ("bank", "ledger", "ledger")
    assert second == f"more {PORTS}/{row['port']}"
    assert row["port"] == f"ledger.{row['id']}"
    assert channels_of(node, "ledger") == channels_of(node, "bank") == {row["port"]}
    assert "asked" in node.ok("why", str(row["record"]))
    assert asked(node, "bank", "close", f"{PORTS}/{row['port']}").returncode == 0
    until(node, "ledger", f"[ ! -e {PORTS}/{row['port']} ]")
    assert asked(node, "bank", "close", row["port"]).returncode == 1


def test_a_refused_stream_is_no_port_and_says_only_what_may_be_seen(node: Cli) -> None:
    """Hidden and unknown names are one answer; a public one says why. The control: `bank` may."""
    hidden = asked(node, "stranger", "connect", "spare")
    unknown = asked(node, "stranger", "connect", "no-such-name")
    assert hidden.returncode == unknown.returncode == 3
    assert hidden.stdout == unknown.stdout == ""
    assert without_record(hidden.stderr) == without_record(unknown.stderr)
    assert "NO-SERVICE" in hidden.stderr
    public = asked(node, "stranger", "connect", "board")
    assert public.returncode == 3
    assert "[STE-NO-SHARED-TYPE]" in public.stderr
    assert "books" not in public.stderr
    record = re.findall(r"record: +(\d+)", public.stderr)[0]
    assert "STE-NO-SHARED-TYPE" in asked(node, "stranger", "why", record).stdout
    assert "have no type in common" in node.ok("why", record)
    assert asked(node, "bank", "why", record).returncode == 1
    assert channels_of(node, "stranger") == channels_of(node, "ledger") == set()
    port = asked(node, "bank", "connect", "board").stdout.strip()
    assert channels_of(node, "ledger") == {port.rpartition("/")[2]}
    assert asked(node, "ledger", "close", port).returncode == 0


def test_the_server_ends_a_stream_and_its_client_reads_the_end(node: Cli) -> None:
    """What was sent before arrives; then the reading is over and the ports are gone."""
    port = asked(node, "bank", "connect", "spare").stdout.strip()
    reader = node.popen("exec", "bank", "--", "sh", "-c", f"cat {port} 2>/dev/null; echo over")
    until(node, "ledger", f"[ -e {port} ]")
    sh(node, "ledger", f"echo first >{port}")
    time.sleep(1)
    assert asked(node, "ledger", "close", port).returncode == 0
    out, _ = reader.communicate(timeout=30)
    assert out.split() == ["first", "over"]
    until(node, "bank", f"[ ! -e {port} ]")


def test_a_paused_server_holds_up_nobody(node: Cli) -> None:
    """The caller has its port at once; what it writes is read when the server runs again."""
    node.ok("pause", "ledger")
    port = asked(node, "bank", "connect", "ledger").stdout.strip()
    reader = node.popen(
        "exec", "bank", "--", "sh", "-c", f"exec 3<>{port}; echo late >&3; read -r a <&3; echo $a"
    )
    time.sleep(1)
    assert asked(node, "stranger", "label").stdout == "stranger\n"
    node.ok("resume", "ledger")
    out, _ = reader.communicate(timeout=30)
    assert out == "late to ledger from bank\n"
    assert asked(node, "bank", "close", port).returncode == 0


def test_streams_and_offers_go_on_when_the_node_is_killed(node: Cli) -> None:
    """The same stream carries on, the next is bound, and the files are right."""
    call = "skerry connect spare"
    port = sh(node, "bank", call)
    until(node, "ledger", f"[ -e {port} ]")
    os.kill(peer(node.home / "run/control.sock"), signal.SIGKILL)
    end = time.monotonic() + 30
    while (shown := {row["state"] for row in node.rows("ps")}) != {"running"}:  # they are adopted
        assert "ended" not in shown and time.monotonic() < end, node.rows("ps")
        time.sleep(0.2)
    rows = {row["port"]: row for row in node.rows("channels")}
    assert rows[port.rpartition("/")[2]]["asked"] == "spare"
    sh(node, "bank", f"echo still >{port}")
    assert sh(node, "ledger", f"timeout 20 head -n 1 {port}") == "still"
    other = sh(node, "bank", call)
    assert {row["asked"] for row in node.rows("channels")} == {"spare"}
    assert asked(node, "bank", "label").stdout == "bank\n"
    for each in (port, other):
        assert asked(node, "bank", "close", each).returncode == 0


def test_a_policy_that_refuses_a_stream_ends_it_in_both_guests(node: Cli) -> None:
    """And the guests' files say the new generation."""
    port = asked(node, "bank", "connect", "spare").stdout.strip()
    reader = node.popen("exec", "bank", "--", "sh", "-c", f"cat {port} 2>/dev/null; echo over")
    time.sleep(1)
    apart = node.home / "apart.toml"
    apart.write_text(POLICY.replace('ste = ["books", "mail"]', 'ste = ["mail"]'))
    node.ok("policy", "load", str(apart))
    out, _ = reader.communicate(timeout=30)
    assert out == "over\n"
    until(node, "bank", "[ $(cat /run/skerry/generation) = 2 ]")
    assert "NO-SERVICE" in asked(node, "bank", "connect", "spare").stderr
    node.ok("policy", "load", str(node.home / "policy.toml"))
    assert asked(node, "bank", "connect", "spare").returncode == 0


def test_a_flooded_port_costs_the_flooder_only(node: Cli) -> None:
    """The service's memory stays, the others are answered, and nothing is recorded of garbage."""
    service = peer(node.home / "run/control.sock")
    before = resident(service)
    sh(node, "stranger", "yes garbage garbage >/run/skerry/call 2>/dev/null & sleep 5")
    records = node.rows("audit", "tail", "-n", "1")[0]["n"]
    for _ in range(3):
        began = time.monotonic()
        assert asked(node, "bank", "label").stdout == "bank\n"
        assert time.monotonic() - began < 10
    new = [r for r in node.rows("audit", "tail", "-n", "50") if r["n"] > records]
    assert [r for r in new if "stranger" in str(r["fields"]) and r["event"] == "deny"] == []
    assert resident(service) - before < GROWTH_MAX


def test_the_streams_of_a_killed_server_end_and_its_names_are_nobodys(node: Cli) -> None:
    """The caller is told at once what it is told of any name that nobody serves."""
    assert [row["asked"] for row in node.rows("channels")] == ["spare"]
    node.ok("kill", "ledger")
    assert node.rows("channels") == []
    assert "NO-SERVICE" in asked(node, "bank", "connect", "ledger").stderr
    assert channels_of(node, "bank") == set()


def resident(pid: int) -> int:
    """Return the bytes of memory that a process has."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmRSS:"))
    return int(line.split()[1]) << 10
