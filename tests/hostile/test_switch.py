"""What members of a switch in an attacker's hands can't do through it, and what its process can't.

Stand-ins for compromised QEMUs, each in QEMU's jail, hold the members' ends; the switch's process
runs in its own jail, as a node starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from skerry.channel.stream import StreamBridge, StreamBridges
from skerry.device.helper import Program
from skerry.device.switch import engine
from skerry.device.switch.profile import LIMITS, PROFILE
from skerry.jail.filter import Profile
from skerry.jail.identity import IdentityPool
from skerry.node.helper_root import PYTHON
from skerry.node.helpers import Helpers, Order, command
from skerry.node.relays import Relays
from skerry.supervisor.client import SupervisorClient
from tests.support.stand_ins import StandIn
from tests.support.supervisor import running_supervisor

ACCEPTED = frozenset({"cgroup", "landlock"})

SENDER = """
import array, os, socket, time
end = socket.socket(fileno=3)
try: end.setsockopt(socket.SOL_SOCKET, 83, 1)
except OSError: pass
body = (b"\\xff" * 6 + b"\\2\\0\\0\\0\\0\\1\\x08\\0" + b"hello").ljust(60, b"\\0")
frame = len(body).to_bytes(4, "big") + body
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [os.memfd_create("x")]))]
try: end.sendmsg([frame], rights); print("sent", flush=True)
except OSError: end.sendall(frame); print("refused", flush=True)
time.sleep(60)
"""

TAKER = """
import socket, time
end = socket.socket(fileno=3)
try: end.setsockopt(socket.SOL_SOCKET, 83, 1)
except OSError: pass
data, ancillary, _, _ = end.recvmsg(1000, 1000)
print(b"hello" in data, len(ancillary), flush=True)
time.sleep(60)
"""

FLOODER = """
import socket, time
end = socket.socket(fileno=3)
def frame(to, source, size):
    body = (to + source + b"\\x08\\0").ljust(size, b"\\0")
    return len(body).to_bytes(4, "big") + body
print("begun", flush=True)
count = 0
while True:
    count += 1
    try: end.sendall(b"".join(
        frame(b"\\xff" * 6, b"\\2" + (count * 20 + n).to_bytes(5, "big"), 1500) for n in range(20)))
    except OSError: time.sleep(60)
