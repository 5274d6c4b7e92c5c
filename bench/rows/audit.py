"""The audit trail on a real disk, written by its process: records a second, the wait for one."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from bench.measure import Row, compare, percentile, say, single
from bench.place import disk_folder
from skerry.audit.client import AuditClient
from skerry.system.model import Audit
from tests.support.audit import Writers

APPENDERS = 100
EACH = 100
SAMPLES = 9
SINGLES = 500

RECORD = {
    "hook": "channel_two_way",
    "generation": 1,
    "parties": {"source": "bank-a", "sink": "broker"},
    "rules": ["acm: STE-SHARED-TYPE: bank-a and broker have the type bank-a in common"],
    "channel": 1,
    "kind": "stream",
    "source": "bank-a",
    "sink": "broker",
}


def per_second() -> Row:
    """Durable appends a second with `APPENDERS` at a time."""
    with disk_folder() as folder:
        rates = asyncio.run(_group(folder / "audit.log"))
    return single("audit-per-s", "/s", rates, ">= 20000")


async def _group(path: Path) -> list[float]:
    trail = await _open(path)

    async def appender() -> None:
        for _ in range(EACH):
            await trail.append("allow", RECORD)

    rates = []
    try:
        for _ in range(SAMPLES):
            begin = time.perf_counter()
            await asyncio.gather(*(appender() for _ in range(APPENDERS)))
            rates.append(APPENDERS * EACH / (time.perf_counter() - begin))
    finally:
        await trail.close()
    return rates


async def _open(path: Path) -> AuditClient:
    """Open a trail as a node does; the writer has no jail, which costs nothing once it runs."""
    return await AuditClient.open(path, Writers().start, rotate=Audit().rotate, keep=Audit().keep)


def one() -> Row:
    """One durable append, against a write of as many bytes and fdatasync."""
    with disk_folder() as folder:
        ours, other = asyncio.run(_alternate(folder))
    for name, times in (("append", ours), ("write + fdatasync", other)):
        say(f"{name}: median {percentile(times, 0.5):.0f} µs, p99 {percentile(times, 0.99):.0f} µs")
    return compare("audit-vs-fdatasync", "µs", ours, other, "<= 1.5")


async def _alternate(folder: Path) -> tuple[list[float], list[float]]:
    """Take turns on one loop, so that a round's two are neighbours on the disk."""
    trail = await _open(folder / "audit.log")
    plain = os.open(folder / "plain.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        await trail.append("allow", RECORD)
        line = trail.path.read_bytes()
        ours: list[float] = []
        other: list[float] = []
        for number in range(SINGLES):
            for mine in (number % 2 == 0, number % 2 == 1):
                begin = time.perf_counter()
                if mine:
                    await trail.append("allow", RECORD)
                else:
                    os.write(plain, line)
                    os.fdatasync(plain)
                (ours if mine else other).append((time.perf_counter() - begin) * 1e6)
        return ours, other
    finally:
        os.close(plain)
        await trail.close()
