"""The supervisor starts, reports, keeps, and takes everything with it when it ends."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from skerry.supervisor import client as client_module
from skerry.supervisor import wire
from skerry.supervisor.client import STATUS_UNKNOWN, SpawnFailed, SupervisorClient, SupervisorGone
from skerry.supervisor.main import EXIT_RESTART, MAX_DEATHS, RESERVE, Supervisor
from tests.support.supervisor import SOURCE, running_supervisor

PYTHON = "/usr/bin/python3"
SH = "/bin/sh"
SLEEP = "/bin/sleep"


def with_supervisor(test: Callable[[SupervisorClient], Awaitable[None]]) -> None:
    """Run an asynchronous test with a supervisor of its own."""

    async def run() -> None:
        async with running_supervisor() as client:
            await asyncio.wait_for(test(client), 20)

    asyncio.run(run())


def supervisor_pid(client: SupervisorClient) -> int:
    """Return the supervisor's process number."""
    return int(client.supervisor_pid)  # type: ignore[attr-defined] # set by running_supervisor


def is_dead(pidfd: int, seconds: float = 5) -> bool:
    """Tell whether the process of a pidfd ends within some seconds."""
    return bool(select.select([pidfd], [], [], seconds)[0])


def test_exit_statuses_are_reported() -> None:
    """An exit code is positive, a signal negative, and each process gets its own."""

    async def test(client: SupervisorClient) -> None:
        processes = [await client.spawn("x", [SH, "-c", f"exit {n}"], {}) for n in range(5)]
        killed = await client.spawn("y", [SH, "-c", "kill -9 $$"], {})
        assert [await p.exited for p in processes] == [0, 1, 2, 3, 4]
        assert await killed.exited == -9

    with_supervisor(test)


def test_child_holds_exactly_the_descriptors_given() -> None:
    """Wanted numbers that overlap the sources arrive right, and nothing else is open."""

    async def test(client: SupervisorClient) -> None:
        pipes = [os.pipe() for _ in range(4)]
        out_r, out_w = os.pipe()
        code = (
            "import os\n"
            "held = [n for n in range(256) if os.path.exists(f'/proc/self/fd/{n}')]\n"
            "os.write(1, repr([n for n in held if n > 2]).encode())\n"
            "[os.write(n, b'%d' % n) for n in held if n > 2]\n"
            "os.write(1, os.readlink('/proc/self/fd/0').encode())\n"
        )
        # Ask for numbers that are those of other sources inside the supervisor.
        wanted = {n: pipes[i][1] for i, n in enumerate((5, 4, 11, 6))}
        process = await client.spawn("fds", [PYTHON, "-I", "-S", "-c", code], {**wanted, 1: out_w})
        assert await process.exited == 0
        assert os.read(out_r, 999) == b"[4, 5, 6, 11]/dev/null"
        assert [os.read(r, 9) for r, _ in pipes] == [b"5", b"4", b"11", b"6"]
        for fd in [fd for p in pipes for fd in p] + [out_r, out_w]:
            os.close(fd)

    with_supervisor(test)


def test_child_gets_only_the_environment_given() -> None:
    """The environment is the one ordered, nothing of the supervisor's."""

    async def test(client: SupervisorClient) -> None:
        r, w = os.pipe()
        await (await client.spawn("env", ["/usr/bin/env"], {1: w}, env={"A": "b c"})).exited
        assert os.read(r, 999) == b"A=b c\n"
        os.close(r)
        os.close(w)

    with_supervisor(test)


def test_a_program_that_cannot_start_is_an_error_with_its_name() -> None:
    """A missing program fails the spawn with its errno; a relative path is refused."""

    async def test(client: SupervisorClient) -> None:
        with pytest.raises(SpawnFailed, match=r"No such file.*missing") as caught:
            await client.spawn("gone", ["/missing"], {})
        assert caught.value.errno == 2
        with pytest.raises(SpawnFailed, match="absolute"):
            await client.spawn("relative", ["sh"], {})
        with pytest.raises(SpawnFailed, match="No such file"):
            await client.spawn("cgroup", [SH], {}, cgroup="/nowhere")
        with pytest.raises(SpawnFailed, match="limit is 65536"):
            await client.spawn("long", [SH, "x" * 70000], {})
        assert await (await client.spawn("next", [SH, "-c", "exit 3"], {})).exited == 3

    with_supervisor(test)


