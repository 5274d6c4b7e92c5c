"""Law 5: nothing comes back over a one-way stream, whatever holds its ends; and what a relay is.

Stand-ins for two compromised QEMUs, each in QEMU's jail, hold the ends. The sink's tries to send on
every descriptor that it has, by every call that moves bytes, and to open its end the other way; the
source's reads whatever it can.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.channel import relay as relay_module
from skerry.channel.one_way import OneWayBridge, StartRelay
from skerry.channel.stream import StreamBridges
from skerry.jail.identity import Identity, IdentityPool
from skerry.monitor.protocols import Overflow
from skerry.node import relays
from skerry.node.helper_root import PYTHON
from skerry.node.helpers import Helpers, Order
from skerry.node.relays import Relays
from skerry.supervisor.client import SupervisorClient
from tests.support.relays import BareRelays
from tests.support.stand_ins import StandIn
from tests.support.supervisor import running_supervisor

ACCEPTED = frozenset({"cgroup", "landlock"})

SINK = """
import fcntl, os, socket, time
got = os.read(3, 5)
def held():
    for n in range(64):
        try: os.fstat(n)
        except OSError: continue
        if n not in (1, 2): yield n
def vmsplice(n):
    import ctypes
    data = ctypes.create_string_buffer(b"back!")
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(data), 5)
    if ctypes.CDLL(None, use_errno=True).vmsplice(n, vector, 1, 0) < 0: raise OSError("vmsplice")
def spliced(n):
    r, w = os.pipe(); os.write(w, b"back!")
    try: os.splice(r, n, 5)
    finally: os.close(r); os.close(w)
def sent(n):
    socket.socket(fileno=os.dup(n)).send(b"back!")
def opened(n):
    os.write(os.open(f"/proc/self/fd/{n}", os.O_WRONLY), b"back!")
def setfl(n):
    fcntl.fcntl(n, fcntl.F_SETFL, os.O_RDWR); os.write(n, b"back!")
ways = {"write": lambda n: os.write(n, b"back!"), "pwrite": lambda n: os.pwrite(n, b"back!", 0),
    "writev": lambda n: os.writev(n, [b"back!"]), "splice": spliced, "vmsplice": vmsplice,
    "send": sent, "open": opened, "setfl": setfl}
worked = []
for n in list(held()):
    for name, way in ways.items():
        try: way(n); worked.append(name)
        except OSError: pass
print(got, *sorted(set(worked)), flush=True)
time.sleep(60)
"""

SOURCE = """
import os, select, time
os.write(3, b"forth")
got, end = set(), time.monotonic() + 3
while time.monotonic() < end:
    for n in (0, 3, *range(4, 64)):
        arrival = select.poll(); arrival.register(n, select.POLLIN)
        ready = arrival.poll(0)
        try:
            if ready: got.add(os.read(n, 5))
        except OSError: pass
    time.sleep(0.05)
