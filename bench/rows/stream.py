"""A stream between two guests: its throughput, and what it costs the core."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import statistics
import time

from bench.bare import BareQemu
from bench.measure import Row, say, single, versus
from bench.node import RunningNode, running
from bench.place import run, system, up
from bench.processes import core, cpu_ms, machines
from skerry.errors import SkerryError
from skerry.machine.agent import Agent
from skerry.machine.qemu.command import QemuSpec
from tests.support.cli import Cli

PORT = "bulk"
DEVICE = f"/dev/virtio-ports/{PORT}"
BLOCK = "bs=32k"
TRANSFER_MB = 64
TRANSFERS = 7
CORE_MB = 256
WAIT_S = 120.0

NOW = "now() { { read a; read a; read a; } </proc/timer_list; echo $a; }"
"""What tells a guest's shell the time: its busybox knows no fractions of a second."""

TWO = {PORT: ("one", "two")}


def throughput() -> Row:
    """A stream that the monitor bound, against a socket pair between two QEMUs by hand.

    Every measure boots two machines of its own: which pages a QEMU happens to get moves its
    throughput by some per cent, and more transfers through the same two would not average that.
    """
    text = system(["one", "two"], "autostart = false", TWO)
    with running(text) as node:
        say("one boot of each to warm up")
        node.run(ours(node))
        spec = node.run(bare_spec(node))
        node.run(_bare(spec))
        say(f"the stream's transport is {node.streams.transport}; every measure boots two machines")
        return versus(
            "stream-vs-bare",
            "MB/s",
            lambda: node.run(ours(node)),
            lambda: node.run(_bare(spec)),
            ">= 0.97",
            runs=18,
            seconds=600,
        )


async def ours(node: RunningNode) -> float:
    """Start both domains, and return the throughput between them."""
    await asyncio.gather(*(node.start(name) for name in ("one", "two")))
    try:
        return await transfers(await node.agent("one"), await node.agent("two"))
    finally:
        for name in ("one", "two"):
            await node.kill(name)


async def bare_spec(node: RunningNode) -> QemuSpec:
    """Describe a machine of the node's for those that are started by hand."""
    await node.start("one")
    try:
        return node.spec("one")
    finally:
        await node.kill("one")


async def _bare(spec: QemuSpec) -> float:
    """The same between two machines that are wired by hand."""
    with contextlib.ExitStack() as exits:
        machines = [
            exits.enter_context(contextlib.closing(BareQemu(spec, {PORT: end})))
            for end in socket.socketpair()
        ]
        return await transfers(*[await machine.agent() for machine in machines])


async def transfers(source: Agent, sink: Agent) -> float:
    """Return the median of some transfers, the first of which only warms up."""
    await _transfer(source, sink)
    return statistics.median([await _transfer(source, sink) for _ in range(TRANSFERS)])


async def _transfer(source: Agent, sink: Agent) -> float:
    """Move `TRANSFER_MB` and return MB/s."""
    writing = asyncio.ensure_future(sh(source, _writer(TRANSFER_MB)))
    said = await sh(sink, _reader(TRANSFER_MB))
    await writing
    return TRANSFER_MB * (1 << 20) / 1e6 / _seconds(said, TRANSFER_MB)


def _writer(megabytes: int) -> str:
    """Return the script that writes one block more than `megabytes`."""
    return f"dd if=/dev/zero of={DEVICE} {BLOCK} count={megabytes * 32 + 1} 2>/dev/null"


def _reader(megabytes: int) -> str:
    """Return the script that reads it, and takes the time from the first block on."""
    read = f"dd of=/dev/null {BLOCK} iflag=fullblock"
    rest = f"{read} count=1 2>/dev/null; now; {read} count={megabytes * 32} 2>&1; now"
    return f"{NOW}; {{ {rest}; }} <{DEVICE}"


async def sh(agent: Agent, script: str) -> str:
    """Run a script in a guest and return what it said. Raises `SkerryError` if it failed."""
    said = bytearray()
    code = await agent.run(
        ["sh", "-c", script], output=lambda _, data: said.extend(data), timeout_s=WAIT_S
    )
    if code:
        raise SkerryError(f"a command in a guest failed ({code}): {bytes(said)!r}")
    return said.decode()


def _seconds(said: str, megabytes: int) -> float:
    """Read what `_reader` said. Raises `SkerryError` if not all bytes came."""
    times = [int(found) for found in re.findall(r"^now at (\d+) nsecs", said, re.MULTILINE)]
    if f"{megabytes * 32}+0 records in" not in said or len(times) != 2:
        raise SkerryError(f"the transfer did not come to its end: {said!r}")
    return (times[1] - times[0]) / 1e9


def core_cpu() -> Row:
    """CPU time of supervisor and node while 256 MB cross a stream between two domains."""
    with up(system(["one", "two"], channels=TWO)) as cli:
        return single("stream-core-cpu-ms", "ms", [_spent(cli) for _ in range(5)], "< 10")


def _spent(cli: Cli) -> float:
    reading = f"({_reader(CORE_MB)}) >/tmp/got 2>&1 &"
    writing = f"(sleep 3; {_writer(CORE_MB)}) >/dev/null 2>&1 &"
    cost, seconds = spent(cli, reading, writing)
    took = _seconds(run(cli, "exec", "two", "--", "cat", "/tmp/got"), CORE_MB)
    say(f"{CORE_MB} MB in {took:.1f} s; the core spent {cost:.2f} ms in {seconds:.1f} s")
    return cost


def spent(cli: Cli, two: str, one: str) -> tuple[float, float]:
    """Return what supervisor and node spend while the guests do this, in ms, and its seconds.

    The scripts begin in the background in a moment, so that nothing but the bytes moves.
    """
    run(cli, "exec", "two", "--", "sh", "-c", two)
    run(cli, "exec", "one", "--", "sh", "-c", one)
    pids, guests = list(core(cli).values()), machines(cli)
    time.sleep(1)  # until the node has done with the commands
    before = cpu_ms(pids)
    seconds = _until_idle(guests)
    return cpu_ms(pids) - before, seconds


def _until_idle(guests: list[int]) -> float:
    """Wait until the machines have worked and rest again; return the seconds that it took."""
    begin = time.monotonic()
    worked = rested = False
    while not (worked and rested):
        if time.monotonic() - begin > WAIT_S:
            raise SkerryError("the guests did not come to rest after the transfer")
        before = cpu_ms(guests)
        time.sleep(0.5)
        share = (cpu_ms(guests) - before) / 500
        worked, rested = worked or share > 0.4, share < 0.1
    return time.monotonic() - begin