def test_kept_descriptors_are_held_and_dropped() -> None:
    """A kept write end holds a pipe open until it is dropped."""

    async def test(client: SupervisorClient) -> None:
        r, w = os.pipe()
        os.set_blocking(r, False)
        await client.keep({"end": w})
        os.close(w)
        with pytest.raises(BlockingIOError):
            os.read(r, 1)
        with pytest.raises(SpawnFailed, match="used once"):
            await client.keep({"other": r, "end": r})
        ((name, copy),) = (await client.inherit()).kept.items()
        assert name == "end"  # all of them or none
        os.close(copy)
        await client.drop("end")
        assert os.read(r, 1) == b""
        await client.drop("end")
        os.close(r)

    with_supervisor(test)


def test_a_process_dies_though_the_supervisor_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killing needs no supervisor; a spawn is refused, and what it starts later is killed."""
    monkeypatch.setattr(client_module, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(client_module, "STATUS_SECONDS", 0.1)

    async def test(client: SupervisorClient) -> None:
        process = await client.spawn("sleep", [SLEEP, "100"], {})
        r, w = os.pipe()
        os.kill(supervisor_pid(client), signal.SIGSTOP)
        process.kill()
        assert await process.exited == STATUS_UNKNOWN
        with pytest.raises(SupervisorGone, match="does not answer"):
            await client.spawn("late", [SLEEP, "100"], {1: w})
        os.close(w)
        os.kill(supervisor_pid(client), signal.SIGCONT)
        assert await asyncio.to_thread(os.read, r, 1) == b""  # the late process is gone
        os.close(r)

    with_supervisor(test)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_everything_dies_with_the_supervisor(number: signal.Signals) -> None:
    """However the supervisor ends, its processes end, and the client says so."""

    async def test(client: SupervisorClient) -> None:
        process = await client.spawn("sleep", [SLEEP, "100"], {})
        watch = os.dup(process.pidfd)
        os.kill(supervisor_pid(client), number)
        assert await asyncio.to_thread(is_dead, watch)
        assert await process.exited in (STATUS_UNKNOWN, -9)
        os.close(watch)
        await client.gone
        with pytest.raises(SupervisorGone):
            await client.spawn("more", [SLEEP, "1"], {})

    with_supervisor(test)


def test_a_supervisor_that_is_unheard_loses_no_exit() -> None:
    """While the node does not read, statuses wait; all of them arrive."""

    async def test(client: SupervisorClient) -> None:
        tasks = [client.spawn(f"n{n}", [SH, "-c", "exit 7"], {}) for n in range(60)]
        processes = await asyncio.gather(*tasks)
        assert [await p.exited for p in processes] == [7] * 60

    with_supervisor(test)


def test_a_malformed_message_stops_everything() -> None:
    """Bytes that are no message end the supervisor and what it started."""

    async def test(client: SupervisorClient) -> None:
        process = await client.spawn("sleep", [SLEEP, "100"], {})
        watch = os.dup(process.pidfd)
        client._sock.send(b"[]")
        assert await asyncio.to_thread(is_dead, watch)
        os.close(watch)

    with_supervisor(test)


def test_truncated_messages_are_errors_and_leak_nothing() -> None:
    """A message over the limit is refused by the receiver, its descriptors closed."""
    a, b = wire.pair()
    a.setsockopt(1, 7, 1 << 20)
    r, w = os.pipe()
    wire.send(a, b"{" + b" " * wire.MAX_MESSAGE + b"}", [w])
    os.close(w)
    with pytest.raises(wire.WireFault, match="truncated"):
        wire.receive(b)
    assert os.read(r, 1) == b""
    os.close(r)
    a.close()
    b.close()


def run_node(script: str, errors: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """Start a supervisor with a node that runs a shell script."""
    code = f"import sys; sys.path.insert(0, {SOURCE!r}); import skerry.supervisor.main as m; "
    code += "sys.exit(m.main(sys.argv[1:]))"
    command = [sys.executable, "-I", "-c", code, "--", SH, "-c", script]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)


def test_the_node_is_started_with_its_socket_and_its_status_is_ours() -> None:
    """The supervisor ends when the node says that it is over, with the node's status."""
    with run_node("test -S /proc/self/fd/$SKERRY_SUPERVISOR && exit 1") as supervisor:
        _, err = supervisor.communicate(timeout=10)
        assert supervisor.returncode == 1
        assert b"the node ended with 1; everything is stopped" in err


def test_nodes_that_keep_dying_are_the_end_of_everything() -> None:
    """One more than `MAX_DEATHS` in a row; each is reported."""
    with run_node("echo born; kill -9 $$") as supervisor:
        out, err = supervisor.communicate(timeout=20)
        assert out == b"born\n" * (MAX_DEATHS + 1)
        assert err.count(b"the node ended with -9; another one is started") == MAX_DEATHS
        assert b"the node ended with -9; everything is stopped" in err
        assert supervisor.returncode == 70


