"""Comparisons: A against B in one run, interleaved, median, ratio with its 95 % interval.

An absolute number says something about a machine; a ratio of two things measured alternately on
the same machine says something about the code.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

Holds = Literal["yes", "no", "undecided"]

RESAMPLES = 2_000
"""Bootstrap resamples for an interval."""


class Row(msgspec.Struct, frozen=True):
    """One line of the table. `ratio`, `low` and `high` are None for a row without another."""

    row: str
    ours: float
    other: float | None
    unit: str
    ratio: float | None
    low: float | None
    high: float | None
    goal: str
    holds: Holds


def interleaved(
    ours: Callable[[], float], other: Callable[[], float], runs: int
) -> tuple[list[float], list[float]]:
    """Measure both `runs` times, alternately, each first in half of the rounds."""
    first: list[float] = []
    second: list[float] = []
    for turn in range(runs):
        if turn % 2:
            second.append(other())
            first.append(ours())
        else:
            first.append(ours())
            second.append(other())
    return first, second


def interval(ours: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the ratio of medians."""
    chance = random.Random(1)
    ratios = sorted(
        statistics.median(chance.choices(ours, k=len(ours)))
        / statistics.median(chance.choices(other, k=len(other)))
        for _ in range(RESAMPLES)
    )
    return ratios[int(RESAMPLES * 0.025)], ratios[int(RESAMPLES * 0.975) - 1]


def compare(name: str, unit: str, ours: Sequence[float], other: Sequence[float], goal: str) -> Row:
    """Make the row of a comparison. `goal` is `<= X` or `>= X` on the ratio ours / other."""
    mine, theirs = statistics.median(ours), statistics.median(other)
    low, high = interval(ours, other)
    return Row(name, mine, theirs, unit, mine / theirs, low, high, goal, holds(goal, low, high))


def single(name: str, unit: str, ours: Sequence[float], goal: str) -> Row:
    """Make the row of a figure with an absolute goal, or with none (`shown`)."""
    middle = statistics.median(ours)
    verdict: Holds = "yes" if goal == "shown" else holds(goal, middle, middle)
    return Row(name, middle, None, unit, None, None, None, goal, verdict)


def holds(goal: str, low: float, high: float) -> Holds:
    """Say whether the whole interval is on the goal's side, on the other, or on both."""
    sign, _, number = goal.partition(" ")
    limit = float(number)
    good = [value <= limit if sign in ("<=", "<") else value >= limit for value in (low, high)]
    if all(good):
        return "yes"
    return "undecided" if any(good) else "no"