"""


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory that the jails' uids can traverse."""
    with tempfile.TemporaryDirectory(prefix="skerry-jail-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


class Lan(NamedTuple):
    """A jailed switch, and the streams of its members."""

    bridges: list[StreamBridge]
    client: SupervisorClient

    def end(self, member: int) -> int:
        """Return a member's machine's end."""
        return self.bridges[member].ends["source"]


@contextlib.asynccontextmanager
async def lan(members: int, pool: IdentityPool) -> AsyncIterator[Lan]:
    """Run one."""
    async with running_supervisor() as client:
        helpers = Helpers(client, pool.take, ACCEPTED)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv, fds = command(engine.__name__), {engine.CONTROL: theirs.fileno()}
        program = Program(argv, fds, PROFILE, LIMITS)
        with ours:
            with theirs:
                helper = await Relays(helpers, pool.take).serve(-1, program)
            bridges = [StreamBridges().mint() for _ in range(members)]
            for number, bridge in enumerate(bridges):
                message = engine.MEMBER.pack(number)
                socket.send_fds(ours, [message], [bridge.twins["sink"]])
            try:
                yield Lan(bridges, client)
            finally:
                for bridge in bridges:
                    bridge.cut()
                helper.process.kill()
                await helper.process.exited
                await helpers.close()


async def _pass(client: SupervisorClient, ends: tuple[int, int], pool: IdentityPool) -> str:
    """Have one stand-in send a descriptor with a frame; return what the other got."""
    off: frozenset[str] = frozenset()
    taker, sender = StandIn(client, pool, off), StandIn(client, pool, off)
    await taker.start(TAKER, ends[1])
    await sender.start(SENDER, ends[0])
    await sender.line()
    got = await taker.line()
    await taker.close()
    await sender.close()
    return got


def test_no_descriptor_passes_a_switch(
    pool: IdentityPool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frame that it was sent with arrives; it does not."""
    monkeypatch.setenv("SKERRY_SHARE", str(directory))

    async def run() -> str:
        async with lan(2, pool) as net:
            return await _pass(net.client, (net.end(0), net.end(1)), pool)

    assert asyncio.run(run()) == "True 0"


def test_control_a_plain_pair_carries_the_descriptor(pool: IdentityPool) -> None:
    """The same two programs."""

    async def run() -> str:
        async with running_supervisor() as client:
            one, other = socket.socketpair()
            with one, other:
                return await _pass(client, (one.fileno(), other.fileno()), pool)

    assert asyncio.run(run()) == "True 1"


def test_a_flooding_member_does_not_keep_others_from_one_another(
    pool: IdentityPool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends to everyone from ever new addresses; two others still get each other's frames."""
    monkeypatch.setenv("SKERRY_SHARE", str(directory))

    async def run() -> int:
        async with lan(3, pool) as net:
            flooder = StandIn(net.client, pool, frozenset())
            await flooder.start(FLOODER, net.end(0))
            await flooder.line()
            arrived = await asyncio.to_thread(_talk, net.end(1), net.end(2), 20)
            await flooder.close()
            return arrived

    assert asyncio.run(run()) >= 5, "of 20 that were sent while the queues were kept full"


def _talk(source: int, sink: int, count: int) -> int:
    """Send so many frames that are told apart, read all the time, and count those that arrive."""
    for end in (source, sink):
        os.set_blocking(end, False)
    arrived = 0
    for number in range(count):
        text = b"talk" + number.to_bytes(2, "big") * 8
        body = (b"\xff" * 6 + b"\2\0\0\0\0\7\x08\0" + text).ljust(60, b"\0")
        os.write(source, len(body).to_bytes(4, "big") + body)
        deadline, seen = time.monotonic() + 0.5, b""
        while time.monotonic() < deadline and text not in seen:
            for end in (source, sink):
                with contextlib.suppress(BlockingIOError):
                    piece = os.read(end, 1 << 20)
                    seen = seen[-100:] + piece if end == sink else seen
        arrived += text in seen
    return arrived


def _run_in_jail(code: str, profile: str | Profile, pool: IdentityPool) -> str:
    """Run a program in a helper's jail with a socket as descriptor 3; return what it wrote."""
    argv = [str(PYTHON), "-I", "-S", "-c", code]

    async def run() -> str:
        async with running_supervisor() as client:
            helpers = Helpers(client, pool.take, ACCEPTED)
            near, far = socket.socketpair()
            with near, far:
                order = Order("r/-1", argv, {3: far.fileno()}, pool.take("switch"), profile)
                assert await (await helpers.launch(order)).exited == 0
                await helpers.close()
                return near.recv(1000).decode()

    return asyncio.run(run())


ATTEMPTS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def errno(name, *arguments):
    ctypes.set_errno(0); getattr(libc, name)(*arguments); return ctypes.get_errno()
found = [errno("sendmsg", 3, None, 0), errno("fsync", 3), errno("socket", 1, 1, 0),
    errno("fork"), errno("shutdown", 0, 2)]
os.write(3, repr(found).encode())
"""


def test_the_switch_s_filter_refuses_what_it_does_not_need(
    pool: IdentityPool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No message with descriptors, no file, no socket, no process; `shutdown` it has.

    The control is the helpers' own filter: the kernel's answers are others where that lets through.
    """
    monkeypatch.setenv("SKERRY_SHARE", str(directory))
    refused, fault, invalid, no_socket = 1, 14, 22, 88
    got = _run_in_jail(ATTEMPTS, PROFILE, pool)
    assert got == repr([refused, refused, refused, refused, no_socket])
    got = _run_in_jail(ATTEMPTS, "helper", pool)
    assert got == repr([fault, invalid, refused, refused, refused])


def test_the_switch_holds_its_control_and_is_nobody(
    pool: IdentityPool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Besides /dev/null it begins with one descriptor; its root has no file that it could write."""
    monkeypatch.setenv("SKERRY_SHARE", str(directory))
    code = (
        "import os\n"
        "held = []\n"
        "for n in range(64):\n"
        "  try: os.fstat(n); held.append(n)\n"
        "  except OSError: pass\n"
        "try: os.open('/x', os.O_CREAT | os.O_WRONLY); made = 1\n"
        "except OSError: made = 0\n"
        "os.write(3, repr((held, made, os.getuid() != 0)).encode())\n"
    )
    assert _run_in_jail(code, PROFILE, pool) == repr(([0, 1, 2, 3], 0, True))