def test_a_node_that_asks_for_another_is_no_failure() -> None:
    """Its exit code says so; it may as often as it likes."""
    count = "n=$(cat count 2>/dev/null); echo x$n >count"
    script = f"{count}; [ ${{#n}} -gt {MAX_DEATHS + 3} ] && exit; exit {EXIT_RESTART}"
    with (
        tempfile.TemporaryDirectory() as folder,
        run_node(f"cd {folder}; {script}") as supervisor,
    ):
        supervisor.communicate(timeout=20)
        assert supervisor.returncode == 0


HEIR = """
import asyncio, os, signal, socket, sys
sys.path.insert(0, "{source}")
from skerry.supervisor.client import SupervisorClient
async def main():
    client = SupervisorClient(socket.socket(fileno=int(os.environ["SKERRY_SUPERVISOR"])))
    found = await client.inherit()
    if not found.kept:
        (r, w), (r2, w2) = os.pipe(), os.pipe()
        both = {{"in": w, "out": r2}}
        lives = await client.spawn("lives", ["/bin/cat"], {{0: r, 1: w2}}, keep=both)
        sh = ["/bin/sh", "-c"]
        await client.spawn("ended", [*sh, "sleep 0.05; exit 7"], {{}}, keep={{"ended.x": w}})
        late = await client.spawn("late", [*sh, "exit 8"], {{}}, keep={{"late.x": w}})
        lost = await client.spawn("lost", [*sh, "exit 9"], {{}})
        await lost.exited
        for start in range(0, {many}, 200):
            await client.keep({{f"more.{{n}}": w for n in range(start, start + 200)}})
        await late.exited
        os.kill(os.getpid(), signal.SIGKILL)
    lives, ended, late = (found.processes[name] for name in ("lives", "ended", "late"))
    assert "lost" not in found.processes
    print(len(found.kept), await ended.exited, await late.exited, lives.exited.done(), flush=True)
    os.write(found.kept["in"], b"still there")
    print(os.read(found.kept["out"], 99).decode(), flush=True)
    lives.kill()
    print(await lives.exited, flush=True)
    await client.drop("ended", "late", "lives", "out", *found.kept)
    again = await client.inherit()
    print(set(again.processes) - set(found.processes), flush=True)
asyncio.run(main())
"""


def test_a_new_node_inherits_processes_statuses_and_descriptors() -> None:
    """More than fit into one message; what ended while there was no node has its status."""
    code = HEIR.format(source=SOURCE, many=600)
    with run_node(f"exec {shlex.quote(sys.executable)} -I -c '{code}'") as supervisor:
        out, err = supervisor.communicate(timeout=20)
        first, taken, killed, left = out.decode().splitlines()
        assert first == "604 7 8 False", err
        assert (taken, killed, left) == ("still there", "-9", "set()")
        assert supervisor.returncode == 0


def test_a_process_that_does_not_start_leaves_nothing_kept() -> None:
    """What a start would have kept is kept if and only if the program was forked."""

    async def test(client: SupervisorClient) -> None:
        r, w = os.pipe()
        with pytest.raises(SpawnFailed, match="absolute"):
            await client.spawn("x", ["sh"], {}, keep={"x.in": w})
        await client.spawn("y", [SLEEP, "100"], {}, keep={"y.in": w})
        ((name, copy),) = (await client.inherit()).kept.items()
        assert name == "y.in"
        os.close(copy)
        os.close(r)
        os.close(w)

    with_supervisor(test)


def test_sigterm_lets_the_node_stop_by_itself() -> None:
    """The node hears SIGTERM and may finish; then the supervisor ends with its status."""
    with run_node("trap 'echo done; exit 0' TERM; echo up; while :; do sleep 0.05; done") as sup:
        assert sup.stdout is not None
        assert sup.stdout.readline() == b"up\n"
        sup.terminate()
        out, _ = sup.communicate(timeout=10)
        assert (sup.returncode, out) == (0, b"done\n")


def test_the_supervisor_cannot_be_read_by_others_of_its_uid() -> None:
    """It is not dumpable: /proc/PID belongs to root. An ordinary process of ours is dumpable."""
    program = "import skerry.supervisor.main as m, skerry.supervisor.spawn as s\n"
    program += "import ctypes; l = ctypes.CDLL(None); a = l.prctl(3, 0, 0, 0, 0)\n"
    program += "m.main([]); print(a, l.prctl(3, 0, 0, 0, 0))"
    run = f"import sys; sys.path.insert(0, {SOURCE!r})\n{program}"
    done = subprocess.run([sys.executable, "-I", "-c", run], capture_output=True, check=True)
    assert done.stdout == b"1 0\n"


