"""A link between two guests: the throughput of TCP over their virtio cards."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import statistics

import msgspec

from bench.bare import BareQemu
from bench.measure import Row, say, versus
from bench.node import RunningNode, running
from bench.place import system
from bench.rows.stream import NOW, bare_spec, sh
from skerry.errors import SkerryError
from skerry.machine.agent import Agent
from skerry.machine.qemu.command import QemuSpec

CARD = "wire"
SOURCE, SINK = "10.0.0.1", "10.0.0.2"
TRANSFER_MB = 24
TRANSFERS = 5

TWO = {CARD: ("one", "two")}


def throughput() -> Row:
    """TCP over a link that the monitor bound, against the same cards joined by hand.

    Every measure boots two machines of its own, as for `stream-vs-bare`.
    """
    text = system(["one", "two"], 'autostart = false\nboard = "pc"', TWO, kind="link")
    with running(text) as node:
        say("one boot of each to warm up")
        node.run(_ours(node))
        spec = node.run(bare_spec(node))
        node.run(_bare(spec))
        say(f"the link's transport is {node.streams.transport}; every measure boots two machines")
        return versus(
            "link-vs-bare",
            "MB/s",
            lambda: node.run(_ours(node)),
            lambda: node.run(_bare(spec)),
            ">= 0.97",
            runs=12,
            seconds=500,
        )


async def _ours(node: RunningNode) -> float:
    """Start both domains, and return the throughput between them."""
    await asyncio.gather(*(node.start(name) for name in ("one", "two")))
    try:
        return await _transfers(await node.agent("one"), await node.agent("two"))
    finally:
        for name in ("one", "two"):
            await node.kill(name)


async def _bare(spec: QemuSpec) -> float:
    """The same between two machines that are wired by hand."""
    with contextlib.ExitStack() as exits:
        machines = [
            exits.enter_context(
                contextlib.closing(
                    BareQemu(msgspec.structs.replace(spec, name=name), cards={CARD: end})
                )
            )
            for name, end in zip(("one", "two"), socket.socketpair(), strict=True)
        ]
        return await _transfers(*[await machine.agent() for machine in machines])


async def _transfers(source: Agent, sink: Agent) -> float:
    """Return the median of some transfers, the first of which only warms up."""
    for agent, address in ((source, SOURCE), (sink, SINK)):
        await sh(agent, f"link-up {CARD} {address}/24")
    size = f"bs=1M count={TRANSFER_MB}"
    await sh(source, f"mkdir /tmp/w; dd if=/dev/zero of=/tmp/w/f {size} 2>/dev/null")
    await sh(source, f"httpd -p {SOURCE}:80 -h /tmp/w")
    await _transfer(sink)
    return statistics.median([await _transfer(sink) for _ in range(TRANSFERS)])


async def _transfer(sink: Agent) -> float:
    """Move `TRANSFER_MB` and return MB/s, by the sink's clock.

    The source's busybox sends a file from memory by `sendfile`: to copy through `nc`, a kilobyte at
    a time, would cost its guest several times what the card does.
    """
    said = await sh(sink, f"{NOW}; now; wget -q -O /dev/null http://{SOURCE}/f; echo $?; now")
    times = [int(found) for found in re.findall(r"^now at (\d+) nsecs", said, re.MULTILINE)]
    if len(times) != 2 or "\n0\n" not in said:
        raise SkerryError(f"the transfer did not come to its end: {said!r}")
    return TRANSFER_MB * (1 << 20) / 1e6 / ((times[1] - times[0]) / 1e9)
