"""What an uplink's helpers can do in an attacker's hands: stand-ins in the jails that they have.

passt's and the gate's try to reach a server of the host, an abstract socket, another network, files
and processes; the dialer's tries what it is not for. The controls: the same program reaches all of
it with the layers off.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from skerry.channel.stream import StreamBridges
from skerry.device.helper import Program
from skerry.device.uplink import gate, netns, words
from skerry.device.uplink.filters import DIALER, GATE, PASST
from skerry.device.uplink.use import LIMITS, Uplinks
from skerry.jail.filter import PROFILES
from skerry.jail.identity import IdentityPool
from skerry.jail.root import build
from skerry.node.helpers import Helpers, Order, command
from skerry.system.model import ResourceSpec
from tests.support.machines import cache
from tests.support.supervisor import running_supervisor
from tests.support.uplink import ByteServer

ACCEPTED = frozenset({"cgroup", "landlock"})
PYTHON = os.path.realpath(sys.executable)
ABSTRACT = b"\0skerry-hostile-uplink"
OUT, PORT = 9, 7811

ATTACK = """
import ctypes, os, socket, struct, sys
port, out, used = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
libc = ctypes.CDLL(None, use_errno=True)
def reach(kind, address):
    with socket.socket(*kind) as sock:
        sock.settimeout(3)
        sock.connect(address)
        return sock.recv(5) if kind[0] == socket.AF_INET else True
def call(result):
    if result < 0: raise OSError(ctypes.get_errno(), "refused")
    return True
def reconnect():
    # A connection that was handed over: made nobody's, then led elsewhere.
    sock = socket.socket(fileno=os.dup(int(used)))
    call(libc.connect(sock.fileno(), struct.pack("=H14x", 0), 16))
    sock.connect(("127.0.0.1", port))
    return sock.recv(5)
ways = {
    "tcp": lambda: reach((socket.AF_INET, socket.SOCK_STREAM), ("127.0.0.1", port)),
    "abstract": lambda: reach((socket.AF_UNIX, socket.SOCK_STREAM), b"\\0skerry-hostile-uplink"),
    "raw": lambda: bool(socket.socket(socket.AF_INET, socket.SOCK_RAW, 6)),
    "packet": lambda: bool(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)),
    "listen": lambda: bool(socket.create_server(("127.0.0.1", 0))),
    "netns": lambda: call(libc.unshare(0x40000000)),
    "setns": lambda: call(libc.setns(os.open("/proc/1/ns/net", os.O_RDONLY), 0)),
    "file": lambda: bool(open("/etc/passwd").read()),
    "kill": lambda: bool(os.listdir("/proc/%d" % os.getppid())) if os.getppid() else 1 / 0,
    "reconnect": reconnect,
}
worked = []
for name, way in ways.items():
    try:
        if way(): worked.append(name)
    except (OSError, ArithmeticError, ValueError): pass
os.write(out, (" ".join(worked) + "\\n").encode())
"""


@pytest.fixture(autouse=True)
def share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jails' roots where the jails' uids can reach them."""
    path = cache() / "share"
    path.mkdir(mode=0o755, parents=True, exist_ok=True)
    monkeypatch.setenv("SKERRY_SHARE", str(path))


@pytest.fixture
def server() -> Iterator[ByteServer]:
    """A server of the host, beside an abstract socket of the host."""
    made = ByteServer()
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(ABSTRACT)
        abstract.listen(4)
        with contextlib.closing(made):
            yield made


def stand_in_root() -> Path:
    """Return a root for Python."""
    links = (("lib", "usr/lib"), ("lib64", "usr/lib64"), ("bin", "usr/bin"))
    return build(cache() / "roots", "stand-in", (), (), ("/usr/",), links)


Change = Callable[[Program], Program]


async def attack(
    pool: IdentityPool, server: ByteServer, program: Program, change: Change, used: int = -1
) -> set[str]:
    """Run the attack in the place of a helper's program; return what worked."""
    read, write = os.pipe()
    argv = [PYTHON, "-I", "-S", "-c", ATTACK, str(server.port), str(OUT), str(used)]
    binds = (("/usr", "/usr"),)
    program = change(program._replace(argv=argv, root=stand_in_root(), binds=binds))
    async with running_supervisor() as client:
        helpers = Helpers(client, pool.take, ACCEPTED)
        order = Order("stand-in", program.argv, {**program.fds, OUT: write}, pool.take("stand-in"))
        process = await helpers.launch(
            order._replace(
                profile=program.profile,
                root=program.root,
                binds=program.binds,
                without=program.without,
                first=program.first,
            )
        )
        os.close(write)
        try:
            async with asyncio.timeout(20):
                await process.exited
        finally:
            process.kill()
        said = os.read(read, 4096).decode()
        os.close(read)
        await helpers.close()
    assert said, "it did not run"
    return set(said.split())


def unchanged(program: Program) -> Program:
    """Keep all of its layers."""
    return program


