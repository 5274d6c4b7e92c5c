"""A shared memory between two guests: its throughput, and the round trip of one word."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
from collections.abc import Awaitable, Callable

from bench.bare import BareQemu
from bench.measure import Row, say, versus
from bench.node import RunningNode, running
from bench.place import system
from bench.program import INSTALL, program
from bench.rows.stream import bare_spec
from skerry.errors import SkerryError
from skerry.machine.agent import Agent
from skerry.machine.qemu.command import QemuSpec
from skerry.machine.qemu.shared import SLOTS

SIZE = 1 << 20
TURNS = 25
MEGABYTES, ROUNDS = 128, 50_000
"""Of one turn; the first only warms up."""

WAIT_S = 120.0
MAP = f"/sys/bus/pci/devices/0000:00:{SLOTS[0]:02x}.0"
CHANNEL = f"""
[[channels]]
kind = "memory"
name = "ring"
from = "one"
to = "two"
size = "{SIZE >> 20}M"
"""

Measure = Callable[[Agent, Agent], Awaitable[float]]


def throughput() -> Row:
    """A memory that the monitor bound, against one between two QEMUs by hand, in MB/s."""
    return _row("memory-vs-bare", "MB/s", rate, ">= 0.95")


def round_trip() -> Row:
    """The same two, asked for one word to come back, in microseconds."""
    return _row("memory-rtt-vs-bare", "µs", trip, "<= 1.05")


def _row(name: str, unit: str, measure: Measure, goal: str) -> Row:
    text = system(["one", "two"], 'autostart = false\nboard = "pc"') + CHANNEL
    program("ring")
    with running(text) as node:
        say("one boot of each to warm up; every measure boots two machines of its own")
        node.run(ours(node, measure))
        spec = node.run(bare_spec(node))
        node.run(bare(spec, measure))
        return versus(
            name,
            unit,
            lambda: node.run(ours(node, measure)),
            lambda: node.run(bare(spec, measure)),
            goal,
            runs=6,
            seconds=500,
        )


async def ours(node: RunningNode, measure: Measure) -> float:
    """Start both domains, and measure between them."""
    await asyncio.gather(*(node.start(name) for name in ("one", "two")))
    try:
        return await measure(await node.agent("one"), await node.agent("two"))
    finally:
        for name in ("one", "two"):
            await node.kill(name)


async def bare(spec: QemuSpec, measure: Measure) -> float:
    """Measure between two machines that are wired by hand."""
    with contextlib.ExitStack() as exits:
        memory = os.memfd_create("ring", os.MFD_CLOEXEC)
        exits.callback(os.close, memory)
        os.ftruncate(memory, SIZE)
        machines = [exits.enter_context(contextlib.closing(BareQemu(spec))) for _ in range(2)]
        for machine in machines:
            machine.plug_memory(SLOTS[0], memory)
        one, two = [await machine.agent() for machine in machines]
        return await measure(one, two)


async def rate(one: Agent, two: Agent) -> float:
    """Return MB/s, the median of some turns."""
    seconds = await _turns(one, f"send {MEGABYTES}", two, f"receive {MEGABYTES}")
    return MEGABYTES * (1 << 20) / 1e6 / seconds


async def trip(one: Agent, two: Agent) -> float:
    """Return the microseconds of one round trip, the median of some turns."""
    return 1e6 / ROUNDS * await _turns(two, f"answer {ROUNDS}", one, f"ask {ROUNDS}")


async def _turns(silent: Agent, does: str, counts: Agent, tells: str) -> float:
    """Run both programs; return the median seconds of a turn after the first."""
    for agent in (silent, counts):
        install = f"{INSTALL.format('ring')}; echo 1 > {MAP}/enable"
        await _run(agent, install, program("ring"))
    run = f"/tmp/ring {MAP}/resource2 {{}} {TURNS}"
    _, said = await asyncio.gather(_run(silent, run.format(does)), _run(counts, run.format(tells)))
    times = [int(line) / 1e9 for line in said.split()]
    if len(times) != TURNS:
        raise SkerryError(f"the program in the guest said {said!r}")
    return statistics.median(times[1:])


async def _run(agent: Agent, script: str, stdin: bytes = b"") -> str:
    said = bytearray()
    code = await agent.run(
        ["sh", "-c", script],
        stdin=stdin,
        output=lambda _, data: said.extend(data),
        timeout_s=WAIT_S,
    )
    if code:
        raise SkerryError(f"a command in a guest failed ({code}): {bytes(said)!r}")
    return said.decode()
