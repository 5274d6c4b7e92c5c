"""What happens when a part of a running node fails: the real service, simulated domains."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skerry.wire.control import Call, Exec, Input, PolicyLoad, Reconcile, encode
from skerry.wire.frames import frame
from tests.support.cli import IN_SHELL, SKERRY, Cli
from tests.support.simulated import SYSTEM, small_node, write_system

FEW_DESCRIPTORS = 60
"""A limit that some channels between simulated machines reach: each takes six."""

LONG = bool(os.environ.get("SKERRY_LONG"))


@pytest.fixture
def node() -> Iterator[Cli]:
    """A small system that the test may break."""
    with small_node() as cli:
        yield cli


@pytest.fixture(scope="module")
def sturdy() -> Iterator[Cli]:
    """One node for all tests after which it must be as before."""
    with small_node() as cli:
        yield cli


def process(cli: Cli, part: str) -> int:
    """Return the pid of the node's `service` or `supervisor`."""
    words = {"service": "-m skerry.control.service", "supervisor": "skerry.supervisor.main"}
    return next(
        pid
        for pid, line in cli.processes().items()
        if words[part] in line and (part == "supervisor" or "supervisor.main" not in line)
    )


LIMIT = """
import ctypes, os, resource, sys
pid, size = map(int, sys.argv[1:])
space = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
assert not ctypes.CDLL(None).setns(space, 0)
_, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, most))
"""


def limit_trail(cli: Cli, size: int) -> None:
    """Let the audit writer write no longer file than this, in bytes; -1 for any.

    Its jail has a user namespace of its own, and only from within may its limits be changed.
    """
    (writer,) = (
        pid
        for pid, line in cli.processes().items()
        if "skerry.audit.service" in line and "python" in line.split()[0]
    )
    subprocess.run([sys.executable, "-c", LIMIT, str(writer), str(size)], check=True)


def open_descriptors(pid: int) -> int:
    """Count a process's descriptors; 0 for an ordinary user, who may not look."""
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except PermissionError:
        assert os.getuid() != 0
        return 0


def wait_for(what: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something holds."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def works(cli: Cli) -> None:
    """The positive control: an allow, an exec and a cut."""
    number = cli.ok("connect", "red", "broker", "--name", "probe").strip()
    assert cli.ok("exec", "red", "echo", "fine") == "fine\n"
    cli.ok("cut", number)


def refuses_and_takes_away(cli: Cli) -> None:
    """Every allow is denied for the trail's sake; authority can be taken away all the same."""
    (channel,) = cli.rows("channels")
    cli.ok("kill", "clerk")
    for words in (
        ["connect", "red", "broker"],
        ["exec", "red", "true"],
        ["console", "red"],
        ["start", "clerk"],
        ["pause", "red"],
        ["relabel", "red", "clerk"],
    ):
        assert "[AUDIT-UNAVAILABLE]" in cli.denied(*words), words
    cli.ok("cut", str(channel["id"]))
    assert cli.rows("channels") == []
    assert cli.ok("stop", "broker") == "broker has ended: the guest switched off\n"
    states = [row["state"] for row in cli.rows("ps")]
    assert states == ["ended", "running", "ended", "defined", "failing"]


def test_a_trail_that_cannot_grow_denies_and_recovers(node: Cli) -> None:
    """Allows are denied, cut, stop and kill work; their records follow when there is room."""
    works(node)
    size = (node.home / "state/audit.log").stat().st_size
    limit_trail(node, size)
    refuses_and_takes_away(node)
    assert (node.home / "state/audit.log").stat().st_size == size
    limit_trail(node, -1)
    wait_for(lambda: node.run("exec", "red", "true").returncode == 0)
    node.ok("audit", "verify")
    events = [row["event"] for row in node.rows("audit", "tail", "-n", "30")]
    assert {"recovered", "cut", "ended"} <= set(events)
    node.ok("start", "clerk")


def test_down_works_while_the_trail_cannot_grow(node: Cli) -> None:
    """It needs no record."""
    size = (node.home / "state/audit.log").stat().st_size
    limit_trail(node, size)
    assert "[AUDIT-UNAVAILABLE]" in node.denied("exec", "red", "true")
    assert node.ok("down") == "stopped 3 domains\n"
    wait_for(lambda: node.processes() == {})
    node.ok("audit", "verify")


def test_a_full_disk_denies(tmp_path: Path) -> None:
    """The trail on a real file system of 1 MiB that fills; `up` on a full one is denied too.

    What was refused and what was taken away is in the trail, written from its reserve.
    """
    cli = Cli()
    system = write_system(cli.home)
    state = cli.home / "state"
    state.mkdir(mode=0o700)
    mounted = f"mount -t tmpfs -o size=1m,mode=700 tmpfs {state} && exec {IN_SHELL} up {system} -d"
    try:
        subprocess.run(["unshare", "-rm", "sh", "-c", mounted], env=cli.env, check=True)
        works(cli)
        fill = ["exec", "red", "true", *["x" * 2000] * 4]
        wait_for(lambda: cli.run(*fill).returncode == 3, 60)
        refuses_and_takes_away(cli)
        cli.ok("down")
        wait_for(lambda: cli.processes() == {})
        full = (
            f"mount -t tmpfs -o size=4k,mode=700 tmpfs {state} && head -c 8k /dev/zero > {state}/x"
        )
        line = f"{full}; exec {IN_SHELL} up {system} -d"
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", line], env=cli.env, capture_output=True, check=False
        )
        assert done.returncode in (1, 3), done
        assert b"No space left" in done.stderr
        assert b"Traceback" not in done.stderr
        wait_for(lambda: cli.processes() == {})
    finally:
        cli.down()


