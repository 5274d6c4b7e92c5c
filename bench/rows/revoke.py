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
from bench.place import disk_folder
from skerry.audit.writer import AuditTrail
from skerry.channel.stream import StreamBridges
from skerry.errors import SkerryError
from skerry.label import Label
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Exit, Kind
from skerry.policy.history import MemoryHistory
from skerry.policy.load import parse_acm
from skerry.policy.manager import PolicyManager
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.stack import Stack

CHANNELS = 8_000
PAIRS = 40
SAMPLES = 5
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

    async def attach(self, channel: int, kind: Kind, port: str, end: int) -> None:
        """Hand the end to the process."""
        socket.send_fds(self._holder, [channel.to_bytes(4, "big")], [end])

    async def detach(self, channel: int) -> None:
        """Have the process close it."""
        self._holder.send(channel.to_bytes(4, "big"))


def revoke() -> Row:
    """From the call to its return, every refused channel cut and detached at both machines."""
    _check_descriptors()
    say(f"binding {CHANNELS} channels between {2 * PAIRS} domains, {SAMPLES} times")
    seconds = [asyncio.run(_sample()) for _ in range(SAMPLES)]
    return single("revoke-8k-s", "s", seconds, "< 0.5")


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
