"""A question to the policy manager: in a guest of its own, against a process of its own."""

from __future__ import annotations

import asyncio
import socket
import time

from bench.measure import Row, compare, percentile, say
from skerry.image.build import build
from skerry.image.recipe import preset
from skerry.node.services import ANSWER_S
from skerry.policy.client import Process, RemoteManager
from skerry.policy.history import MemoryHistory
from skerry.system.model import MANAGER_DOMAIN, MANAGER_MEMORY
from tests.support import remote
from tests.support.machines import Host, cache
from tests.unit.policy.banks import BANK_A, BANKS, BROKER

QUESTIONS = 500


def guest() -> Row:
    """The history question of a Chinese Wall, which no cache answers; median of `QUESTIONS`."""
    host = Host()
    try:
        ours, other = host.run(_alternate(host))
    finally:
        host.close()
    for name, times in (("guest", ours), ("process", other)):
        say(f"{name}: median {percentile(times, 0.5):.2f} ms, p99 {percentile(times, 0.99):.2f} ms")
    return compare("ask-guest-vs-process", "ms", ours, other, "<= 10")


async def _alternate(host: Host) -> tuple[list[float], list[float]]:
    processes = remote.Host()
    managers = [
        RemoteManager(start, BANKS, MemoryHistory(), processes.note, answer_s=ANSWER_S)
        for start in (lambda: _boot(host), processes.start)
    ]
    times: tuple[list[float], list[float]] = ([], [])
    try:
        for manager in managers:
            await manager.begin()
        for number in range(QUESTIONS):
            for which in ((0, 1), (1, 0))[number % 2]:
                begin = time.perf_counter()
                await managers[which].admit_bind(BROKER, BANK_A)
                times[which].append((time.perf_counter() - begin) * 1e3)
    finally:
        for manager in managers:
            await manager.close()
        processes.close()
    return times


async def _boot(host: Host) -> tuple[socket.socket, Process]:
    """Boot the manager's image, jailed, and return the way to it."""
    image = await asyncio.to_thread(build, cache(), preset(MANAGER_DOMAIN))
    machine = await host.make(
        MANAGER_DOMAIN,
        kernel=image.kernel,
        bzimage=image.bzimage,
        initrd=image.initrd,
        cmdline=image.cmdline,
        memory=MANAGER_MEMORY,
    )
    ours, theirs = host.bridges.pair()
    with theirs:
        await machine.attach(1, "stream", "skerry.manager", theirs.fileno())
    await machine.resume()
    return ours, machine
