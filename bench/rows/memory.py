"""A shared memory between two guests: its throughput, and the round trip of one word.

Throughput is compared between pairs of machines. A round trip differs by a factor of ten from one
pair to the next, whoever wired it, as threads come to lie on the host's cores; so the memory that
it is compared with is another one of the same pair, plugged in by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
from collections.abc import Awaitable, Callable, Iterator

from bench.bare import BareQemu
from bench.measure import Row, say, versus
from bench.node import RunningNode, running
from bench.place import system
from bench.program import INSTALL, program
from bench.rows.stream import bare_spec
from skerry.errors import SkerryError
from skerry.machine.agent import Agent
from skerry.machine.qemu.command import QemuSpec
from skerry.machine.qemu.qmp import Qmp
from skerry.machine.qemu.shared import SLOTS

SIZE = 1 << 20
TURNS = 25
MEGABYTES, ROUNDS = 128, 50_000
"""Of one turn; the first only warms up."""

WAIT_S = 120.0
OURS, BY_HAND = (f"/sys/bus/pci/devices/0000:00:{slot:02x}.0" for slot in SLOTS[:2])
SYSTEM = 'autostart = false\nboard = "pc"'
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
    program("ring")
    with running(system(["one", "two"], SYSTEM) + CHANNEL) as node:
        say("one boot of each to warm up; every measure boots two machines of its own")
        node.run(ours(node, rate))
        spec = node.run(bare_spec(node))
        node.run(bare(spec, rate))
        return versus(
            "memory-vs-bare",
            "MB/s",
            lambda: node.run(ours(node, rate)),
            lambda: node.run(bare(spec, rate)),
            ">= 0.95",
            runs=6,
            seconds=500,
        )


def round_trip() -> Row:
    """A memory that the monitor bound, against one that was plugged in by hand, in microseconds."""
    program("ring")
    with running(system(["one", "two"], SYSTEM) + CHANNEL) as node:
        one, two = node.run(_with_another(node))
        return versus(
            "memory-rtt-vs-bare",
            "µs",
            lambda: node.run(trip(one, two, OURS)),
            lambda: node.run(trip(one, two, BY_HAND)),
            "<= 1.05",
            runs=12,
        )


async def ours(node: RunningNode, measure: Measure) -> float:
    """Start both domains, and measure between them."""
    await _start(node)
    try:
        return await measure(await node.agent("one"), await node.agent("two"))
    finally:
        for name in ("one", "two"):
            await node.kill(name)


async def _start(node: RunningNode) -> None:
    await asyncio.gather(*(node.start(name) for name in ("one", "two")))


async def bare(spec: QemuSpec, measure: Measure) -> float:
    """Measure between two machines that are wired by hand."""
    with contextlib.ExitStack() as exits:
        memory = exits.enter_context(_memory())
        machines = [exits.enter_context(contextlib.closing(BareQemu(spec))) for _ in range(2)]
        for machine in machines:
            machine.plug_memory(SLOTS[0], memory)
        one, two = [await machine.agent() for machine in machines]
        return await measure(one, two)


@contextlib.contextmanager
def _memory() -> Iterator[int]:
    memory = os.memfd_create("ring", os.MFD_CLOEXEC)
    try:
        os.ftruncate(memory, SIZE)
        yield memory
    finally:
        os.close(memory)


async def _with_another(node: RunningNode) -> list[Agent]:
    """Start both domains, plug a memory by hand into both, and install the program."""
    await _start(node)
    with _memory() as memory:
        for name in ("one", "two"):
            await _plug(node.machine(name)._qmp, memory)
    agents = [await node.agent(name) for name in ("one", "two")]
    for agent in agents:
        await _install(agent, OURS, BY_HAND)
    return agents


async def _plug(qmp: Qmp, memory: int) -> None:
    number = await qmp.give_number(memory, 1)
    file = {"qom-type": "memory-backend-file", "mem-path": f"/proc/self/fd/{number}", "size": SIZE}
    await qmp.execute("object-add", {**file, "id": "by-hand", "share": True})
    device = {"driver": "ivshmem-plain", "addr": f"{SLOTS[1]:#x}", "memdev": "by-hand"}
    await qmp.execute("device_add", {**device, "id": "window"})


async def rate(one: Agent, two: Agent) -> float:
    """Return MB/s, the median of some turns."""
    for agent in (one, two):
        await _install(agent, OURS)
    does = f"send {MEGABYTES} {TURNS}", f"receive {MEGABYTES} {TURNS}"
    seconds = await _turns(one, two, does, OURS)
    return MEGABYTES * (1 << 20) / 1e6 / seconds


async def trip(one: Agent, two: Agent, memory: str) -> float:
    """Return the microseconds of one round trip, the median of some turns."""
    does = f"answer {ROUNDS} {TURNS}", f"ask {ROUNDS} {TURNS}"
    return 1e6 / ROUNDS * await _turns(two, one, does, memory)


async def _install(agent: Agent, *memories: str) -> None:
    enable = "".join(f" && echo 1 > {memory}/enable" for memory in memories)
    await _run(agent, INSTALL.format("ring") + enable, program("ring"))


async def _turns(silent: Agent, counts: Agent, does: tuple[str, str], memory: str) -> float:
    """Run the program in both; return the median seconds of a turn after the first."""
    runs = [f"/tmp/ring {memory}/resource2 {words}" for words in does]
    _, said = await asyncio.gather(_run(silent, runs[0]), _run(counts, runs[1]))
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
