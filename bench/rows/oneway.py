"""A one-way stream: its throughput, and what its back-pressure still tells the source."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import time

from bench.bare import BareQemu
from bench.measure import Row, say, single, versus
from bench.node import running
from bench.place import system
from bench.rows.stream import PORT, TWO, bare_spec, ours, transfers
from skerry.channel.one_way import OneWayBridge
from skerry.channel.stream import StreamBridges
from skerry.errors import SkerryError
from skerry.machine.qemu.command import QemuSpec
from tests.support.relays import BareRelays

PAGE = 4096
BITS = 2000
WAITS_US = (5, 10, 20, 50, 100, 200)
"""How long the source looks for a second page; the best of these is the figure."""


def throughput() -> Row:
    """A one-way stream that the monitor bound, against a bare pipe between two QEMUs by hand."""
    text = system(["one", "two"], "autostart = false", TWO, one_way=True)
    with running(text) as node:
        say("one boot of each to warm up; every measure boots two machines of its own")
        node.run(ours(node))
        spec = node.run(bare_spec(node))
        node.run(_bare(spec))
        return versus(
            "oneway-vs-pipe",
            "MB/s",
            lambda: node.run(ours(node)),
            lambda: node.run(_bare(spec)),
            ">= 0.9",
            runs=8,
            seconds=600,
        )


async def _bare(spec: QemuSpec) -> float:
    """The same over one pipe between two machines that are wired by hand."""
    with contextlib.ExitStack() as exits:
        agents = []
        for end in os.pipe():
            machine = exits.enter_context(contextlib.closing(BareQemu(spec)))
            machine.plug_pipe(PORT, end)
            agents.append(await machine.agent())
        sink, source = agents
        return await transfers(source, sink)


def covert() -> Row:
    """Bits that a sink tells its source through `overflow = "block"`, both in an attacker's hands.

    The sink makes room for one page or for two, the source counts; both are this process, so that
    they are in step at no cost. What errors take away is taken off, as for a symmetric channel.
    """
    return single("oneway-back-kbit-s", "kbit/s", [asyncio.run(_covert())], "shown")


async def _covert() -> float:
    relays = BareRelays()
    bridge = StreamBridges(relay=relays.start).mint(True)
    await bridge.open(1)
    try:
        return max([await asyncio.to_thread(_told, bridge, wait / 1e6) for wait in WAITS_US]) / 1e3
    finally:
        bridge.cut()
        await relays.started[1].exited


def _told(bridge: OneWayBridge, wait_s: float) -> float:
    """Return the bits a second that arrive if the source waits so long for a second page."""
    source, sink = bridge.ends["source"], bridge.ends["sink"]
    os.set_blocking(source, False)
    _fill(source)
    random.seed(1)
    bits = [random.random() < 0.5 for _ in range(BITS)]
    begin, wrong = time.perf_counter(), 0
    for bit in bits:
        os.read(sink, 2 * PAGE if bit else PAGE)
        if not _room(source, 1.0):
            raise SkerryError("the relay did not move what it had room for")
        told = _room(source, wait_s)
        wrong += told != bit
        _room(source, 0.0)
    rate, error = BITS / (time.perf_counter() - begin), wrong / BITS
    return rate * (1 - _entropy(min(error, 0.5)))


def _room(source: int, wait_s: float) -> bool:
    """Try to write one page, for some time."""
    end = time.perf_counter() + wait_s
    while True:
        with contextlib.suppress(BlockingIOError):
            os.write(source, b"x" * PAGE)
            return True
        if time.perf_counter() >= end:
            return False


def _fill(source: int) -> None:
    """Write until both pipes are full."""
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        _room(source, 0.0)


def _entropy(error: float) -> float:
    if error <= 0:
        return 0.0
    return -error * math.log2(error) - (1 - error) * math.log2(1 - error)
