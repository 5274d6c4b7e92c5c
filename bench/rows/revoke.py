"""A change of policy that cuts half of 8,000 live channels."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator
from functools import partial

from bench.measure import Row, say, single
from bench.node import RunningNode, running
from bench.place import POLICY, disk_folder, system
from skerry.audit.writer import AuditTrail
from skerry.channel.stream import StreamBridges
from skerry.errors import SkerryError
from skerry.label import Label
from skerry.machine.agent import Agent
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Exit, Kind
from skerry.policy.history import MemoryHistory
from skerry.policy.load import parse_acm
from skerry.policy.manager import PolicyManager
from skerry.policy.source import NewPolicy
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.stack import Stack

CHANNELS = 8_000
PAIRS = 40
SAMPLES = 5
VM_SAMPLES = 20
PORT = "bulk"
DEVICE = f"/dev/virtio-ports/{PORT}"
OVER = b"over"
_SPARE = 500

OWNER = Label((("acm", "owner"),))
SECURITY = Label((("acm", "security"),))


class HeldMachine:
    """A machine whose ends of channels are held by another process, as a QEMU holds them."""

    kind = "holder"

    def __init__(self, holder: socket.socket) -> None:
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._holder = holder

    async def prepare(self) -> None:
        """Do nothing."""

    async def resume(self) -> None:
        """Do nothing."""

    async def pause(self) -> None:
        """Do nothing."""

    async def shutdown(self, deadline_s: float) -> None:
        """End."""
        self.kill()

    def kill(self) -> None:
        """End."""
        if not self.exited.done():
            self.exited.set_result(Exit(0, "ended"))

    async def attach(self, channel: int, kind: Kind, port: str, *ends: int) -> None:
        """Hand the end to the process."""
        socket.send_fds(self._holder, [channel.to_bytes(4, "big")], list(ends))

    async def detach(self, channel: int) -> None:
        """Have the process close it."""
        self._holder.send(channel.to_bytes(4, "big"))


def revoke() -> Row:
    """From the call to its return, every refused channel cut and detached at both machines."""
    _check_descriptors()
    say(f"binding {CHANNELS} channels between {2 * PAIRS} domains, {SAMPLES} times")
    seconds = [asyncio.run(_sample()) for _ in range(SAMPLES)]
    return single("revoke-8k-s", "s", seconds, "< 0.5")


def revoke_vm() -> Row:
    """From the call to the end of file in the guest that reads, as its agent tells the host."""
    text = system(["one", "two"], "autostart = false", {PORT: ("one", "two")})
    with running(text) as node:
        say(f"two real machines, {VM_SAMPLES} loads")
        return single("revoke-vm-ms", "ms", node.run(_vm_samples(node)), "< 50")


async def _vm_samples(node: RunningNode) -> list[float]:
    for name in ("one", "two"):
        await node.start(name)
    text = POLICY.replace('[labels.bench]\nste = ["work"]', "[labels.bench]")
    wide, narrow = (NewPolicy("bench", each.encode()) for each in (POLICY, text))
    source, sink = await node.agent("one"), await node.agent("two")
    times = []
    for _ in range(VM_SAMPLES):
        ended = await _reading(source, sink)
        begin = time.perf_counter()
        done = await _load(node, narrow)
        times.append((await ended - begin) * 1000)
        if len(done) != 1:
            raise SkerryError(f"{len(done)} channels were cut")
        await _load(node, wide)
        await node.node.monitor.bind("one", "two", port=PORT)
    return times


async def _reading(source: Agent, sink: Agent) -> asyncio.Task[float]:
    """Return the moment at which the reader in the sink sees the end, as it says so.

    It reads already when this returns. The shell itself reads and says: to start a program takes a
    guest longer than what is measured.
    """
    arrived, over = asyncio.Event(), asyncio.Event()

    def heard(_: object, untrusted: bytes) -> None:
        (over if OVER in untrusted else arrived).set()

    async def ended() -> float:
        await over.wait()
        moment = time.perf_counter()
        await reading
        return moment

    there = f"until [ -e {DEVICE} ]; do :; done"
    read = f"exec 3<{DEVICE}; read first <&3; echo $first; read next <&3; echo {OVER.decode()}"
    reading = asyncio.ensure_future(sink.run(["sh", "-c", f"{there}; {read}"], output=heard))
    write = f"{there}; echo begun >{DEVICE}"
    await source.run(["sh", "-c", write], output=lambda _, data: None)
    await arrived.wait()
    return asyncio.ensure_future(ended())


async def _load(node: RunningNode, change: NewPolicy) -> list[object]:
    owner = node.node.setup.owner
    done = await node.node.load("policy_load", owner, change, what="bench")
    cut = done["cut"]
    assert isinstance(cut, list)
    return cut


def _check_descriptors() -> None:
    """The core keeps two twins a channel; a process that can't hold them measures nothing."""
    wanted = 2 * CHANNELS + _SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        raise SkerryError(f"{CHANNELS} channels need {wanted} descriptors; `ulimit -Hn` is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


async def _sample() -> float:
    with disk_folder() as folder, _holders(2) as holders:
        streams = StreamBridges()
        trail = AuditTrail.open(folder / "audit.log")
        manager = PolicyManager(_stack(PAIRS), MemoryHistory())
        monitor = Monitor(manager, trail, {"stream": streams}, time.monotonic)
        try:
            await _fill(monitor, holders)
            candidate = manager.candidate(_stack(PAIRS // 2))
            begin = time.perf_counter()
            done = await monitor.load("policy_load", OWNER, SECURITY, candidate, {})
            seconds = time.perf_counter() - begin
            if (len(done.cut), len(done.kept)) != (CHANNELS // 2, CHANNELS // 2):
                raise SkerryError(f"{len(done.cut)} were cut and {len(done.kept)} kept")
        finally:
            for channel in monitor.channels:
                monitor.cut(channel.number)
            await monitor.settle()
            streams.close()
            await asyncio.to_thread(trail.close)
    return seconds


async def _fill(monitor: Monitor, holders: list[socket.socket]) -> None:
    for pair in range(PAIRS):
        names = f"a{pair}", f"b{pair}"
        for name, holder in zip(names, holders, strict=True):
            label = Label((("acm", f"pair-{pair}"),))
            await monitor.start(OWNER, name, label, partial(HeldMachine, holder))
        await asyncio.gather(*(monitor.bind(*names) for _ in range(CHANNELS // PAIRS)))


def _stack(allowed: int) -> Stack:
    """Return a policy with a label for each pair, of which the first `allowed` may talk."""
    types = [f"type-{pair}" for pair in range(PAIRS)]
    quoted_types = [f'"{name}"' for name in types]
    labels = "".join(
        f"[labels.pair-{pair}]\nste = [{name if pair < allowed else ''}]\n"
        for pair, name in enumerate(quoted_types)
    )
    quoted = ", ".join(quoted_types)
    text = (
        '[policy]\nname = "bench"\nversion = "1.0"\nbootstrap = "owner"\n'
        f"[simple-type-enforcement]\ntypes = [{quoted}]\n"
        f"[labels.owner]\nste = [{quoted}]\n{labels}"
    )
    return Stack([AcmModule(parse_acm(text.encode(), "bench.toml"))])


@contextlib.contextmanager
def _holders(count: int) -> Iterator[list[socket.socket]]:
    """Run processes that hold what they are sent; they end with their sockets."""
    ours: list[socket.socket] = []
    children: list[int] = []
    try:
        for _ in range(count):
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            child = os.fork()
            if child == 0:
                for other in (near, *ours):
                    other.close()
                _hold(far)
                os._exit(0)
            far.close()
            ours.append(near)
            children.append(child)
        yield ours
    finally:
        for near in ours:
            near.close()
        for child in children:
            os.waitpid(child, 0)


def _hold(sock: socket.socket) -> None:
    """Keep the descriptor that comes with a number; close it when the number comes alone."""
    held: dict[bytes, int] = {}
    while True:
        number, fds, _, _ = socket.recv_fds(sock, 4, 1)
        if not number:
            return
        if fds:
            held[number] = fds[0]
        elif number in held:
            os.close(held.pop(number))
