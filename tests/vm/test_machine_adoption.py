"""A machine outlives its node: killed at any point, the next one goes on where the last stood."""

from __future__ import annotations

import array
import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from skerry.channel.stream import StreamBridge
from skerry.errors import MachineError
from skerry.machine.agent import COMMANDS_MAX
from skerry.machine.console import RESTARTED
from skerry.machine.qemu import qmp
from skerry.machine.qemu.command import command
from skerry.machine.qemu.launch import kept_names
from skerry.machine.qemu.machine import QemuMachine
from skerry.machine.qemu.sockets import SOCKETS
from skerry.machine.qemu.sync import GIVEN
from tests.support.machines import BOOT_S, Host, descendants, sh

NAME, INCARNATION = "orphan", "d/orphan/1"
PORTS = "/dev/virtio-ports"


class Orphan:
    """One booted machine that is abandoned and adopted again and again."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.machine = host.run(host.boot(NAME, incarnation=INCARNATION))

    async def abandon(self) -> tuple[socket.socket, socket.socket]:
        """Kill its node; return copies of what the node wrote to: QMP and the agent's socket."""
        await self.host.abandon(self.machine)
        _, kept = await self.host.inherit(INCARNATION)
        qmp, agent = (kept.pop(f"{INCARNATION}.{item}") for item in ("qmp", "agent"))
        for fd in kept.values():
            os.close(fd)
        return socket.socket(fileno=qmp), socket.socket(fileno=agent)

    async def adopt(self) -> QemuMachine:
        """Be the next node."""
        self.machine = await self.host.heir(NAME, INCARNATION)
        await self.machine.adopt()
        return self.machine

    def held(self) -> int:
        """How many descriptors QEMU has open."""
        return len(list(Path(f"/proc/{descendants(self.machine.pid)[-1]}/fd").iterdir()))


@pytest.fixture(scope="module")
def orphan(host: Host) -> Iterator[Orphan]:
    """The machine of these tests; each leaves it running and without channels, the last ends it."""
    made = Orphan(host)
    yield made
    made.machine.kill()


async def crosses(machine: QemuMachine, port: str, bridge: StreamBridge) -> None:
    """Check that bytes cross both ways between the guest's port and the other end, ours."""
    near = bridge.ends["sink"]
    os.write(near, b"to the guest\n")
    # The guest makes a port's device some time after the port came.
    there = f"until [ -e {PORTS}/{port} ]; do sleep 0.1; done"
    assert await sh(machine, f"{there}; head -n 1 {PORTS}/{port}") == (0, "to the guest\n")
    assert (await sh(machine, f"echo from the guest >{PORTS}/{port}"))[0] == 0
    assert await asyncio.to_thread(os.read, near, 100) == b"from the guest\n"


def test_a_pipe_s_end_that_was_given_and_not_used_is_closed_at_the_adoption(
    host: Host, orphan: Orphan
) -> None:
    """QEMU keeps no descriptor that its new node does not know of. The control: it had kept it."""

    async def run() -> None:
        read, write = os.pipe()
        await orphan.machine._qmp.give_set(write, 14)
        os.close(write)
        os.set_blocking(read, False)
        with pytest.raises(BlockingIOError):
            os.read(read, 1)
        for sock in await orphan.abandon():
            sock.close()
        machine = await orphan.adopt()
        assert os.read(read, 1) == b"", "nobody can write to it any more"
        assert await machine._qmp.execute("query-fdsets") == []
        os.close(read)
        await machine.agent.ready(BOOT_S)

    host.run(run())


