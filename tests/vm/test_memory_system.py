"""Memories by the command line: bound by the file, restarted, cut by a policy, named in the trail.

The tests run in their order on one node.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli, left_of, sh

SIZE = 1 << 20

POLICY = """
[policy]
name = "memory"
version = "{version}"
bootstrap = "operator"
[simple-type-enforcement]
types = ["one", "two", "shared"]
[labels.operator]
ste = ["one", "two", "shared"]
[labels.camera]
ste = ["one", "shared"]
[labels.viewer]
ste = ["two"{more}]
"""
WIDE, NARROW = (
    POLICY.format(version="1.0", more=', "shared"'),
    POLICY.format(version="1.1", more=""),
)

SYSTEM = """
name = "frames"
policy = "policy.toml"
[jail]
accept-missing = ["cgroup", "swap"]
[domains.camera]
label = "camera"
[domains.viewer]
label = "viewer"
[[channels]]
kind = "memory"
from = "camera"
to = "viewer"
name = "frames"
size = "1M"
one-way = true
[[channels]]
kind = "memory"
from = "viewer"
to = "camera"
name = "settings"
size = "64K"
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Cli]:
    """A camera that shows a viewer its frames."""
    cli = Cli()
    try:
        (cli.home / "policy.toml").write_text(WIDE)
        (cli.home / "narrow.toml").write_text(NARROW)
        (cli.home / "system.toml").write_text(SYSTEM)
        cli.ok("up", str(cli.home / "system.toml"), "--detach")
        yield cli
    finally:
        cli.down()


def there(cli: Cli, name: str) -> None:
    """Wait until both guests show a memory."""
    for domain in ("camera", "viewer"):
        sh(
            cli,
            domain,
            f"for i in $(seq 100); do [ -e /dev/skerry/{name} ] && exit; sleep 0.1; done; exit 1",
        )


def poke(cli: Cli, domain: str, name: str, value: int) -> None:
    """Write the first word."""
    sh(cli, domain, f"devmem $(cat /dev/skerry/{name}.address) 32 {value}")


def peek(cli: Cli, domain: str, name: str) -> int:
    """Read the first word."""
    return int(sh(cli, domain, f"devmem $(cat /dev/skerry/{name}.address) 32"), 16)


def carries(cli: Cli) -> None:
    """Both memories do, in the directions that they have, with their doorbells."""
    there(cli, "frames")
    there(cli, "settings")
    word = time.monotonic_ns() % (1 << 30)
    poke(cli, "camera", "frames", word)
    poke(cli, "viewer", "frames", word + 1)
    assert peek(cli, "viewer", "frames") == peek(cli, "camera", "frames") == word
    for writer, reader in (("camera", "viewer"), ("viewer", "camera")):
        word += 7
        poke(cli, writer, "settings", word)
        assert peek(cli, reader, "settings") == word
    sh(cli, "camera", "(printf x > /dev/virtio-ports/frames.bell) > /dev/null 2>&1 &")
    assert sh(cli, "viewer", "timeout 20 head -c 1 /dev/virtio-ports/frames.bell") == "x"


def mapped(cli: Cli) -> int:
    """Count the mappings of memories in all processes of the node."""
    count = 0
    for pid in cli.processes():
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        count += sum("memfd:skerry-memory" in line for line in lines)
    return count


def test_two_guests_share_what_the_file_says(node: Cli) -> None:
    """The sizes, the names and the directions are those of the file."""
    carries(node)
    for domain, name, size in (("viewer", "frames", SIZE), ("camera", "settings", 1 << 16)):
        assert sh(node, domain, f"stat -Lc %s /dev/skerry/{name}") == str(size)
    rows = {row["port"]: (row["kind"], row["one_way"]) for row in node.rows("channels")}
    assert rows == {"frames": ("memory", True), "settings": ("memory", False)}
    assert mapped(node) == 4


@pytest.mark.parametrize("how", ["kill", "restart"])
def test_a_new_service_takes_memories_over(node: Cli, how: str) -> None:
    """They carry on; what is bound after it works and is cut without what stays."""
    if how == "kill":
        (service,) = {
            pid for pid, words in node.processes().items() if "-m skerry.control.service" in words
        } - {pid for pid, words in node.processes().items() if "skerry.supervisor.main" in words}
        os.kill(service, signal.SIGKILL)
        while left_of({service: node.processes().get(service, "-")}):
            time.sleep(0.1)
    else:
        node.ok("restart")
    end = time.monotonic() + 20
    while node.run("ps").returncode and time.monotonic() < end:
        time.sleep(0.1)
    assert len(node.rows("channels")) == 2
    carries(node)
    number = node.ok(
        *("connect", "camera", "viewer", "--kind", "memory", "--size", "64K", "--name", "more")
    ).strip()
    there(node, "more")
    assert mapped(node) == 6
    node.ok("cut", number)
    assert mapped(node) == 4, "the cut has waited for both"
    carries(node)


def test_a_policy_that_refuses_it_has_taken_it_away_when_it_returns(node: Cli) -> None:
    """No process maps it then, both domains go on, and under the wide policy it comes again."""
    node.ok("policy", "load", str(node.home / "narrow.toml"))
    assert mapped(node) == 0
    assert node.rows("channels") == []
    assert {row["state"] for row in node.rows("ps")} == {"running"}
    explained = node.denied(
        *("connect", "camera", "viewer", "--kind", "memory", "--size", "64K", "--one-way")
    )
    assert "camera" in explained and "viewer" in explained
    node.ok("policy", "load", str(node.home / "policy.toml"))
    node.ok("up", str(node.home / "system.toml"))
    carries(node)


def test_a_size_that_no_memory_has_is_refused(node: Cli) -> None:
    """With what to give instead; nothing is bound."""
    done = node.run("connect", "camera", "viewer", "--kind", "memory", "--size", "96K")
    assert done.returncode == 2 and "power of two" in done.stderr
    assert len(node.rows("channels")) == 2


def test_a_killed_viewer_is_nothing_to_the_camera(node: Cli) -> None:
    """It keeps its frames, which nobody sees, and shows them to the next one; the other way ends.

    The next one gets a file of its own, so what the first had seen is not in it.
    """
    poke(node, "camera", "frames", 77)
    node.ok("kill", "viewer")
    end = time.monotonic() + 10
    while mapped(node) > 1 and time.monotonic() < end:
        time.sleep(0.1)
    assert mapped(node) == 1 and peek(node, "camera", "frames") == 77
    assert [(row["port"], row["state"]) for row in node.rows("channels")] == [
        ("frames", "stranded")
    ]
    sh(node, "camera", "echo unheard > /dev/virtio-ports/frames.bell")
    node.ok("up", str(node.home / "system.toml"))
    there(node, "frames")
    assert peek(node, "viewer", "frames") == peek(node, "camera", "frames") == 0
    carries(node)


def test_down_ends_it_all_in_time(node: Cli) -> None:
    """Both guests give up what they share and switch themselves off."""
    processes = node.processes()
    node.ok("down")
    end = time.monotonic() + 10
    while (left := left_of(processes)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left
    ended = [r["fields"] for r in node.rows("audit", "tail", "-n", "60") if r["event"] == "ended"]
    assert {e["domain"]: e["reason"] for e in ended[-2:]} == dict.fromkeys(
        ("camera", "viewer"), "the guest switched itself off"
    )
