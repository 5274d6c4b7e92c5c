"""Streams by name that end and come in a guest: nobody loses a port, and none is left over.

One system for all tests; each leaves no stream behind.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.cli import Cli, peer, sh
from tests.support.hypercalls import POLICY
from tests.support.simulated import write_system

SYSTEM = """
name = "streams"
policy = "policy.toml"
[jail]
accept-missing = ["cgroup", "swap"]
[domains.ledger]
label = "ledger"
memory = "128M"
[domains.bank]
label = "bank"
memory = "128M"
[services.echo]
offered-by = "ledger"
[services.once]
offered-by = "ledger"
"""

PORTS = "/dev/virtio-ports"
ROUNDS = 50
CALL_AWAY, CALL_BACK = "mv /run/skerry/call /run/away", "mv /run/away /run/skerry/call"


@pytest.fixture(scope="module")
def node() -> Iterator[Cli]:
    """Two guests: `ledger` serves one name for as long as its client is there, and one briefly."""
    cli = Cli()
    try:
        cli.ok("up", write_system(cli.home, SYSTEM, POLICY), "--detach")
        sh(cli, "ledger", "skerry offer echo cat")
        sh(cli, "ledger", "skerry offer once 'echo run >>/run/ran; echo bye'")
        yield cli
    finally:
        cli.down()


def until_streams(cli: Cli, count: int) -> list[str]:
    """Wait until the node has so many streams; return their ports."""
    end = time.monotonic() + 30
    while len(rows := cli.rows("channels")) != count:
        assert time.monotonic() < end, rows
        time.sleep(0.2)
    return [str(row["port"]) for row in rows]


def until_none_is_served(cli: Cli) -> None:
    """Wait until the server has forgotten every stream."""
    wait = 'n=0; while [ "$(ls /run/skerry/streams)" ]; do n=$((n+1)); [ $n -lt 100 ]; sleep 0.1;'
    sh(cli, "ledger", f"set -e; {wait} done")


def test_a_port_that_takes_the_place_of_one_that_went_is_not_taken_away_with_it(node: Cli) -> None:
    """The guest hears of the end of the first when the second is there, by the same device."""
    both = 'stat -c %i "$new"; stat -L -c %i "$new"'  # the link and the device
    first, second, *rest = sh(
        node,
        "bank",
        'set -e; old=$(skerry connect echo); sleep 1; readlink "$old"; kill -STOP $(pidof mdev); '
        'skerry close "$old"; sleep 1; new=$(skerry connect echo); readlink "$new"; '
        f"{both}; kill -CONT $(pidof mdev); sleep 3; {both}; "
        'exec 3<>"$new"; echo hello >&3; read -r -t 20 said <&3; echo "$said"; '
        '[ ! -L "$old" ] || echo old; skerry close "$new"',
    ).splitlines()
    assert first == second, "the control: it is the same device"
    assert rest[:2] == rest[2:4], "neither was made anew"
    assert rest[4:] == ["hello"]
    until_streams(node, 0)


def test_streams_follow_each_other_without_a_pause(node: Cli) -> None:
    """Each is a device, carries a line both ways, and nothing but ports is left.

    What is looked for may go while it is looked for: the links of the last ones.
    """
    script = (
        f"set -e; i=0; while [ $i -lt {ROUNDS} ]; do i=$((i+1)); port=$(skerry connect echo); "
        'exec 3<>"$port"; echo "line $i" >&3; read -r -t 20 said <&3; [ "$said" = "line $i" ]; '
        f'exec 3>&-; skerry close "$port"; done; echo $i; find {PORTS} -type f 2>/dev/null || true'
    )
    assert sh(node, "bank", script) == str(ROUNDS)
    until_streams(node, 0)
    until_none_is_served(node)


def test_a_path_that_is_no_device_is_not_said_and_its_stream_is_closed(node: Cli) -> None:
    """Where a program has left a file in a port's place, the call fails."""
    port = sh(node, "bank", "skerry connect echo")
    (row,) = node.rows("channels")
    sh(node, "bank", f"skerry close {port}")
    files = " ".join(f"{PORTS}/echo.{row['id'] + n}" for n in range(1, 9))
    sh(node, "bank", f"touch {files}")
    done = node.run("exec", "bank", "--", "skerry", "connect", "echo")
    assert (done.returncode, done.stdout) == (1, "")
    assert "did not come" in done.stderr
    until_streams(node, 0)
    sh(node, "bank", f"rm {files}")


def test_a_stream_ends_with_the_command_that_served_it(node: Cli) -> None:
    """Its client reads what the command said, then the end; in both guests nothing is left."""
    read = "timeout 60 cat $(skerry connect once) 2>/dev/null; [ $? -lt 124 ] && echo over"
    assert sh(node, "bank", read).split() == ["bye", "over"]
    until_streams(node, 0)
    until_none_is_served(node)


def test_a_command_that_has_ended_is_not_run_again_by_the_next_node(node: Cli) -> None:
    """Its stream could not be closed yet; the next node tells of it again, and it is closed."""
    sh(node, "ledger", f"rm -f /run/ran; {CALL_AWAY}")
    said = sh(node, "bank", "timeout 60 head -n 1 $(skerry connect once)")
    assert said == "bye"
    time.sleep(6)
    until_streams(node, 1)
    os.kill(peer(node.home / "run/control.sock"), signal.SIGKILL)
    end = time.monotonic() + 30
    while {row["state"] for row in node.rows("ps")} != {"running"}:  # they are adopted
        assert time.monotonic() < end, node.rows("ps")
        time.sleep(0.2)
    time.sleep(3)
    assert sh(node, "ledger", "cat /run/ran") == "run"
    sh(node, "ledger", CALL_BACK)
    until_streams(node, 0)
    until_none_is_served(node)
    assert sh(node, "ledger", "cat /run/ran") == "run"


@pytest.mark.parametrize("how", ["KILL", "TERM", "CONT"])
def test_a_stream_whose_caller_has_gone_is_closed(how: str, node: Cli) -> None:
    """Killed while it waits for the answer, with and without its pipe. One that waits has it."""
    call = "skerry connect echo >/tmp/said 2>&1 & echo $! >/tmp/pid"
    sh(node, "bank", f"kill -STOP $(pidof control); {call}")
    (port,) = until_streams(node, 1)
    sh(node, "bank", f"kill -{how} $(cat /tmp/pid); sleep 1; kill -CONT $(pidof control)")
    if how == "CONT":
        wait = "n=0; until [ -s /tmp/said ] || [ $n = 100 ]; do n=$((n+1)); sleep 0.1; done"
        assert sh(node, "bank", f"{wait}; cat /tmp/said") == f"{PORTS}/{port}"
        time.sleep(2)
        assert until_streams(node, 1) == [port]
        sh(node, "bank", f"skerry close {port}")
    until_streams(node, 0)
    assert sh(node, "bank", "ls /run/skerry/calls") == ""
