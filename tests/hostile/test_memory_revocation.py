"""Law 3: a memory that was cut is held by nobody, whatever a QEMU says of it.

Programs stand in for a QEMU in an attacker's hands: they speak its protocol, say that all is given
back, and keep it in one way or another. Each is ended for that; an honest one goes on. The control:
where nobody looks from outside, the liars live on with the memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from skerry.jail.identity import IdentityPool
from skerry.machine.qemu import shared
from skerry.machine.qemu.command import QemuSpec
from skerry.machine.qemu.launch import Launcher, Process
from skerry.machine.qemu.machine import QemuMachine
from skerry.machine.qemu.shared import SharedMemories
from skerry.supervisor.client import SupervisorClient
from skerry.wire import memory
from skerry.wire.memory import Identity
from tests.support.machines import BareLauncher
from tests.support.stand_ins import PYTHON, stand_in_launcher
from tests.support.supervisor import running_supervisor

SIZE = 1 << 16
LOOKS = 50
SPEC = QemuSpec(
    name="a", label="a", kernel=Path("/k"), bzimage=Path("/k"), initrd=Path("/i"), cmdline=""
)

QEMU = """
import array, ctypes, json, mmap, os, signal, socket, sys, threading, time
LIE = sys.argv[1]
qmp = socket.socket(fileno=3)
libc = ctypes.CDLL(None, use_errno=True)
held = {}
def send(message): qmp.sendall(json.dumps(message).encode() + b"\\n")
def keep(fd):
    if LIE == "child" and os.fork() == 0:
        time.sleep(1000)
    if LIE == "thread":
        def hide():
            if libc.unshare(0x400): os._exit(9)
            ready.set()
            time.sleep(1000)
        ready = threading.Event()
        threading.Thread(target=hide, daemon=True).start()
        ready.wait()
    if LIE in ("descriptor", "moves"):
        held["kept"] = os.dup(fd)
        if LIE == "moves":
            def move():
                while True:
                    held["kept"], old = os.dup(held["kept"]), held["kept"]
                    os.close(old)
            threading.Thread(target=move, daemon=True).start()
    if LIE == "mapping":
        held["map"] = mmap.mmap(fd, 4096, prot=mmap.PROT_READ)
        os.close(os.dup(fd))
    if LIE != "thread":
        held["fd"] = fd
    else:
        os.close(fd)
def gone():
    if "fd" in held: os.close(held.pop("fd"))
given = []
send({"QMP": {"version": {}, "capabilities": []}})
rest = b""
while True:
    data, ancillary, _, _ = qmp.recvmsg(65536, socket.CMSG_SPACE(64))
    if not data: break
    for _, _, rights in ancillary: given += array.array("i", rights)
    rest += data
    while rest := rest.lstrip():
        try: order, end = json.JSONDecoder().raw_decode(rest.decode())
        except ValueError: break
        rest = rest[end:]
        answer, words = {}, order.get("arguments", {})
        if order["execute"] == "qom-list": answer = []
        if order["execute"] == "add-fd": answer = {"fd": given[-1]}
        if order["execute"] == "object-add": keep(given.pop())
        if order["execute"] == "getfd": os.close(given.pop())
        send({"return": answer} | ({"id": order["id"]} if "id" in order else {}))
        if order["execute"] == "device_del" and LIE != "silent":
            gone()
            send({"event": "DEVICE_DELETED", "data": {"device": words["id"]}, "timestamp": {}})
"""


class Program:
    """Starts the stand-in in the place of QEMU, by another launcher."""

    def __init__(self, launcher: Launcher, lie: str) -> None:
        self._launcher = launcher
        self._lie = lie

    def path(self, file: Path) -> str:
        """Nothing is needed."""
        return str(file)

    async def launch(
        self,
        name: str,
        argv: Sequence[str],
        fds: Mapping[int, int],
        *,
        keep: Mapping[str, int] | None = None,
    ) -> Process:
        """Start it."""
        words = [PYTHON, "-I", "-S", "-c", QEMU, self._lie]
        return await self._launcher.launch(name, words, fds, keep=keep)


def holders(identity: Identity) -> list[int]:
    """Return the processes of this host, but this one, that map a memory or have it open."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            with contextlib.suppress(OSError):
                maps = (process / "maps").read_text()
                if f" {identity.inode} " in maps and f"memfd:{memory.NAME}" in maps:
                    found.append(int(process.name))
            for task in _inside(process / "task"):
                for descriptor in _inside(task / "fd"):
                    with contextlib.suppress(OSError):
                        status = descriptor.stat()
                        if Identity(status.st_dev, status.st_ino) == identity:
                            found.append(int(process.name))
    return found