def test_a_service_out_of_descriptors_denies_and_recovers(node: Cli) -> None:
    """Binds are denied and leave nothing; cut, kill and `ps` work; with room again binds do too."""
    service = process(node, "service")
    before = resource.prlimit(service, resource.RLIMIT_NOFILE)
    resource.prlimit(service, resource.RLIMIT_NOFILE, (FEW_DESCRIPTORS, before[1]))
    bound = []
    for number in range(FEW_DESCRIPTORS):
        done = node.run("connect", "red", "broker", "--name", f"more{number}")
        if done.returncode:
            break
        bound.append(int(done.stdout))
    assert done.returncode == 3, done
    assert "descriptor" in done.stderr or "Too many open files" in done.stderr
    channels = node.rows("channels")
    assert [row["id"] for row in channels][1:] == bound
    for number in bound:
        node.ok("cut", str(number))
    node.ok("kill", "clerk")
    assert len(node.rows("channels")) == 1
    works(node)
    resource.prlimit(service, resource.RLIMIT_NOFILE, before)
    works(node)
    node.ok("audit", "verify")


def test_a_killed_up_in_the_foreground_ends_everything() -> None:
    """Nothing runs unwatched: SIGKILL of the terminal's command is the end of the system."""
    cli = Cli()
    up = cli.popen("up", write_system(cli.home))
    assert up.stdout is not None
    assert any("the system stands" in line for line in up.stdout)
    works(cli)
    up.kill()
    up.communicate()
    wait_for(lambda: cli.processes() == {})
    cli.ok("audit", "verify")
    cli.down()


def test_a_client_killed_in_mid_exec_takes_nothing_along(sturdy: Cli) -> None:
    """Its session ends, twenty times over (a domain has 16 sessions), and the next one works."""
    number = sturdy.ok("connect", "red", "broker", "--name", "idle").strip()
    for _ in range(20 if LONG else 3):
        clients = [sturdy.popen("exec", "broker", "recv", "idle") for _ in range(8)]
        time.sleep(0.6)
        for client in clients:
            client.kill()
            client.communicate()
    assert sturdy.ok("exec", "broker", "echo", "fine") == "fine\n"
    sturdy.ok("cut", number)


