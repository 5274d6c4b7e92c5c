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
    "start-vs-bare": _row("bench.rows.start", "start"),
    "stream-vs-bare": _row("bench.rows.stream", "throughput"),
    "stream-core-cpu-ms": _row("bench.rows.stream", "core_cpu"),
    "decide-cached-us": _row("bench.rows.decide", "cached"),
    "decide-acm-us": _row("bench.rows.decide", "uncached"),
    "ps-seconds": _row("bench.rows.running", "ps_seconds"),
    "node-rss-mb": _row("bench.rows.running", "node_rss"),
    "helpers-pss-mb": _row("bench.rows.running", "helpers_pss"),
    "audit-per-s": _row("bench.rows.audit", "per_second"),
    "audit-vs-fdatasync": _row("bench.rows.audit", "one"),
}
