"""Comparisons: A against B in one run, interleaved, median, ratio with its 95 % interval.

An absolute number says something about a machine; a ratio of two things measured alternately on
the same machine says something about the code. Where a goal lies close to 1, a second series of
the other thing (A against A) tells what this machine can resolve now. Where that is too coarse,
the row is decided only if the goal holds, or is missed, by more than the control is off.
"""

from __future__ import annotations

import itertools
import operator
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

Holds = Literal["yes", "no", "undecided"]
Interval = tuple[float, float]

_SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}

RESAMPLES = 2_000
"""Bootstrap resamples for an interval."""

CLOSE = 0.05
"""A goal at most this far from 1 needs a control."""

RESOLUTION = 0.5
"""The part of a goal's distance from 1 over which its control may spread."""


class Row(msgspec.Struct, frozen=True):
    """One line of the table. `ratio`, `low` and `high` are None for a row without another.

    `control` is the interval of the other thing against itself, where the goal is close to 1.
    """

    row: str
    ours: float
    other: float | None
    unit: str
    ratio: float | None
    low: float | None
    high: float | None
    goal: str
    holds: Holds
    control: Interval | None = None

    def published(self) -> dict[str, object]:
        """Return the fields that `--json` writes."""
        return {name: getattr(self, name) for name in self.__struct_fields__ if name != "control"}


def say(text: str) -> None:
    """Tell progress, on standard error only."""
    print(f"  {text}", file=sys.stderr, flush=True)


def interleaved(
    *measures: Callable[[], float], runs: int, turn: int = 0
) -> tuple[list[float], ...]:
    """Run every measure once a round, `runs` rounds, in every order in turn.

    So none is always the first, or always behind the same one. `turn` is the number of rounds
    before these.
    """
    series: tuple[list[float], ...] = tuple([] for _ in measures)
    orders = list(itertools.permutations(range(len(measures))))
    for number in range(turn, turn + runs):
        for which in orders[number % len(orders)]:
            series[which].append(measures[which]())
    return series


def ratio(ours: Sequence[float], other: Sequence[float]) -> float:
    """Return the ratio of the medians."""
    return statistics.median(ours) / statistics.median(other)


def interval(ours: Sequence[float], other: Sequence[float]) -> Interval:
    """Return the 95 % bootstrap interval of the ratio of medians.

    Whole rounds are drawn, as what loads the machine during a round weighs on both in it.
    """
    chance = random.Random(1)
    rounds = list(zip(ours, other, strict=True))
    ratios = sorted(
        ratio([mine for mine, _ in drawn], [theirs for _, theirs in drawn])
        for drawn in (chance.choices(rounds, k=len(rounds)) for _ in range(RESAMPLES))
    )
    return ratios[int(RESAMPLES * 0.025)], ratios[int(RESAMPLES * 0.975) - 1]


def compare(
    name: str,
    unit: str,
    ours: Sequence[float],
    other: Sequence[float],
    goal: str,
    again: Sequence[float] = (),
) -> Row:
    """Make the row of a comparison. `goal` is `<= X` or `>= X` on the ratio ours / other.

    `again` is the other thing's second series; without one a close goal stays undecided.
    """
    low, high = interval(ours, other)
    control = interval(again, other) if again else None
    verdict = holds(goal, low, high)
    if is_close(goal) and control is None:
        verdict = "undecided"
    elif control is not None and not is_fine(goal, control):
        off = max(abs(end - 1.0) for end in control)
        verdict = holds(goal, low - off, high + off)
    middle = statistics.median(ours), statistics.median(other)
    return Row(name, *middle, unit, ratio(ours, other), low, high, goal, verdict, control)


def versus(
    name: str,
    unit: str,
    ours: Callable[[], float],
    other: Callable[[], float],
    goal: str,
    runs: int,
    seconds: float = 300.0,
) -> Row:
    """Measure a comparison and make its row: `runs` rounds, a control where the goal is close.

    Then rounds are added, up to `seconds` in all, until the control is fine enough. That does not
    look at our own figures, so it favours no verdict.
    """
    measures = (ours, other, other) if is_close(goal) else (ours, other)
    series: tuple[list[float], ...] = tuple([] for _ in measures)
    end = time.monotonic() + seconds
    while True:
        fresh = interleaved(*measures, runs=runs, turn=len(series[0]))
        for so_far, new in zip(series, fresh, strict=True):
            so_far.extend(new)
        row = compare(name, unit, series[0], series[1], goal, *series[2:])
        if row.control is None or is_fine(goal, row.control) or time.monotonic() > end:
            return row
        spread = f"{row.control[0]:.3f} … {row.control[1]:.3f}"
        say(f"{name}: {len(series[0])} rounds; the control spreads over {spread}; more rounds")


def single(name: str, unit: str, ours: Sequence[float], goal: str) -> Row:
    """Make the row of a figure with an absolute goal, or with none (`shown`)."""
    middle = statistics.median(ours)
    verdict: Holds = "yes" if goal == "shown" else holds(goal, middle, middle)
    return Row(name, middle, None, unit, None, None, None, goal, verdict)


def is_close(goal: str) -> bool:
    """Say whether a goal on a ratio lies so close to 1 that it needs a control."""
    return _margin(goal) <= CLOSE + 1e-9


def is_fine(goal: str, control: Interval) -> bool:
    """Say whether a control resolves a goal: it and 1 lie within `RESOLUTION` of the margin."""
    spread = max(1.0, *control) - min(1.0, *control)
    return spread <= RESOLUTION * _margin(goal) + 1e-9


def _margin(goal: str) -> float:
    return abs(float(goal.partition(" ")[2]) - 1)


def holds(goal: str, low: float, high: float) -> Holds:
    """Say whether the whole interval is on the goal's side, on the other, or on both."""
    sign, _, number = goal.partition(" ")
    good = [_SIGNS[sign](value, float(number)) for value in (low, high)]
    if all(good):
        return "yes"
    return "undecided" if any(good) else "no"


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value below which `part` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]
