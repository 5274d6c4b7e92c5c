"""Every row of the benchmark by its name; importing a row's module costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from bench.measure import Row


def _row(module: str, function: str) -> Callable[[], Row]:
    def measure() -> Row:
        found: Callable[[], Row] = getattr(importlib.import_module(module), function)
        return found()

    return measure


ROWS: dict[str, Callable[[], Row]] = {
    "decide-cached-us": _row("bench.rows.decide", "cached"),
    "decide-acm-us": _row("bench.rows.decide", "uncached"),
}