print(sorted(got), flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory that the jails' uids can traverse."""
    with tempfile.TemporaryDirectory(prefix="skerry-jail-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def started(client: SupervisorClient, identity: Identity) -> tuple[Helpers, StartRelay]:
    """Return what starts relays as a node does."""
    helpers = Helpers(client, lambda name: identity, ACCEPTED)
    return helpers, Relays(helpers, lambda name: identity).start


async def _attack(
    client: SupervisorClient, ends: tuple[int, int], pool: IdentityPool
) -> tuple[list[str], str]:
    """Run both stand-ins; return what the sink got and could do, and what the source read."""
    off: frozenset[str] = frozenset()
    sink, source = StandIn(client, pool, off), StandIn(client, pool, off)
    await sink.start(SINK, ends[1])
    await source.start(SOURCE, ends[0])
    got = await source.line(), (await sink.line()).split()
    await sink.close()
    await source.close()
    return got[1], got[0]


@pytest.mark.parametrize("overflow", ["block", "drop"])
def test_nothing_comes_back_over_a_one_way_stream(
    overflow: Overflow, pool: IdentityPool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sink's stand-in has no way to send that works; the source's reads nothing."""
    monkeypatch.setenv("SKERRY_SHARE", str(directory))

    async def run() -> None:
        async with running_supervisor() as client:
            helpers, start = started(client, pool.take("relay"))
            bridge = StreamBridges(relay=start).mint(True, overflow)
            await bridge.open(1)
            try:
                sink, source = await _attack(client, _ends(bridge), pool)
                assert sink == ["b'forth'"]
                assert source == "[]"
            finally:
                bridge.cut()
            await helpers.close()

    asyncio.run(run())


def test_control_a_two_way_stream_carries_back(pool: IdentityPool) -> None:
    """The same two programs over a two-way stream: the sink sends, the source reads it."""

    async def run() -> None:
        async with running_supervisor() as client:
            bridge = StreamBridges().mint()
            try:
                ends = bridge.ends["source"], bridge.ends["sink"]
                sink, source = await _attack(client, ends, pool)
                assert sink[0] == "b'forth'"
                assert {"write", "send", "splice"} <= set(sink[1:])
                assert "back!" in source
            finally:
                bridge.cut()

    asyncio.run(run())


def test_an_end_that_is_opened_the_other_way_leads_nowhere() -> None:
    """Were the jail's root to have /proc: a sink that writes into its own pipe reaches itself.

    Nor does that keep the cut waiting, although its pipe then has no end of its own accord.
    """

    async def run() -> None:
        bare = BareRelays()
        bridge = StreamBridges(relay=bare.start).mint(True)
        await bridge.open(1)
        source, sink = (os.dup(end) for end in _ends(bridge))
        bridge.handed_over()
        back = os.open(f"/proc/self/fd/{sink}", os.O_WRONLY)
        own = os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_NONBLOCK)
        os.write(back, b"back!")
        assert os.read(sink, 5) == b"back!", "the control: the end was opened the other way"
        await asyncio.sleep(0.1)
        with pytest.raises(BlockingIOError):
            os.read(own, 5)
        os.write(back, b"flood")
        async with asyncio.timeout(10):
            bridge.cut()
            await bare.ended()
        for end in (source, sink, back, own):
            os.close(end)

    asyncio.run(run())


def test_a_relay_holds_one_end_of_each_pipe_and_nothing_else(
    pool: IdentityPool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Besides /dev/null it has one descriptor to read and one to write; its uid is its own."""
    monkeypatch.setenv("SKERRY_SHARE", str(directory))
    code = (
        "import fcntl, os\n"
        "held = {}\n"
        "for n in range(64):\n"
        "  try: held[n] = fcntl.fcntl(n, fcntl.F_GETFL) & 3\n"
        "  except OSError: pass\n"
        "os.write(4, repr((held, os.getuid())).encode())\n"
    )
    argv = [str(PYTHON), "-I", "-S", "-c", code]
    monkeypatch.setattr(relays, "command", lambda module: argv)
    own = pool.take("relay")

    async def run() -> str:
        async with running_supervisor() as client:
            helpers, start = started(client, own)
            bridge = StreamBridges(relay=start).mint(True)
            await bridge.open(1)
            relay = bridge._relay
            assert relay is not None
            assert await relay.process.exited == 0
            said = os.read(bridge.ends["sink"], 1000).decode()
            bridge.cut()
            await helpers.close()
            return said

    read, write, both = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
    held = {0: both, 1: both, 2: both, relay_module.READ: read, relay_module.WRITE: write}
    assert asyncio.run(run()) == repr((held, own.uid))


def test_the_loss_of_a_relay_is_told_and_its_identity_used_again(
    pool: IdentityPool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever kills a relay has its channel cut; relays that come and go use up one identity."""
    monkeypatch.setenv("SKERRY_SHARE", str(directory))
    taken: list[Identity] = []

    def take(name: str) -> Identity:
        taken.append(pool.take(name))
        return taken[-1]

    async def run() -> None:
        async with running_supervisor() as client:
            helpers = Helpers(client, take, ACCEPTED)
            maker = Relays(helpers, take)
            lost: list[int] = []
            maker.lost = lost.append
            bridges = StreamBridges(relay=maker.start)
            for number in (1, 2, 3):
                bridge = bridges.mint(True)
                await bridge.open(number)
                relay = bridge._relay
                assert relay is not None
                relay.process.kill()
                await relay.process.exited
                await asyncio.sleep(0)
                assert lost[-1] == number
                bridge.cut()
            assert len(taken) == 1
            await helpers.close()

    asyncio.run(run())


def test_the_relay_s_filter_refuses_what_only_a_talker_needs(
    pool: IdentityPool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No message on a socket, which a helper may send. The control: the helper's filter."""
    monkeypatch.setenv("SKERRY_SHARE", str(directory))
    code = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.sendmsg(4, None, 0)\n"
        "os.write(5, str(ctypes.get_errno()).encode())\n"
    )
    argv = [str(PYTHON), "-I", "-S", "-c", code]

    async def errno_under(profile: str) -> int:
        async with running_supervisor() as client:
            helpers = Helpers(client, pool.take, ACCEPTED)
            near, far = socket.socketpair()
            with near, far:
                fds = {4: far.fileno(), 5: far.fileno()}
                order = Order("r/1", argv, fds, pool.take("relay"), profile)
                assert await (await helpers.launch(order)).exited == 0
                await helpers.close()
                return int(near.recv(10))

    assert asyncio.run(errno_under("relay")) == 1  # EPERM, by the filter
    assert asyncio.run(errno_under("helper")) == 14  # EFAULT, by the kernel


def _ends(bridge: OneWayBridge) -> tuple[int, int]:
    return bridge.ends["source"], bridge.ends["sink"]
