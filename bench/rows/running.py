"""A running system with 16 domains: what the core holds, and how fast it answers.

The domains are real machines where the host has the memory for them, else simulated ones.
"""

from __future__ import annotations

import functools
import itertools
import os
import resource
import time
from pathlib import Path

import msgspec

from bench.measure import Row, say, single
from bench.place import run, system, up
from bench.processes import core, pss_mb, pythons, rss_mb
from skerry.errors import SkerryError

DOMAINS = 16
NAMES = [f"domain-{number}" for number in range(1, DOMAINS + 1)]
CHANNELS = {f"to-{sink}": (source, sink) for source, sink in itertools.pairwise(NAMES)}

GUEST_MB = 96
"""Enough for the minimal image with two ports; in 64 MB it does not boot."""

NEEDED_MB = DOMAINS * (GUEST_MB + 160)
"""What 16 machines take at most: each its guest's memory and QEMU's own with its TCG buffer."""

COMMANDS = 20


class Figures(msgspec.Struct, frozen=True):
    """What one running system showed."""

    node_rss_mb: float
    helpers_pss_mb: float | None
    ps_seconds: tuple[float, ...]


@functools.cache
def figures() -> Figures:
    """Run the system once for all rows of this run that ask for it."""
    real = _available_mb() >= NEEDED_MB
    if not real:
        say(f"less than {NEEDED_MB} MB are free, so the {DOMAINS} domains are simulated ones")
    keys = f'memory = "{GUEST_MB}M"' if real else 'machine = "simulator"'
    say(f"starting {DOMAINS} domains with {len(CHANNELS)} streams: up to a minute")
    with up(system(NAMES, keys, CHANNELS)) as cli:
        times = []
        spent = _children_s()
        for _ in range(COMMANDS):
            begin = time.perf_counter()
            listing = run(cli, "ps")
            times.append(time.perf_counter() - begin)
            if listing.count("running") != DOMAINS:
                raise SkerryError(f"not all {DOMAINS} domains run:\n{listing}")
        spent = (_children_s() - spent) / COMMANDS
        say(f"`skerry ps` itself takes {spent:.3f} s of CPU time; the rest is the machine's load")
        helpers = sum(map(pss_mb, pythons(cli))) if os.getuid() == 0 else None
        found = Figures(rss_mb(core(cli)["node"]), helpers, tuple(times))
    return found


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _available_mb() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(s.split()[1]) / 1024 for s in lines if s.startswith("MemAvailable:"))


def ps_seconds() -> Row:
    """The whole command `skerry ps`, interpreter and all."""
    return single("ps-seconds", "s", figures().ps_seconds, "< 0.2")


def node_rss() -> Row:
    """Resident memory of the node process."""
    return single("node-rss-mb", "MB", [figures().node_rss_mb], "< 60")


def helpers_pss() -> Row:
    """Memory of all Python processes of the system, shared pages counted in part."""
    helpers = figures().helpers_pss_mb
    if helpers is None:
        raise SkerryError("the helpers' memory is closed to their own user", fix="run it as root")
    return single("helpers-pss-mb", "MB", [helpers], "shown")
