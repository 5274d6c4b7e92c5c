"""A real QEMU in the jail, started by the supervisor: what it holds, who it is, when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from skerry.jail import cgroup, identity
from skerry.jail.confinement import Confinement, Limits, command
from skerry.jail.errors import LayerOff
from skerry.jail.filter import open_filter
from skerry.machine.qemu.command import BINARY
from skerry.machine.qemu.root import qemu_root
from skerry.supervisor.client import Process, SupervisorClient
from tests.support.supervisor import running_supervisor

ARGUMENTS = "-machine microvm,accel=tcg -nodefaults -no-user-config -display none -m 16 -S"
SANDBOX = "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
QMP = "-chardev socket,id=q,fd=5 -mon chardev=q,mode=control"
Body = Callable[[SupervisorClient, Process, int], Awaitable[None]]


def exists(path: str) -> bool:
    """Tell whether a path exists."""
    return Path(path).exists()


def child_of(pid: int) -> int:
    """Return the one child of a process."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def descriptors(pid: int) -> dict[int, str]:
    """Return what the descriptors of a process lead to."""
    return {int(e.name): str(e.readlink()) for e in Path(f"/proc/{pid}/fd").iterdir()}


def open_directory(name: str) -> Path:
    """Let every uid traverse a directory."""
    Path(name).chmod(0o755)
    return Path(name)


@asynccontextmanager
async def jailed_qemu(directory: Path) -> AsyncIterator[tuple[SupervisorClient, Process, int]]:
    """Start QEMU in the whole jail; yield the client, its process and QEMU's own pid."""
    pool = identity.open_pool()
    assert pool is not None, "these tests need subordinate ids (/etc/subuid) or root"
    groups: tuple[str, ...] = ()
    try:
        groups = cgroup.create("test", Limits(memory=1 << 30, pids=32, cpu=100))
    except LayerOff:
        groups = ()
    place = qemu_root(directory, "microvm")
    jail = Confinement(
        str(place), pool.take("qemu"), cgroups=groups, accepted=frozenset({"cgroup"})
    )
    argv = [BINARY, *f"{ARGUMENTS} {SANDBOX} {QMP}".split()]
    ours, theirs = socket.socketpair()
    filter_fd = open_filter("qemu")
    try:
        async with running_supervisor() as client:
            fds = {5: theirs.fileno(), 9: filter_fd}
            process = await client.spawn("qemu", command(jail, argv, 9), fds)
            theirs.close()
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            greeting = await asyncio.wait_for(loop.sock_recv(ours, 4096), 20)
            assert b"QMP" in greeting
            yield client, process, child_of(process.pid)
    finally:
        os.close(filter_fd)
        theirs.close()
        ours.close()
        cgroup.remove(groups)
        pool.close()
        assert not any(map(exists, groups))


def in_jail(body: Body) -> None:
    """Run an asynchronous test with QEMU in its jail."""

    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="skerry-jail-", dir="/var/tmp") as name:
            async with jailed_qemu(open_directory(name)) as (client, process, pid):
                await asyncio.wait_for(body(client, process, pid), 20)

    asyncio.run(run())


def status(pid: int) -> dict[str, str]:
    """Return the fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {k: v.strip() for k, _, v in (line.partition(":") for line in lines)}


async def dead(pid: int) -> bool:
    """Tell whether a process is gone within five seconds."""
    for _ in range(100):
        if not exists(f"/proc/{pid}") or status(pid)["State"].startswith("Z"):
            return True
        await asyncio.sleep(0.05)
    return False


def test_qemu_is_nobody_with_nothing() -> None:
    """It has a host uid of its own, no capability, the filter, and its own process namespace."""

    async def body(_: SupervisorClient, process: Process, pid: int) -> None:
        seen = status(pid)
        assert len(set(seen["Uid"].split())) == 1
        assert int(seen["Uid"].split()[0]) >= 100000
        assert seen["Groups"] in ("", "65534")
        assert int(seen["CapEff"], 16) == int(seen["CapPrm"], 16) == 0
        assert (seen["Seccomp"], seen["NoNewPrivs"]) == ("2", "1")
        assert seen["NSpid"].split()[-1] == "1"
        assert status(os.getpid())["Seccomp"] == "0"

    in_jail(body)


def test_qemu_preempts_nobody() -> None:
    """It is scheduled as a batch process, as this process, its control, is not."""

    async def body(_: SupervisorClient, process: Process, pid: int) -> None:
        assert os.sched_getscheduler(pid) == os.SCHED_BATCH
        assert os.sched_getscheduler(0) == os.SCHED_OTHER

    in_jail(body)


def test_qemu_holds_only_what_it_was_given() -> None:
    """Beside its own event descriptors there are the one socket and /dev/null.

    Only root can look; an ordinary user is refused, its jails being other uids.
    """

    async def body(_: SupervisorClient, process: Process, pid: int) -> None:
        if os.getuid() != 0:
            with pytest.raises(PermissionError):
                descriptors(pid)
            return
        for _try in range(50):
            links = descriptors(pid)
            foreign = {n: link for n, link in links.items() if not link.startswith("anon_inode:")}
            if set(foreign) == {0, 1, 2, 5}:
                break
            await asyncio.sleep(0.1)  # it still loads what it runs with
        assert foreign.pop(5).startswith("socket:")
        assert foreign == dict.fromkeys((0, 1, 2), "/dev/null")

    in_jail(body)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_qemu_dies_with_the_supervisor(number: signal.Signals) -> None:
    """No QEMU outlives the supervisor, however that ends."""

    async def body(client: SupervisorClient, process: Process, pid: int) -> None:
        assert exists(f"/proc/{pid}")
        os.kill(client.supervisor_pid, number)  # type: ignore[attr-defined] # running_supervisor
        assert await dead(pid)

    in_jail(body)


def test_qemu_dies_by_its_pidfd_though_the_supervisor_is_frozen() -> None:
    """Killing the process that the supervisor forked kills QEMU behind it."""

    async def body(client: SupervisorClient, process: Process, pid: int) -> None:
        os.kill(client.supervisor_pid, signal.SIGSTOP)  # type: ignore[attr-defined] # see above
        process.kill()
        assert await dead(pid)

    in_jail(body)
