"""Comparisons in processes of their own, since libsepol keeps one policy a process.

`run` starts this module once for a list of tasks; it forks for each, as many at once as there are
processors. Neither threads nor children are left in the caller.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Literal

import msgspec

from tests.oracle.compare import Tally, compare
from tests.oracle.generate import compiled
from tests.oracle.objects import (
    compare_changes,
    compare_contexts,
    compare_naive,
    compare_relabelling,
)
from tests.oracle.sepol import LIBRARY
from tests.support.policies import Language, Target

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 3_600.0

What = Literal["decisions", "relabelling", "naive", "changes", "contexts"]


class Task(msgspec.Struct, frozen=True):
    """One comparison: of a policy's file, or of the policy that `seed` gives."""

    what: What
    seed: int
    count: int
    policy: str = ""
    target: Target = "selinux"
    language: Language = "conf"
    flip: bool = False
    broken: str = ""
    library: str = LIBRARY


def run(tasks: Sequence[Task]) -> list[Tally]:
    """Carry out tasks and return their tallies, in the same order."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.oracle.worker"],
        input=msgspec.json.encode(tasks),
        stdout=subprocess.PIPE,
        timeout=TIMEOUT_S,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=list[Tally])


def total(tasks: Sequence[Task]) -> Tally:
    """Carry out tasks and return their sum."""
    whole = Tally()
    for tally in run(tasks):
        whole.add(tally)
    return whole


def carry_out(task: Task, scratch: Path) -> Tally:
    """Carry out one task in this process; every mismatch says how to repeat it."""
    path = Path(task.policy)
    if not task.policy:
        path = compiled(task.seed, task.target, task.language, scratch)
    tally = _tally(task, path, scratch)
    tally.mismatches = [f"{task}: {text}" for text in tally.mismatches]
    return tally


def _tally(task: Task, path: Path, scratch: Path) -> Tally:
    seed, count, broken = task.seed, task.count, task.broken
    if task.what == "decisions":
        return compare(path, seed, count, scratch, flip=task.flip, broken=broken)
    if task.what == "relabelling":
        return compare_relabelling(
            path, seed, count, scratch, flip=task.flip, library=task.library, broken=broken
        )
    if task.what == "naive":
        return compare_naive(path, seed, count, broken=broken)
    if task.what == "changes":
        return compare_changes(path, seed, count, broken=broken)
    return compare_contexts(path, seed, count)


def _alone(task: Task, answer: Connection) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        answer.send_bytes(msgspec.json.encode(carry_out(task, Path(scratch))))


def main() -> None:
    """Read tasks from standard input, write their tallies to standard output."""
    tasks = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Task])
    tallies: dict[int, Tally] = {}
    waiting = list(enumerate(tasks))
    running: dict[Connection, tuple[int, ForkProcess]] = {}
    fork = multiprocessing.get_context("fork")
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            place, task = waiting.pop(0)
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=_alone, args=(task, theirs))
            process.start()
            theirs.close()
            running[ours] = place, process
        for ready in wait(list(running)):
            assert isinstance(ready, Connection)
            place, process = running.pop(ready)
            try:
                tallies[place] = msgspec.json.decode(ready.recv_bytes(), type=Tally)
            except EOFError:
                process.join()
                raise SystemExit(f"{tasks[place]} ended with {process.exitcode}") from None
            process.join()
    sys.stdout.buffer.write(msgspec.json.encode([tallies[n] for n in range(len(tasks))]))


def timed(tasks: Sequence[Task], name: str) -> tuple[Tally, str]:
    """Carry out tasks; return their sum and what was seen, in one line."""
    start = time.monotonic()
    tally = total(tasks)
    seconds = time.monotonic() - start
    seen = (
        f"{name}: {tally.asked:,} asked, {tally.allowing:,} allowing,"
        f" {tally.constrained:,} constrained, {tally.differing} mismatches, {seconds:.1f} s"
    )
    return tally, seen


if __name__ == "__main__":
    main()
