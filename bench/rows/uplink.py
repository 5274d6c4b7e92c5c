"""An uplink: its throughput, against the same passt started by hand, unconfined."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

from bench.bare import BareQemu
from bench.measure import Row, say, versus
from bench.place import image, open_domain_uids, run
from skerry.device.uplink import netns
from skerry.device.uplink.use import BINARY, GATEWAY_MAC, MTU
from skerry.device.uplink.words import GATEWAY, GUEST, PREFIX
from skerry.errors import SkerryError
from skerry.image.minimal import CMDLINE
from skerry.machine.agent import Agent
from skerry.machine.qemu.command import QemuSpec
from skerry.machine.qemu.tsc import tsc_khz
from tests.support.cli import Cli

SIZE = 64 << 20
"""Bytes of one download."""

WAIT_S = 60.0
DOMAIN, PORT = "agent", "web"
POLICY = """
[policy]
name = "bench"
version = "1.0"
bootstrap = "SystemManagement"
[simple-type-enforcement]
types = ["work"]
[labels.SystemManagement]
ste = ["work"]
[labels.bench]
ste = ["work"]
[resources.outside]
ste = "work"
"""


class Source:
    """Sends `SIZE` bytes to whoever connects, and notes how long that took."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("0.0.0.0", 0))
        self._listener.settimeout(WAIT_S)
        self.port: int = self._listener.getsockname()[1]

    def measure(self) -> float:
        """Serve one download; return its MB a second, up to the other side's end."""
        accepted, _ = self._listener.accept()
        with accepted:
            accepted.settimeout(WAIT_S)
            began = time.monotonic()
            accepted.recv(4096)
            accepted.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            accepted.sendall(bytes(SIZE))
            accepted.shutdown(socket.SHUT_WR)
            while accepted.recv(4096):
                pass
            return SIZE / 1e6 / (time.monotonic() - began)

    def close(self) -> None:
        """Serve no more."""
        self._listener.close()


def throughput() -> Row:
    """A download by a domain through its uplink, against one through passt by hand.

    By hand passt connects by itself, with nothing in between, to a server beside it.
    """
    files = image()
    with contextlib.ExitStack() as exits:
        source = exits.enter_context(contextlib.closing(Source()))
        cli = exits.enter_context(_up(source.port))
        spec = QemuSpec(
            name=DOMAIN,
            label="bench",
            kernel=files.kernel,
            bzimage=files.bzimage,
            initrd=files.initrd,
            cmdline=CMDLINE,
            board="pc",
            tsc_khz=tsc_khz(),
        )
        runner = exits.enter_context(asyncio.Runner())
        card, other = exits.enter_context(_passt())
        bare = exits.enter_context(contextlib.closing(BareQemu(spec, cards={PORT: card})))
        agent = runner.run(bare.agent())
        runner.run(_sh(agent, f"uplink-up {PORT}"))
        get = f"wget -q -O /dev/null http://{GATEWAY}:"

        def ours() -> float:
            with _serving(source) as done:
                run(cli, "exec", DOMAIN, "--", "sh", "-c", f"{get}{source.port}/")
            return done[0]

        def by_hand() -> float:
            with _serving(other) as done:
                runner.run(_sh(agent, f"{get}{other.port}/"))
            return done[0]

        say("one download each to warm up")
        ours(), by_hand()
        return versus("uplink-vs-passt", "MB/s", ours, by_hand, ">= 0.5", runs=8, seconds=300)


@contextlib.contextmanager
def _up(port: int) -> Iterator[Cli]:
    """Give a node with one domain, whose uplink is up."""
    accepted = ["cgroup"] if open_domain_uids() else ["cgroup", "uid"]
    cli = Cli()
    try:
        (cli.home / "policy.toml").write_text(POLICY)
        (cli.home / "system.toml").write_text(
            f"""name = "bench"
policy = "policy.toml"
[jail]
accept-missing = {accepted}
[domains.{DOMAIN}]
label = "bench"
accel = "tcg"
uses = ["{PORT}"]
[resources.{PORT}]
kind = "uplink"
label = "outside"
allow = ["127.0.0.1:{port}"]
"""
        )
        run(cli, "up", str(cli.home / "system.toml"), "--detach")
        run(cli, "exec", DOMAIN, "--", "uplink-up", PORT)
        yield cli
    finally:
        cli.down()


@contextlib.contextmanager
def _passt() -> Iterator[tuple[socket.socket, Source]]:
    """Give what takes the frames of a card to a passt, and the source that it connects to.

    Both are in a network namespace of their own, made by a thread, which stays in it.
    """
    ours, theirs = socket.socketpair()
    words = ["-f", "-q", "-e", "-4", "-m", str(MTU), "--fd", str(theirs.fileno())]
    words += [
        "-a",
        GUEST,
        "-n",
        str(PREFIX),
        "-g",
        GATEWAY,
        "-i",
        "lo",
        "-D",
        GATEWAY,
        "-M",
        GATEWAY_MAC,
    ]
    made: list[tuple[Source, subprocess.Popen[bytes]]] = []

    def make() -> None:
        netns.unshare(netns.CLONE_NEWNET)
        netns.make_all_local()
        passt = subprocess.Popen(
            [str(BINARY), *words],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        made.append((Source(), passt))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    theirs.close()
    if not made:
        raise SkerryError("no network namespace can be made here", fix="run this row as root")
    source, passt = made[0]
    try:
        yield ours, source
    finally:
        source.close()
        passt.kill()
        passt.wait()


@contextlib.contextmanager
def _serving(source: Source) -> Iterator[list[float]]:
    """Serve one download meanwhile; its figure is there afterwards."""
    done: list[float] = []
    thread = threading.Thread(target=lambda: done.append(source.measure()))
    thread.start()
    yield done
    thread.join()
    if not done:
        raise SkerryError("the guest did not take the download")


async def _sh(agent: Agent, script: str) -> None:
    said = bytearray()
    code = await agent.run(
        ["sh", "-c", script], output=lambda _, data: said.extend(data), timeout_s=WAIT_S
    )
    if code:
        raise SkerryError(f"{script!r} ended with {code} in the bare machine: {bytes(said)!r}")
