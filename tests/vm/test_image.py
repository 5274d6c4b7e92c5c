"""The image `minimal` under a bare QEMU: it boots, its agent answers, ports and label are there.

One boot serves all the questions, in one test each would cost seconds; the machine is not jailed.
"""

import asyncio
import contextlib
import hashlib
import json
import socket
import subprocess
from collections.abc import Iterator

import pytest

from skerry.errors import MachineError
from skerry.image.minimal import CMDLINE, build_minimal
from skerry.image.store import Image
from skerry.machine.agent import Agent
from skerry.machine.qemu.tsc import tsc_khz
from skerry.node.paths import image_cache

BOOT_S = 120.0


class Guest:
    """A bare QEMU with an agent port; `console` and `monitor` are the host's ends."""

    def __init__(self, image: Image, machine: str) -> None:
        self.agent_end, agent = socket.socketpair()
        self.console, serial = socket.socketpair()
        self.monitor, qmp = socket.socketpair()
        kernel, bus = (
            (image.kernel, "virtio-serial-device")
            if machine == "microvm"
            else (image.bzimage, "virtio-serial-pci")
        )
        # It dies with the test run, however that ends.
        words = f"""
            setpriv --pdeathsig KILL qemu-system-x86_64 -accel tcg -nodefaults
            -no-user-config -display none -no-reboot
            -M {machine} -m 192M -kernel {kernel} -initrd {image.initrd}
            -fw_cfg name=opt/skerry/label,string=broker -fw_cfg name=opt/skerry/name,string=isle
            -chardev socket,id=serial,fd={serial.fileno()} -serial chardev:serial
            -chardev socket,id=qmp,fd={qmp.fileno()} -mon chardev=qmp,mode=control
            -device {bus},id=vs0 -chardev socket,id=agent,fd={agent.fileno()}
            -device virtserialport,chardev=agent,name=skerry.agent
        """.split()
        self.process = subprocess.Popen(
            [*words, "-append", f"{CMDLINE} tsc_early_khz={tsc_khz()}"],
            pass_fds=[agent.fileno(), serial.fileno(), qmp.fileno()],
        )
        for end in (agent, serial, qmp):
            end.close()
        self.monitor.settimeout(10)
        self._lines = self.monitor.makefile("rb")
        self.qmp("qmp_capabilities")

    def qmp(self, command: str, *descriptors: int, **arguments: object) -> None:
        """Execute one monitor command; fails the test on an error."""
        message = json.dumps({"execute": command, "arguments": arguments}).encode()
        socket.send_fds(self.monitor, [message], list(descriptors))
        while "return" not in (reply := json.loads(self._lines.readline())):
            assert "error" not in reply, reply

    def add_port(self, name: str) -> socket.socket:
        """Hot-add a port and return the host's end."""
        mine, theirs = socket.socketpair()
        self.qmp("getfd", theirs.fileno(), fdname=name)
        theirs.close()
        address = {"type": "fd", "data": {"str": name}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        self.qmp("chardev-add", id=name, backend=backend)
        self.qmp("device_add", driver="virtserialport", id=name, chardev=name, name=name)
        return mine

    def close(self) -> None:
        """End the machine and close everything."""
        self.process.kill()
        self.process.wait()
        self._lines.close()
        for end in (self.console, self.monitor, self.agent_end):
            end.close()


@contextlib.contextmanager
def booted(machine: str) -> Iterator[Guest]:
    """Give a machine that boots the image."""
    guest = Guest(build_minimal(image_cache()), machine)
    try:
        yield guest
    finally:
        guest.close()


async def sh(agent: Agent, script: str, *, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run a shell script in the guest; return exit code, output, errors."""
    got = {"out": b"", "err": b""}

    def take(stream: str, data: bytes) -> None:
        got[stream] += data

    code = await agent.run(["sh", "-c", script], stdin=stdin, output=take, timeout_s=30)
    return code, got["out"], got["err"]


async def commands(agent: Agent) -> None:
    """Commands of every kind, alone and together."""
    assert await sh(agent, "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
    data = bytes(range(256)) * 200
    code, digest, _ = await sh(agent, "sha256sum", stdin=data)
    assert (code, digest.split()[0].decode()) == (0, hashlib.sha256(data).hexdigest())
    # Each waits for what the other makes: neither ends unless both run.
    one = sh(agent, "until [ -e /tmp/b ]; do usleep 10000; done; echo a")
    other = sh(agent, "touch /tmp/b; echo b")
    assert [r[1] for r in await asyncio.gather(one, other)] == [b"a\n", b"b\n"]
    every_byte = bytes(range(1, 256)).decode("utf-8", "surrogateescape")
    got: list[bytes] = []
    words = ["printf", "%s", every_byte]
    assert await agent.run(words, output=lambda _s, data: got.append(data)) == 0
    assert b"".join(got) == bytes(range(1, 256))


async def flood(agent: Agent) -> None:
    """A command that never stops is ended in the guest, and leaves nothing behind."""
    with pytest.raises(MachineError, match="did not end"):
        await agent.run(["cat", "/dev/zero"], output=lambda _s, _d: None, timeout_s=0.5)
    gone = "for i in 1 2 3 4 5 6 7 8 9; do pidof cat || exit 0; usleep 100000; done; exit 1"
    assert (await sh(agent, gone))[0] == 0
    left = await sh(agent, "ls /run/skerry/agent | sed 's/[.].*//' | sort -u | wc -l")
    assert left[1] == b"1\n"


async def label(agent: Agent) -> None:
    """The guest reads the label and the name that the host gave, and its source is read-only."""
    assert (await sh(agent, "cat /run/skerry/label"))[1] == b"broker"
    assert (await sh(agent, "hostname"))[1] == b"isle\n"
    assert (await sh(agent, "stat -c %a /run/skerry/label"))[1] == b"444\n"
    source = "/sys/firmware/qemu_fw_cfg/by_name/opt/skerry/label/raw"
    assert (await sh(agent, f"echo high >{source}"))[0] != 0
    assert (await sh(agent, f"cat {source}"))[1] == b"broker"


async def ports(agent: Agent, guest: Guest) -> None:
    """A port that comes gets its link, carries bytes, and loses the link when it goes."""
    port = "/dev/virtio-ports/orders"
    wait = "i=0; until [ {} ]; do usleep 10000; [ $((i+=1)) -lt 500 ] || exit 1; done"
    assert (await sh(agent, f"[ -e {port} ]"))[0] == 1
    with guest.add_port("orders") as mine:
        write = await sh(agent, f"{wait.format(f'-c {port}')}; echo hello >{port}")
        assert write[0] == 0
        mine.settimeout(10)
        assert await asyncio.to_thread(mine.recv, 100) == b"hello\n"
        guest.qmp("device_del", id="orders")
        assert (await sh(agent, wait.format(f"! -L {port}")))[0] == 0


@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_the_image_boots_and_serves(machine: str) -> None:
    """Commands, flood, label, hot-plugged ports, the ready line and switching off, in one boot."""

    async def play(guest: Guest) -> None:
        agent = Agent(guest.agent_end)
        with contextlib.closing(agent):
            await agent.ready(BOOT_S)
            await commands(agent)
            await flood(agent)
            await label(agent)
            await ports(agent, guest)
            await agent.ready(10)
            assert (await sh(agent, "true"))[0] == 0
            await agent.poweroff()
            assert await asyncio.to_thread(guest.process.wait, 20) == 0

    with booted(machine) as guest:
        asyncio.run(play(guest))
        assert guest.console.recv(1 << 16).count(b"skerry: ready") == 1
