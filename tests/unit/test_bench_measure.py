"""The statistics of the benchmark: what makes a row hold, fail or stay undecided."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from bench.measure import compare, holds, interleaved, interval, is_fine, single, versus
from bench.rows import ROWS, find

STEADY = [100.0 + step % 3 * 0.1 for step in range(30)]


def shaken(part: float, seed: int) -> list[float]:
    """Return 30 values around 100 that differ by up to `part` of it."""
    chance = random.Random(seed)
    return [100 * (1 + chance.uniform(-part, part)) for _ in range(30)]


def scaled(values: list[float], factor: float) -> list[float]:
    """Return all values times a factor."""
    return [value * factor for value in values]


@pytest.mark.parametrize(
    ("goal", "low", "high", "verdict"),
    [
        ("<= 1.05", 1.01, 1.05, "yes"),
        ("<= 1.05", 1.06, 1.07, "no"),
        ("<= 1.05", 1.04, 1.06, "undecided"),
        (">= 0.97", 0.97, 0.99, "yes"),
        (">= 0.97", 0.95, 0.96, "no"),
        (">= 0.97", 0.96, 0.98, "undecided"),
        ("< 10", 10.0, 10.0, "no"),
        ("<= 10", 10.0, 10.0, "yes"),
    ],
)
def test_a_goal_holds_where_the_whole_interval_is_on_its_side(
    goal: str, low: float, high: float, verdict: str
) -> None:
    """An interval on both sides decides nothing; `<` excludes its limit."""
    assert holds(goal, low, high) == verdict


def test_the_interval_covers_the_ratio_and_narrows_with_the_noise() -> None:
    """Twice as large is a ratio of 2; less noise gives a narrower interval."""
    wide = interval(scaled(shaken(0.2, 1), 2), shaken(0.2, 2))
    narrow = interval(scaled(shaken(0.02, 1), 2), shaken(0.02, 2))
    for low, high in (wide, narrow):
        assert low < 2 < high
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 4


def test_load_that_weighs_on_both_sides_of_a_round_does_not_widen_the_interval() -> None:
    """Rounds are drawn whole: with everything doubled in some rounds the ratio stays exact."""
    load = [1.0 + (number % 5) for number in range(30)]
    low, high = interval(scaled(load, 1.1), load)
    assert low == pytest.approx(1.1)
    assert high == pytest.approx(1.1)


def test_a_close_goal_is_decided_only_with_a_fine_control() -> None:
    """The same series that hold the goal decide nothing beside a control that is too coarse."""
    ours, other = scaled(STEADY, 1.01), STEADY
    assert compare("row", "s", ours, other, "<= 1.05", STEADY).holds == "yes"
    assert compare("row", "s", ours, other, "<= 1.05", shaken(0.2, 3)).holds == "undecided"
    assert compare("row", "s", ours, other, "<= 1.05").holds == "undecided"


def test_a_control_that_is_narrow_but_off_decides_nothing() -> None:
    """The same thing measured twice must come out the same, not only steadily different."""
    row = compare("row", "s", STEADY, STEADY, "<= 1.05", scaled(STEADY, 1.06))
    assert row.holds == "undecided"
    assert row.control is not None
    assert row.control[1] - row.control[0] < 0.01


def test_a_goal_held_by_more_than_a_coarse_control_is_off_is_decided() -> None:
    """Here the control is off by 4 %: 1 % from the goal is within that, 5 % and more is not."""
    control = scaled(STEADY, 1.04)
    for factor, expected in ((1.04, "undecided"), (0.99, "yes"), (1.1, "yes"), (1.01, "yes")):
        goal = "<= 1.05" if factor < 1.1 else ">= 0.97"
        row = compare("row", "s", scaled(STEADY, factor), STEADY, goal, control)
        assert row.holds == expected, (factor, row)
    row = compare("row", "s", scaled(STEADY, 0.9), STEADY, ">= 0.97", control)
    assert row.holds == "no"


def test_a_far_goal_needs_no_control() -> None:
    """A goal more than 5 % from 1 is decided by the interval alone."""
    row = compare("row", "s", STEADY, STEADY, "<= 1.5")
    assert (row.holds, row.control) == ("yes", None)


@pytest.mark.parametrize(
    ("goal", "control", "fine"),
    [
        ("<= 1.05", (0.990, 1.014), True),
        ("<= 1.05", (0.980, 1.010), False),
        (">= 0.97", (0.995, 1.009), True),
        (">= 0.97", (0.990, 1.010), False),
    ],
)
def test_a_control_may_spread_over_half_of_the_margin(
    goal: str, control: tuple[float, float], fine: bool
) -> None:
    """The margin is the goal's distance from 1."""
    assert is_fine(goal, control) == fine


def test_the_rounds_take_turns_in_every_order() -> None:
    """Over six rounds of three each is first, and behind each of the others, equally often."""
    order: list[str] = []

    def measure(name: str) -> Callable[[], float]:
        def count() -> float:
            order.append(name)
            return float(len(order))

        return count

    series = interleaved(*map(measure, "abc"), runs=6)
    text = "".join(order)
    assert sorted(text[start : start + 3] for start in range(0, 18, 3)) == [
        "abc",
        "acb",
        "bac",
        "bca",
        "cab",
        "cba",
    ]
    for name, values in zip("abc", series, strict=True):
        assert all(text[int(value) - 1] == name for value in values)


def test_more_rounds_follow_while_the_control_is_coarse() -> None:
    """A noisy machine is measured until its control is fine; a quiet one is not."""
    chance = random.Random(4)
    calls = 0

    def noisy() -> float:
        nonlocal calls
        calls += 1
        return 1 + chance.uniform(-0.05, 0.05)

    row = versus("row", "s", noisy, noisy, "<= 1.05", runs=10, seconds=60)
    assert row.control is not None
    assert is_fine("<= 1.05", row.control)
    assert calls > 30
    calls = 0
    versus("row", "s", lambda: 1.0, lambda: 1.0, "<= 1.05", runs=10)
    assert calls == 0


def test_rounds_end_with_the_time_and_the_row_stays_undecided() -> None:
    """A machine too noisy for the goal costs bounded time and gives no verdict."""
    chance = random.Random(5)
    row = versus(
        "row", "s", chance.random, lambda: 0.1 + chance.random(), "<= 1.05", runs=5, seconds=0
    )
    assert row.holds == "undecided"


def test_json_has_exactly_the_published_fields() -> None:
    """The control is for the table; programs get the nine fields that are promised."""
    row = compare("row", "s", STEADY, STEADY, "<= 1.05", STEADY).published()
    promised = ["row", "ours", "other", "unit", "ratio", "low", "high", "goal", "holds"]
    assert list(row) == promised
    assert list(single("row", "s", [1.0], "shown").published()) == promised


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_its_function(name: str) -> None:
    """A row that is listed names a function that exists, and importing it measures nothing."""
    assert callable(find(name))