def _inside(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(folder.iterdir())
    return []


@contextlib.asynccontextmanager
async def attached(
    client: SupervisorClient, launcher: Launcher, lie: str
) -> AsyncIterator[tuple[QemuMachine, Identity]]:
    """Give a stand-in a memory and its doorbell, as of channel 1."""
    machine = QemuMachine(SPEC, Program(launcher, lie))
    held = memory.make(SIZE, False)
    near, bell = socket.socketpair()
    try:
        await machine.prepare()
        await machine.attach(1, "memory", "m", held, bell.fileno())
        assert holders(memory.identity(held)), "the control: it holds the memory"
        yield machine, memory.identity(held)
    finally:
        machine.kill()
        await machine.exited
        os.close(held)
        near.close()
        bell.close()


def launchers(client: SupervisorClient, jailed: bool, pool: IdentityPool) -> Launcher:
    """Start in QEMU's jail, or without one, where more lies can be told."""
    return stand_in_launcher(client, pool) if jailed else BareLauncher(client)


LIES = [
    ("descriptor", True),
    ("mapping", True),
    ("moves", True),
    ("silent", True),
    ("thread", False),
    ("child", False),
]


@pytest.mark.parametrize(("lie", "jailed"), LIES)
def test_a_qemu_that_keeps_a_memory_is_ended(
    lie: str, jailed: bool, pool: IdentityPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When `detach` returns nothing on this host holds the memory, and the end says why."""
    monkeypatch.setattr(shared, "UNPLUG_S", 1.0)

    async def run() -> None:
        async with running_supervisor() as client:
            launcher = launchers(client, jailed, pool)
            async with attached(client, launcher, lie) as (machine, identity):
                await machine.detach(1)
                assert holders(identity) == []
                end = await asyncio.wait_for(asyncio.shield(machine.exited), 10)
                assert "did not give up the memory of channel 1" in end.reason
                assert machine.attached == frozenset()

    asyncio.run(run())


def test_a_frozen_qemu_is_ended(pool: IdentityPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stands still, and so keeps what it has, is ended within the deadline."""
    monkeypatch.setattr(shared, "UNPLUG_S", 1.0)

    async def run() -> None:
        async with running_supervisor() as client:
            launcher = launchers(client, True, pool)
            async with attached(client, launcher, "honest") as (machine, identity):
                for pid in set(holders(identity)):
                    os.kill(pid, signal.SIGSTOP)
                await machine.detach(1)
                assert holders(identity) == []

    asyncio.run(run())


@pytest.mark.parametrize("jailed", [True, False])
def test_an_honest_qemu_goes_on(
    jailed: bool, pool: IdentityPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: who gives the memory back runs on, and takes another."""
    monkeypatch.setattr(shared, "UNPLUG_S", 5.0)

    async def run() -> None:
        async with running_supervisor() as client:
            launcher = launchers(client, jailed, pool)
            async with attached(client, launcher, "honest") as (machine, identity):
                await machine.detach(1)
                assert holders(identity) == []
                await machine.pause()
                assert not machine.exited.done()

    asyncio.run(run())


@pytest.mark.parametrize(("lie", "jailed"), [lie for lie in LIES if lie[0] != "silent"])
def test_control_nobody_looks_and_a_liar_lives_on(
    lie: str, jailed: bool, pool: IdentityPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were a QEMU's word believed, it would keep the memory."""

    async def believed(self: SharedMemories) -> frozenset[Identity]:
        return frozenset()

    monkeypatch.setattr(SharedMemories, "_held", believed)

    async def run() -> None:
        async with running_supervisor() as client:
            launcher = launchers(client, jailed, pool)
            async with attached(client, launcher, lie) as (machine, identity):
                await machine.detach(1)
                # One that moves its descriptor about slips past a look, but not past them all.
                assert any(holders(identity) for _ in range(LOOKS)) and not machine.exited.done()

    asyncio.run(run())


@pytest.mark.parametrize("told", ["nothing", "another", "the truth"])
def test_a_next_node_ends_who_hides_a_memory(
    told: str, pool: IdentityPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A QEMU that says it holds nothing, or that a memory is another channel's, is looked at.

    The control: what the next node knows by the twin to be of a live channel may stay.
    """
    monkeypatch.setattr(shared, "UNPLUG_S", 1.0)

    async def run() -> None:
        async with running_supervisor() as client:
            launcher = launchers(client, True, pool)
            async with attached(client, launcher, "honest") as (machine, identity):
                if told == "nothing":
                    machine._memories.forget(1)  # as `find` is answered by it
                else:
                    wrong = identity._replace(inode=identity.inode + 1)
                    machine.expect(1, identity if told == "the truth" else wrong)
                await machine.verify()
                assert bool(holders(identity)) is (told == "the truth")
                if told != "the truth":
                    end = await asyncio.wait_for(asyncio.shield(machine.exited), 10)
                    assert "none of its channels" in end.reason

    asyncio.run(run())