def test_an_adopted_machine_goes_on_and_obeys(host: Host, orphan: Orphan) -> None:
    """Channels stay, commands of the dead node end, and the new one can do all that it could."""

    async def run() -> None:
        bridges = [host.bridges.mint() for _ in range(3)]
        first = orphan.machine
        for number, bridge in enumerate(bridges[:2], 1):
            await first.attach(number, "stream", f"port{number}", bridge.ends["source"])
        under_way = asyncio.ensure_future(sh(first, "echo begun >/tmp/flag; cat /dev/zero"))
        await sh(first, "while ! [ -e /tmp/flag ]; do sleep 0.1; done")
        for sock in await orphan.abandon():
            sock.close()
        with pytest.raises(MachineError):
            await under_way
        os.write(bridges[0].ends["sink"], b"meanwhile\n")

        machine = await orphan.adopt()
        assert (machine.running, machine.kind) == (True, first.kind)
        assert machine.attached == {1, 2}
        assert machine.console.untrusted_text.startswith(RESTARTED)
        await machine.agent.ready(BOOT_S)
        assert await sh(machine, "ps | grep -c [z]ero") == (1, "0\n")
        assert await sh(machine, f"head -n 1 {PORTS}/port1") == (0, "meanwhile\n")
        await crosses(machine, "port2", bridges[1])
        await machine.attach(3, "stream", "port3", bridges[2].ends["source"])
        await crosses(machine, "port3", bridges[2])
        await machine.pause()
        await machine.resume()
        for number in (1, 2, 3):
            await machine.detach(number)
        gone = f"while ls {PORTS} | grep -q port; do sleep 0.1; done; ls {PORTS} | grep -c port"
        assert (await sh(machine, gone))[1] == "0\n"
        reader = machine.console.subscribe()
        await sh(machine, "echo hello >/dev/console")
        heard = b""
        async with asyncio.timeout(5):
            while b"hello" not in heard:
                heard += (await reader.read())[1]
        reader.close()
        for bridge in bridges:
            bridge.cut()

    host.run(run())


def _order(command: str, **arguments: object) -> bytes:
    order = {"execute": command, "id": "__qmp#00009", "arguments": arguments}
    return json.dumps(order).encode() + b"\n"


GETFD = _order("getfd", fdname=GIVEN)
ADDRESS = {"type": "fd", "data": {"str": GIVEN}}
BACKEND: Mapping[str, object] = {"type": "socket", "data": {"addr": ADDRESS, "server": False}}
CHARDEV = _order("chardev-add", id="channel9", backend=BACKEND)
DEVICE = _order(
    "device_add",
    driver="virtserialport",
    bus="ports.0",
    name="nine",
    id="channel9-port",
    chardev="channel9",
)
UNPLUG = _order("device_del", id="channel9-port")

POINTS = {
    "a descriptor without its getfd": (b" ", False),
    "half a getfd": (b" " + GETFD[:14], False),
    "a getfd that was not answered": (b" " + GETFD, False),
    "half a chardev-add, in a string": (b" " + GETFD + CHARDEV[:40], False),
    "a chardev without a device": (b" " + GETFD + CHARDEV, True),
    "half a device_add": (b" " + GETFD + CHARDEV + DEVICE[:-3], True),
    "all of it, and no answer read": (b" " + GETFD + CHARDEV + DEVICE, True),
    "a device half gone": (b" " + GETFD + CHARDEV + DEVICE + UNPLUG, True),
}
"""What the dead node had sent of an attach, and whether QEMU then holds the channel."""


@pytest.mark.parametrize("point", POINTS)
def test_a_node_killed_within_an_attach_leaves_nothing(
    host: Host, orphan: Orphan, point: str
) -> None:
    """Wherever it stopped: what is attached is known, is given up, and can be attached anew."""
    sent, holds = POINTS[point]

    async def run() -> None:
        before = orphan.held()
        bridge = host.bridges.mint()
        qmp, agent = await orphan.abandon()
        agent.close()
        with qmp:
            qmp.setblocking(True)
            end = array.array("i", [bridge.ends["source"]])
            qmp.sendmsg([sent], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, end)])
        machine = await orphan.adopt()
        assert machine.attached == ({9} if holds else set())
        if not holds:
            assert orphan.held() == before
        await machine.detach(9)
        assert (machine.attached, orphan.held()) == (frozenset(), before)
        await machine.attach(9, "stream", "nine", bridge.ends["source"])
        await machine.agent.ready(BOOT_S)
        await crosses(machine, "nine", bridge)
        await machine.detach(9)
        assert orphan.held() == before
        bridge.cut()

    host.run(run())


def _full(agent: socket.socket) -> None:
    """Have all commands that there may be flood the output; fill the input up to a torn line."""
    agent.setblocking(False)
    for number in range(12340000, 12340000 + COMMANDS_MAX):
        agent.send(b"argv %d Y2F0IC9kZXYvemVybw==\nrun %d\n" % (number, number))  # cat /dev/zero
    agent.send(b"argv 12345678 c2xlZXA=\n")
    line = b"stdin 12345678 " + b"QUJD" * 1000 + b"\n"
    try:
        while True:
            agent.send(line)
    except BlockingIOError:
        pass


