"""Faults of a running system with real machines: what each does to the others, and what is said.

One system for all tests, in their order: each goes on where the one before has left it.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.simulated import SYSTEM, write_system

MAX_GROWTH = 24 << 20
"""Bytes that the service may grow by while a guest floods it; unbounded it would be hundreds."""

ACCEPT = '\n[jail]\naccept-missing = ["cgroup", "swap"]\n'


@pytest.fixture(scope="module")
def node() -> Iterator[Cli]:
    """The small system on real machines: `broker`, `red` and `clerk` run."""
    cli = Cli()
    system = SYSTEM.replace('machine = "simulator"', 'memory = "128M"') + ACCEPT
    cli.ok("up", write_system(cli.home, system), "--detach")
    yield cli
    cli.down()


def process(cli: Cli, pattern: str) -> int:
    """Return the pid of the one process of this node whose command line matches."""
    supervisor = next(pid for pid, line in cli.processes().items() if "supervisor.main" in line)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and supervisor in ancestors(int(entry.name)):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if re.search(pattern, line):
                found.append(int(entry.name))
    return max(found)  # the jail's own program has the same words; what it started came later


def ancestors(pid: int) -> set[int]:
    """Return the pids from a process up to the first, itself included."""
    seen: set[int] = set()
    while pid > 1:
        seen.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return set()
    return seen


def resident(pid: int) -> int:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def row(cli: Cli, name: str) -> dict[str, object]:
    """Return a domain's row of `ps`."""
    return next(found for found in cli.rows("ps") if found["name"] == name)


def test_a_guest_that_floods_costs_bounded_memory_and_slows_nobody(node: Cli) -> None:
    """Console, port and the output of an `exec`, at once; the others' commands are answered."""
    service = process(node, r"^(?!.*supervisor\.main).* -m skerry\.control\.service ")
    before = resident(service)
    flood = "yes flood > /dev/console & cat /dev/zero > /dev/virtio-ports/orders &"
    node.ok("exec", "red", "--", "sh", "-c", f"({flood}) > /dev/null 2>&1")
    endless = node.popen("exec", "red", "--", "yes")  # nobody reads what it prints
    until = time.monotonic() + 6
    slowest = 0.0
    while time.monotonic() < until:
        began = time.monotonic()
        assert node.ok("exec", "clerk", "--", "echo", "fine") == "fine\n"
        slowest = max(slowest, time.monotonic() - began)
        assert resident(service) - before < MAX_GROWTH
    assert slowest < 5
    endless.kill()
    endless.communicate()
    console = node.popen("console", "red", stdin=-1)
    assert console.stdout is not None
    assert "flood" in console.stdout.read(100_000), "the control: it floods"
    console.kill()
    console.communicate()
    assert node.ok("ps").count("running") == 3


def test_a_killed_qemu_is_noticed_cut_released_and_recorded(node: Cli) -> None:
    """Channels cut, the reader sees the end, the record says it, `ps` says why, the wall opens."""
    assert "[CW-CONFLICT]" in node.denied("start", "blue"), "the control: red closes the wall"
    node.ok("stop", "clerk")
    os.kill(process(node, r"qemu-system\S* .*\bred\b"), signal.SIGKILL)
    until = time.monotonic() + 10
    while row(node, "red")["state"] != "ended" and time.monotonic() < until:
        time.sleep(0.1)
    red = row(node, "red")
    assert red["state"] == "ended"
    assert red["reason"] == "QEMU was ended by SIGKILL"
    assert node.rows("channels") == []
    last = next(r for r in reversed(node.rows("audit", "tail", "-n", "5")) if r["event"] == "ended")
    assert last["fields"]["domain"] == "red"
    assert last["fields"]["asked"] is False
    assert last["fields"]["cut"]
    ports = node.ok("exec", "broker", "--", "ls", "/dev/virtio-ports").split()
    assert "orders" not in ports


def test_a_frozen_supervisor_refuses_a_start_in_bounded_time(node: Cli) -> None:
    """Nothing can be forked; running domains are reached and ended; later the start works."""
    supervisor = process(node, r"supervisor\.main")
    os.kill(supervisor, signal.SIGSTOP)
    try:
        began = time.monotonic()
        done = node.run("start", "blue")
        assert time.monotonic() - began < 20
        assert done.returncode == 1
        assert "supervisor" in done.stderr
        assert node.ok("exec", "broker", "--", "echo", "fine") == "fine\n"
        assert row(node, "blue")["state"] in ("defined", "ended")
    finally:
        os.kill(supervisor, signal.SIGCONT)
    time.sleep(0.5)
    node.ok("start", "blue")
    assert node.ok("exec", "blue", "--", "echo", "fine") == "fine\n"
    assert [channel["port"] for channel in node.rows("channels")] == ["blue-orders"]


def test_an_agent_killed_in_the_guest_comes_back(node: Cli) -> None:
    """The guest starts it again, and the next command is answered."""
    kill = "sleep 0.5; for p in /proc/[0-9]*; do "
    kill += "grep -qa /lib/skerry/agent $p/cmdline && kill -9 ${p#/proc/}; done"
    node.ok("exec", "broker", "--", "sh", "-c", f"setsid sh -c '{kill}' > /dev/null 2>&1 &")
    before = node.ok("exec", "broker", "--", "sh", "-c", "cat /proc/uptime")
    time.sleep(4)
    with node.popen("exec", "broker", "--", "cat", "/proc/uptime") as asked:
        try:
            out, _ = asked.communicate(timeout=20)
        finally:
            asked.kill()
    assert float(out.split()[0]) > float(before.split()[0])


def test_a_guest_panic_is_the_reason_of_the_end(node: Cli) -> None:
    """`exec` says that the guest has gone, `ps` that it panicked; its channel is cut."""
    done = node.run("exec", "blue", "--", "sh", "-c", "echo c > /proc/sysrq-trigger")
    assert done.returncode in (1, 3)
    assert done.stderr.startswith(("error: ", "denied: "))
    until = time.monotonic() + 10
    while row(node, "blue")["state"] != "ended" and time.monotonic() < until:
        time.sleep(0.1)
    assert "panic" in str(row(node, "blue")["reason"])
    assert node.rows("channels") == []
    node.ok("audit", "verify")
