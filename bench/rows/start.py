"""The start of a domain, from the operator's wish to its guest's first line."""

from __future__ import annotations

import time

from bench.bare import BOOT_S, READY, BareQemu
from bench.measure import Row, say, versus
from bench.node import RunningNode, running
from bench.place import system
from skerry.errors import SkerryError
from skerry.machine.qemu.command import QemuSpec

DOMAIN = "guest"


def start() -> Row:
    """Decision, record, jail and machine up to the guest's init, against QEMU by hand."""
    with running(system([DOMAIN], "autostart = false")) as node:
        say("one start of each to warm up")
        node.run(_start(node))
        spec = node.spec(DOMAIN)
        node.run(node.kill(DOMAIN))
        _bare(spec)
        say("18 starts of each and of the control at least: some two minutes")
        return versus(
            "start-vs-bare",
            "s",
            lambda: started(node),
            lambda: _bare(spec),
            "<= 1.05",
            runs=18,
            seconds=420,
        )


def started(node: RunningNode) -> float:
    """Start the domain, end it, and return the seconds to its guest's first line."""
    seconds = node.run(_start(node))
    node.run(node.kill(DOMAIN))
    return seconds


async def _start(node: RunningNode) -> float:
    begin = time.perf_counter()
    await node.start(DOMAIN)
    console = node.machine(DOMAIN).console
    reading = console.subscribe()
    said = console.untrusted_text
    while READY not in said:
        _, piece = await reading.read()
        if not piece or time.perf_counter() - begin > BOOT_S:
            raise SkerryError(f"the domain did not boot: {said[-200:]!r}")
        said += piece
    seconds = time.perf_counter() - begin
    reading.close()
    return seconds


def _bare(spec: QemuSpec) -> float:
    begin = time.perf_counter()
    machine = BareQemu(spec)
    try:
        machine.wait_ready()
        return time.perf_counter() - begin
    finally:
        machine.close()