TORN: dict[str, Callable[[socket.socket], object]] = {
    "argv": lambda agent: agent.send(b"argv 12345678 ZWNo"),
    "run": lambda agent: agent.send(b"argv 12345678 ZWNobw==\nrun 1234567"),
    "kill": lambda agent: agent.send(b"kill 1234"),
    "hello": lambda agent: agent.send(b"\nhello 123456781234567"),
    "a full socket": _full,
}


@pytest.mark.parametrize("torn", TORN)
def test_a_line_that_the_dead_node_tore_does_no_harm(host: Host, orphan: Orphan, torn: str) -> None:
    """The next greeting is not glued to it, and what it makes of it is not taken for an answer."""

    async def run() -> None:
        qmp, agent = await orphan.abandon()
        qmp.close()
        with agent:
            TORN[torn](agent)
            if torn == "a full socket":
                await asyncio.sleep(2)  # then the port is full as well
        machine = await orphan.adopt()
        await machine.agent.ready(BOOT_S)
        assert await sh(machine, "sleep 1; echo fine") == (0, "fine\n")
        assert (await sh(machine, "ls /run/skerry/agent | grep -c 1234"))[1] == "0\n"

    host.run(run())


@pytest.mark.parametrize("how", ["guest", "kill"])
def test_an_end_without_a_node_is_known_to_the_next(host: Host, orphan: Orphan, how: str) -> None:
    """The next node learns status and reason; to adopt such a machine is an error that says so."""

    async def run() -> None:
        incarnation = f"d/{how}/1"
        if how == "guest":
            incarnation = INCARNATION
            qmp, agent = await orphan.abandon()
            qmp.close()
            with agent:
                agent.send(b"poweroff 00000000\n")
        else:
            await host.abandon(await host.make(how, incarnation=incarnation))
        process, kept = await host.inherit(incarnation)
        if how == "kill":
            process.kill()
        status = await asyncio.wait_for(process.exited, 20)
        machine = QemuMachine.heir(how, how, incarnation, process, kept)
        end = await asyncio.wait_for(machine.exited, 5)
        assert end.status == status == (0 if how == "guest" else -signal.SIGKILL)
        assert end.reason == (
            "the guest switched itself off" if how == "guest" else "QEMU was ended by SIGKILL"
        )
        with pytest.raises(MachineError, match=f"has ended: {end.reason}"):
            await machine.adopt()
        machine.kill()
        await host.client.drop(*kept_names(incarnation))
        found = await host.inherit_all()
        for fd in found.kept.values():
            os.close(fd)
        assert not {*found.processes, *found.kept} & {*kept_names(incarnation)}

    host.run(run())


def test_a_machine_is_adopted_before_its_first_word(host: Host) -> None:
    """A node killed right after the start: QEMU waits for its greeting to be answered."""

    async def run() -> None:
        incarnation = "d/early/1"
        spec = host.spec("early")
        pairs = [socket.socketpair() for _ in SOCKETS]
        fds = {fd: far.fileno() for fd, (_, far) in zip(SOCKETS.values(), pairs, strict=True)}
        fds |= {0: fds[2], 1: fds[2]}
        names = (f"{incarnation}.{item}" for item in SOCKETS)
        keep = {name: near.fileno() for name, (near, _) in zip(names, pairs, strict=True)}
        launcher = host.launcher(spec)
        await launcher.launch(incarnation, command(spec, launcher.path), fds, keep=keep)
        for near, far in pairs:
            near.close()
            far.close()
        machine = await host.heir("early", incarnation)
        await machine.adopt()
        assert (machine.running, machine.attached) == (False, frozenset())
        await machine.resume()
        status = await machine._qmp.execute("query-status")
        assert isinstance(status, dict)
        assert status["running"] is True
        machine.kill()
        assert (await machine.exited).reason == "killed"

    host.run(run())


def test_a_frozen_machine_is_not_adopted_and_can_be_killed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not answer is an error by the deadline; a kill ends it, with its status."""

    async def run() -> None:
        incarnation = "d/frozen/1"
        machine = await host.make("frozen", incarnation=incarnation)
        await host.abandon(machine)
        for pid in descendants(machine.pid):
            os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(qmp, "COMMAND_S", 0.5)
        heir = await host.heir("frozen", incarnation)
        with pytest.raises(MachineError, match="in time"):
            async with asyncio.timeout(5):
                await heir.adopt()
        heir.kill()
        end = await asyncio.wait_for(heir.exited, 5)
        assert (end.status, end.reason) == (-signal.SIGKILL, "killed")

    host.run(run())
