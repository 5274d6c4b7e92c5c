"""The service and its supervisor killed or frozen: the real ones, with simulated domains."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from skerry.supervisor.client import ANSWER_SECONDS
from skerry.supervisor.main import MAX_DEATHS
from tests.fault.test_service import process, wait_for, works
from tests.support.cli import Cli
from tests.support.simulated import small_node


@pytest.fixture
def node() -> Iterator[Cli]:
    """A small system that the test may break."""
    with small_node() as cli:
        yield cli


def test_a_frozen_supervisor_denies_what_is_given_and_nothing_that_is_taken(node: Cli) -> None:
    """A bind ends in a denial in bounded time; cut, kill and stop work at once, also meanwhile.

    Once it goes on, binds work again.
    """
    (orders,) = node.rows("channels")
    supervisor = process(node, "supervisor")
    os.kill(supervisor, signal.SIGSTOP)
    try:
        bind = node.popen("connect", "red", "broker", "--name", "late")
        began = time.monotonic()
        node.ok("cut", str(orders["id"]))
        assert node.run("exec", "red", "send", "orders", "x").returncode == 1
        assert node.ok("exec", "red", "echo", "fine") == "fine\n"
        node.ok("stop", "clerk")
        assert time.monotonic() - began < ANSWER_SECONDS / 2
        said, _ = bind.communicate(timeout=2 * ANSWER_SECONDS)
        assert bind.returncode == 3, said
        assert "the supervisor does not answer" in said
        assert node.rows("channels") == []
        node.ok("kill", "red")
        assert [row["state"] for row in node.rows("ps")][:3] == ["running", "ended", "ended"]
    finally:
        os.kill(supervisor, signal.SIGCONT)
    node.ok("start", "red")
    works(node)
    node.ok("down")


def test_a_killed_service_is_started_again(node: Cli) -> None:
    """What lived in it (simulated machines) has ended; everything works, and the trail holds."""
    for _ in range(3):
        service = process(node, "service")
        os.kill(service, signal.SIGKILL)
        wait_for(lambda dead=service: dead not in node.processes())  # type: ignore[misc]
        assert {row["state"] for row in node.rows("ps")} == {"defined"}
        assert process(node, "service") != service
        for name in ("broker", "red"):
            node.ok("start", name)
        works(node)
        node.ok("audit", "verify")
    node.ok("down")
    wait_for(lambda: node.processes() == {})


def test_a_service_that_dies_again_and_again_is_the_end_of_everything(node: Cli) -> None:
    """At the limit nothing is left running, `ps` says so, and `up` works again."""
    deaths = 0
    while node.processes():
        with contextlib.suppress(StopIteration, ProcessLookupError):
            service = process(node, "service")
            os.kill(service, signal.SIGKILL)
            deaths += 1
            wait_for(lambda dead=service: dead not in node.processes())  # type: ignore[misc]
            wait_for(lambda: not node.processes() or node.run("ps").returncode == 0, 20)
        assert deaths <= MAX_DEATHS + 1
    assert deaths == MAX_DEATHS + 1
    assert "no system is running here" in node.run("ps").stderr
    node.ok("up", str(node.home / "system.toml"), "-d")
    works(node)


@pytest.mark.parametrize("parts", [["supervisor"], ["supervisor", "service"]])
def test_nothing_outlives_a_killed_supervisor_and_up_works_again(
    node: Cli, parts: list[str]
) -> None:
    """Alone or together with the service: nothing runs unwatched, the trail holds, a new `up`."""
    for pid in [process(node, part) for part in parts]:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: node.processes() == {})
    done = node.run("ps")
    assert done.returncode == 1
    assert "no system is running here" in done.stderr
    node.ok("audit", "verify")
    node.ok("up", str(node.home / "system.toml"), "-d")
    works(node)
    node.ok("audit", "verify")