def test_at_its_limit_of_descriptors_it_refuses_and_can_still_hand_everything_over() -> None:
    """A keep beyond is refused and nothing ends; what is kept is handed over; room is reused."""

    async def main() -> None:
        async with running_supervisor(descriptors=RESERVE + 300) as client:
            kept = 0
            with pytest.raises(SpawnFailed, match="that is the limit"):
                while kept < 1000:
                    await client.keep({f"k/{kept + n}": 0 for n in range(100)})
                    kept += 100
            assert kept == 300
            with pytest.raises(SpawnFailed, match="that is the limit"):
                await client.keep({"one-more": 0})
            found = await client.inherit()
            assert len(found.kept) == kept
            for descriptor in found.kept.values():
                os.close(descriptor)
            await client.drop(*(f"k/{n}" for n in range(10)))
            process = await client.spawn("p", [SH, "-c", "exit 3"], {})
            assert await process.exited == 3
            await client.keep({f"l/{n}": 0 for n in range(8)})
            assert not client.gone.done()

    asyncio.run(main())


def test_a_log_that_takes_nothing_does_not_end_the_supervisor() -> None:
    """On a full disk of the log another node is started, and may end as it likes."""
    count = "n=$(cat count 2>/dev/null); echo x$n >count"
    script = f"{count}; [ ${{#n}} -gt 1 ] && echo over && exit 1; kill -9 $$"
    with (
        tempfile.TemporaryDirectory() as folder,
        Path("/dev/full").open("w") as full,
        run_node(f"cd {folder}; {script}", full.fileno()) as supervisor,
    ):
        out, _ = supervisor.communicate(timeout=20)
        assert (supervisor.returncode, out) == (1, b"over\n")


def no_descriptor(_: int) -> int:
    """Copy a descriptor on a host that has none left."""
    raise OSError(errno.EMFILE, "Too many open files")


def test_a_process_that_cannot_be_handed_to_the_node_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a descriptor the start fails, the process ends, and the supervisor lives."""
    ours, theirs = wire.pair()
    supervisor = Supervisor(theirs)
    supervisor.watch(theirs.fileno(), lambda: None)
    monkeypatch.setattr(os, "dup", no_descriptor)
    message = {"name": "d/x", "argv": [SLEEP, "100"], "fds": [], "env": {}, "cgroup": ""}
    supervisor._spawn(1, {**message, "keep": []}, [])
    (child,) = supervisor.children.values()
    select.select([child.errors], [], [])
    supervisor._started(child)
    supervisor._flush()
    answer, fds = wire.receive(ours)
    assert (answer["op"], answer["errno"], fds) == ("failed", errno.EMFILE, [])
    assert is_dead(child.pidfd)
    supervisor._ended(child)
    assert not supervisor.children
    ours.close()
    theirs.close()


def test_a_hand_over_without_descriptors_loses_what_it_cannot_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says what it can, ends the process that nobody would hold, and goes on."""
    ours, theirs = wire.pair()
    supervisor = Supervisor(theirs, kept={"c/1.source": 0})
    supervisor.watch(theirs.fileno(), lambda: None)
    message = {"name": "d/x", "argv": [SLEEP, "100"], "fds": [], "env": {}, "cgroup": ""}
    supervisor._spawn(1, {**message, "keep": []}, [])
    (child,) = supervisor.children.values()
    for copies in (True, False):
        with monkeypatch.context() as patch:
            if not copies:
                patch.setattr(os, "dup", no_descriptor)
            supervisor._obey({"op": "inherit", "id": 2}, [])
            supervisor._flush()
        answer, fds = wire.receive(ours)
        wire.close_all(fds)
        assert answer["last"]
        assert answer["kept"] == ["c/1.source"] * copies
        assert answer["processes"] == [["d/x", child.pid, None]] * copies
        assert is_dead(child.pidfd, 5 * (not copies)) != copies
    supervisor._started(child)
    supervisor._ended(child)
    supervisor._hang_up()
    ours.close()
    theirs.close()


def test_a_node_that_dies_with_an_answer_unread_is_no_fault_of_the_protocol() -> None:
    """What it said before it died is obeyed, then its end is seen; nothing is stopped for it."""
    ours, theirs = wire.pair()
    supervisor = Supervisor(theirs)
    supervisor.watch(theirs.fileno(), lambda: None)
    supervisor._say({"op": "done", "id": 1})
    supervisor._flush()
    r, w = os.pipe()
    wire.send(ours, wire.encode({"op": "keep", "id": 2, "names": ["end"]}), [w])
    ours.close()
    for _ in range(2):
        supervisor._from_node()
    before, kept = supervisor.exit_code, list(supervisor.kept)
    supervisor._from_node()
    assert (before, kept) == (None, ["end"])
    assert supervisor.exit_code == 0, "the end of a peer that it did not start"
    supervisor._hang_up()
    for descriptor in (r, w, *supervisor.kept.values()):
        os.close(descriptor)
    theirs.close()