def uplinks() -> Uplinks:
    """A maker whose programs are looked at."""
    spec = ResourceSpec(
        "web", "uplink", "x", allow=(f"127.0.0.1:{PORT}",), resolvers=("127.0.0.1:1",)
    )

    async def never(*_: object) -> None:
        raise AssertionError

    return Uplinks(spec, never, StreamBridges(), command, lambda: cache() / "roots")  # type: ignore[arg-type]


async def as_passt(pool: IdentityPool, server: ByteServer, change: Change) -> set[str]:
    """Attack from passt's place."""
    with contextlib.ExitStack() as stack:
        control, theirs = map(stack.enter_context, socket.socketpair())
        frames, _ = map(stack.enter_context, socket.socketpair())
        program = await uplinks()._passt({3: frames.fileno(), 4: theirs.fileno()})
        # Python needs more to run than passt; what both may call is as for passt.
        program = program._replace(profile=(*PASST, *PROFILES["helper"]))
        worked = await attack(pool, server, program, change)
        if change is unchanged:
            theirs.close()
            _, descriptors, _, _ = socket.recv_fds(control, 1, netns.FIXED + 1)
            assert len(descriptors) == netns.FIXED + 1
            for descriptor in descriptors:
                os.close(descriptor)
        return worked


def test_passt_in_an_attackers_hands_reaches_nothing_of_the_host(
    pool: IdentityPool, server: ByteServer
) -> None:
    """Not the loopback, no abstract socket, no network of its own, no file, no process."""
    assert asyncio.run(as_passt(pool, server, unchanged)) == set()
    assert server.connections == 0


def test_control_without_its_namespace_and_filter_it_reaches_the_host(
    pool: IdentityPool, server: ByteServer
) -> None:
    """The same program with the layers off: in the host's network, unfiltered."""

    def bare(program: Program) -> Program:
        off = program.without | {"seccomp", "filesystem", "pid"}
        return program._replace(first=(), without=off)

    worked = asyncio.run(as_passt(pool, server, bare))
    assert {"tcp", "abstract", "listen", "file", "kill"} <= worked
    assert server.connections


def test_control_in_the_namespace_it_is_the_filter_that_refuses_raw_and_new_networks(
    pool: IdentityPool, server: ByteServer
) -> None:
    """Without the filter it can still not reach the host: the namespace leads nowhere."""

    def unfiltered(program: Program) -> Program:
        return program._replace(without=program.without | {"seccomp"})

    worked = asyncio.run(as_passt(pool, server, unfiltered))
    assert not worked & {"tcp", "abstract", "file", "setns"}
    assert server.connections == 0


async def as_gate(pool: IdentityPool, server: ByteServer, change: Change) -> set[str]:
    """Attack from the gate's place, with a connection of the host's network in its hands."""
    allowed = ByteServer()
    with contextlib.closing(allowed), contextlib.ExitStack() as stack:
        one, _ = map(stack.enter_context, socket.socketpair(type=socket.SOCK_SEQPACKET))
        used = stack.enter_context(socket.create_connection(("127.0.0.1", allowed.port)))
        fds: Mapping[int, int] = {gate.DIALER: one.fileno(), 8: used.fileno()}
        return await attack(pool, server, Program([], fds, GATE, LIMITS), change, used=8)


def test_the_gate_in_an_attackers_hands_makes_no_socket_and_connects_to_nothing(
    pool: IdentityPool, server: ByteServer
) -> None:
    """Even if it had a connection of the host's network, it could not lead it elsewhere."""
    assert asyncio.run(as_gate(pool, server, unchanged)) == set()
    assert server.connections == 0


def test_control_without_its_filter_a_connection_is_led_elsewhere(
    pool: IdentityPool, server: ByteServer
) -> None:
    """The same program, unfiltered: what it holds it leads to the host's server."""

    def bare(program: Program) -> Program:
        return program._replace(without=frozenset({"seccomp", "network", "landlock"}))

    worked = asyncio.run(as_gate(pool, server, bare))
    assert {"tcp", "reconnect"} <= worked
    assert server.connections


def test_the_dialer_connects_and_does_nothing_else(pool: IdentityPool, server: ByteServer) -> None:
    """It is the way out; it listens nowhere, has no Unix, raw or packet sockets and no files."""
    off = frozenset({"network", "landlock"})
    program = Program([], {}, DIALER, LIMITS, without=off)
    assert asyncio.run(attack(pool, server, program, unchanged)) == {"tcp"}
    assert server.connections == 1


def test_control_the_usual_filter_of_a_helper_forbids_even_that(
    pool: IdentityPool, server: ByteServer
) -> None:
    """So it is its own filter that lets it connect, and nobody else's does."""
    off = frozenset({"network", "landlock"})
    program = Program([], {}, PROFILES["helper"], LIMITS, without=off)
    assert asyncio.run(attack(pool, server, program, unchanged)) == set()


def test_words_for_the_hosts_loopback_are_the_gateways_alone() -> None:
    """Only the gateway's address stands for 127.0.0.1, in both directions."""
    assert (words.outward(words.GATEWAY), words.inward(words.HOST)) == (words.HOST, words.GATEWAY)
    assert words.outward("127.0.0.1") == "127.0.0.1"
    assert words.inward("10.0.0.1") == words.outward("10.0.0.1") == "10.0.0.1"
