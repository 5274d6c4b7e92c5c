"""A policy manager that dies or freezes under a running node: denials, and nothing else changes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.test_service import wait_for, works
from tests.support.cli import Cli
from tests.support.simulated import small_node


@pytest.fixture(scope="module")
def node() -> Iterator[Cli]:
    """One node for all tests, after which it is as before."""
    with small_node() as cli:
        yield cli


def manager(cli: Cli) -> int:
    """Return the pid of the manager itself, which is process 1 of its jail."""
    for pid, line in cli.processes().items():
        if "skerry.policy.service" in line and "bwrap" not in line and "enter.py" not in line:
            return pid
    return 0


def seen(cli: Cli, since: int) -> list[str]:
    """Return what the trail says of the manager after a record."""
    rows = cli.rows("audit", "tail", "-n", "200")
    return [
        str(row["event"])
        for row in rows
        if row["n"] > since and str(row["event"]).startswith("manager-")
    ]


def last(cli: Cli) -> int:
    """Return the number of the last record."""
    return int(cli.rows("audit", "tail", "-n", "1")[0]["n"])


def test_the_manager_holds_its_socket_and_nothing_else(node: Cli) -> None:
    """It is a process of its own in a jail. Only root can look; an ordinary user is refused."""
    pid = manager(node)
    if os.getuid() != 0:
        with pytest.raises(PermissionError):
            list(Path(f"/proc/{pid}/fd").iterdir())
        return
    links = {int(e.name): str(e.readlink()) for e in Path(f"/proc/{pid}/fd").iterdir()}
    assert links.pop(3).startswith("socket:")
    assert links == dict.fromkeys((0, 1, 2), "/dev/null")
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status


def test_a_killed_manager_is_replaced_and_nothing_falls(node: Cli) -> None:
    """Domains and channels stay, and after a moment everything is answered as before."""
    works(node)
    first, since = manager(node), last(node)
    channels = node.rows("channels")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: manager(node) not in (0, first))
    wait_for(lambda: seen(node, since) == ["manager-lost", "manager-back"])
    works(node)
    assert [row["id"] for row in node.rows("channels")] == [row["id"] for row in channels]
    assert [row["state"] for row in node.rows("ps")] == ["running"] * 3 + ["defined"]
    node.ok("audit", "verify")


def test_a_frozen_manager_denies_and_authority_is_taken_away_all_the_same(node: Cli) -> None:
    """The first question waits two seconds, the next none; cut, kill and `ps` need no manager."""
    node.ok("ps")
    node.ok("channels")
    number = node.ok("connect", "red", "broker", "--name", "probe").strip()
    since, pid = last(node), manager(node)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert "[DECIDER-UNAVAILABLE]" in node.denied("connect", "red", "broker")
        began = time.monotonic()
        assert "[DECIDER-UNAVAILABLE]" in node.denied("start", "blue")
        rows = node.rows("ps")
        assert sum("name" in row for row in rows) == 4
        assert {"helper": "policy manager", "state": "frozen"} in rows
        node.ok("cut", number)
        node.ok("kill", "clerk")
        assert time.monotonic() - began < 2.0
        assert seen(node, since) == ["manager-lost"]
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: seen(node, since) == ["manager-lost", "manager-back"])
    node.ok("start", "clerk")
    works(node)
    assert manager(node) == pid