def _hostile(cli: Cli, message: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(cli.home / "run/control.sock"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(message)
            sock.shutdown(socket.SHUT_WR)
            return sock.recv(1 << 16)
    return b""


def test_a_thousand_malformed_messages_are_refused(sturdy: Cli) -> None:
    """Garbage, wrong lengths, half messages, deep nesting, wrong fields: the service stays up."""
    draw = random.Random(7)
    service = process(sturdy, "service")
    descriptors = open_descriptors(service)
    well = b"\x81\xa2op\xa2ps"  # {"op": "ps"}
    refused = 0
    for number in range(1000):
        body = draw.randbytes(draw.randrange(1, 300))
        message = [
            body,
            struct.pack(">I", len(body)) + body,
            struct.pack(">I", 0xFFFFFFFF) + body,
            struct.pack(">I", 100_000) + body,
            struct.pack(">I", 5000) + b"\x91" * 5000,
            struct.pack(">I", len(well) + 6) + b"\x82\xa2op\xa2ps\xa1x" + b"\xcc\x00\x00\x00\x00",
        ][number % 6]
        answer = _hostile(sturdy, message)
        assert b"\xa4done" not in answer
        refused += b"failed" in answer
    assert refused > 300
    assert b"\xa4done" in _hostile(sturdy, struct.pack(">I", len(well)) + well), "the control"
    assert process(sturdy, "service") == service
    wait_for(lambda: open_descriptors(service) <= descriptors)
    works(sturdy)


def test_connections_that_say_nothing_shut_nobody_out_for_long(sturdy: Cli) -> None:
    """At the limit a call is refused at once and clearly; when they go, calls work again."""
    path = str(sturdy.home / "run/control.sock")
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        time.sleep(0.3)
        assert "[LIMIT-REACHED]" in sturdy.denied("ps")
    wait_for(lambda: sturdy.run("ps").returncode == 0)


def test_clients_that_do_not_read_or_do_not_end_hold_nobody_up(sturdy: Cli) -> None:
    """Those that read nothing of a long answer, half-open ones in the middle of a policy or of a
    system, and those that say nothing: others' calls are done as ever, `up` among them."""
    path, system = str(sturdy.home / "run/control.sock"), str(sturdy.home / "system.toml")
    long = Exec("red", ("echo", *["x" * 2000] * 120))
    calls: list[Call] = [*[long] * 10, *[PolicyLoad("half")] * 3, *[Reconcile()] * 3]
    with contextlib.ExitStack() as stack:
        for number in range(33):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(path)
            if number < len(calls):
                sock.sendall(frame(encode(calls[number])))
            if 10 <= number < len(calls):
                sock.sendall(frame(encode(Input(b"x" * 60_000))))
        began = time.monotonic()
        works(sturdy)
        assert "nothing to change" in sturdy.ok("up", system)
        sturdy.ok("policy", "load", str(sturdy.home / "policy.toml"))
        assert time.monotonic() - began < 10
    works(sturdy)


def test_two_ups_at_once_leave_one_truth(sturdy: Cli) -> None:
    """Each is done or told that another is at work; the files then hold to the last byte."""
    system = str(sturdy.home / "system.toml")
    channels, numbers = sturdy.rows("channels"), iter(range(1000))
    with ThreadPoolExecutor(3) as pool:
        for _ in range(20 if LONG else 3):
            extra = f'[domains.extra-{next(numbers)}]\nlabel = "broker"\nmachine = "simulator"\n'
            write_system(sturdy.home, SYSTEM + extra)
            done = list(pool.map(lambda _: sturdy.run("up", system), range(3)))
            assert 0 in {result.returncode for result in done}
            for result in done:
                assert result.returncode == 0 or "another `up`" in result.stderr, result
            assert "nothing to change" in sturdy.ok("up", system)
    write_system(sturdy.home)
    sturdy.ok("up", system)
    assert [row["id"] for row in sturdy.rows("channels")] == [row["id"] for row in channels]
    sturdy.ok("audit", "verify")


def test_two_operators_at_once_leave_one_truth(sturdy: Cli) -> None:
    """Of two equal calls one is done and one refused; nothing is half made."""
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20 if LONG else 3):
            for words in (["kill", "clerk"], ["start", "clerk"]):
                done = list(pool.map(lambda w: sturdy.run(*w), [words, words]))
                codes = sorted(result.returncode for result in done)
                allowed = [[0, 1]] if words[0] == "start" else [[0, 0], [0, 1]]
                assert codes in allowed, [result.stderr for result in done]
            bound = ["connect", "red", "clerk", "--name", "twin"]
            done = list(pool.map(lambda w: sturdy.run(*w), [bound, bound]))
            assert sorted(result.returncode for result in done) == [0, 1]
            number = next(r.stdout.strip() for r in done if r.returncode == 0)
            done = list(pool.map(lambda w: sturdy.run(*w), [["cut", number]] * 2))
            assert sorted(result.returncode for result in done) == [0, 1]
    assert [row["port"] for row in sturdy.rows("channels")] == ["orders"]
    sturdy.ok("audit", "verify")


def test_a_slow_reader_of_up_does_not_stop_the_system() -> None:
    """Events wait for whoever ran `up`; the domains run meanwhile."""
    cli = Cli()
    system = "".join(
        f'[domains.d{n}]\nlabel = "broker"\nmachine = "simulator"\n' for n in range(100)
    )
    path = write_system(cli.home, f'name = "wide"\npolicy = "policy.toml"\n{system}')
    reader = (
        "import sys, time; time.sleep(3); sys.exit(b'd99 answers' not in sys.stdin.buffer.read())"
    )
    up = subprocess.Popen([SKERRY, "up", path, "-d"], env=cli.env, stdout=subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", reader], stdin=up.stdout) as slow:
        assert up.stdout is not None
        up.stdout.close()
        assert up.wait(60) == 0
        assert slow.wait(60) == 0
    assert {row["state"] for row in cli.rows("ps")} == {"running"}
    cli.down()
