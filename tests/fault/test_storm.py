"""Nodes killed at any line of the product, under random commands: every law holds after each kill.

The short form kills some 40 nodes, `./run fault` some 400. `SKERRY_FAULT_SEED` sets the first seed;
the seed of a world that fails is in the message.
"""

from __future__ import annotations

import collections
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fault.mutations import MUTATIONS

LONG = bool(os.environ.get("SKERRY_LONG"))
SEED = int(os.environ.get("SKERRY_FAULT_SEED") or random.SystemRandom().randrange(1 << 32))
KILLS = 20
"""Nodes of one world: each leaks its descriptors and threads, so a world is a process."""

WORLDS = 20 if LONG else 2
MORE = 10 * WORLDS
ALWAYS = ("carried", "used", "severed", "went on", "connect", "start", "records")
"""What the laws are about, of which a run must have had more than a trace in `MORE` worlds."""

TRIES = 30
"""Worlds in which a defect must be found."""

ROOT = Path(__file__).parents[2]
PLAIN = (
    "twins-are-not-kept",
    "a-relabel-is-not-written-down",
    "records-are-acknowledged-before-they-are-synced",
)


def storm(seed: int, *more: str) -> subprocess.CompletedProcess[str]:
    """Run one world to its end."""
    words = ["-m", "tests.fault.storm", "--seed", str(seed), "--kills", str(KILLS), *more]
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )


def test_every_law_holds_after_each_kill() -> None:
    """And the worlds had all that the laws are about: bytes that crossed, binds undone, cuts."""
    seen: collections.Counter[str] = collections.Counter()
    worlds = 0
    # Two worlds may by chance have little of something; then there are more of them.
    while worlds < WORLDS or (min(seen[what] for what in ALWAYS) <= WORLDS and worlds < MORE):
        done = storm(SEED + worlds)
        worlds += 1
        again = f"{sys.executable} {' '.join(done.args[1:])}"
        assert done.returncode == 0, f"{again}\n{done.stdout}{done.stderr}"
        seen.update(json.loads(done.stdout))
    assert seen["kills"] == worlds * KILLS
    assert min(seen[what] for what in ALWAYS) > WORLDS, seen
    if LONG:
        assert min(seen["undone"], seen["cut"], seen["in recovery"], seen["relabel"]) > WORLDS, seen


@pytest.mark.parametrize("name", sorted(MUTATIONS) if LONG else PLAIN)
def test_a_defect_is_found(name: str) -> None:
    """The laws are able to fail: each defect that is put into the product breaks one."""
    for seed in range(SEED, SEED + TRIES):
        done = storm(seed, "--mutation", name)
        assert done.returncode in (0, 1, 2), done
        if done.returncode:
            assert "Hang" not in done.stderr, done.stderr
            return
    pytest.fail(f"{name} was not found in {TRIES * KILLS} kills from seed {SEED} on")
