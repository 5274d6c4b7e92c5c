"""One decision in process: from the cache, and by the ACM module."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bench.measure import Row, single
from skerry.policy.history import MemoryHistory
from skerry.policy.manager import PolicyManager
from skerry.policy.source import load_stack
from skerry.xsm.request import Request

POLICY = Path(__file__).parents[2] / "examples/two-banks/policy.xml"
ROUNDS = 20
EACH = 20_000


def _requests() -> tuple[PolicyManager, list[Request]]:
    stack = load_stack([POLICY])
    labels = [stack.label(text, "domain") for text in stack.modules[0].labels()]
    requests = [
        Request(one, other, "grant", ("map_read", "map_write"))
        for one in labels
        for other in labels
    ]
    return PolicyManager(stack, MemoryHistory()), requests


def _timed(decide: Callable[[Request], object], requests: list[Request]) -> list[float]:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for number in range(EACH):
            decide(requests[number % len(requests)])
        times.append((time.perf_counter() - start) / EACH * 1e6)
    return times


def cached() -> Row:
    """A decision that the cache holds, half of them allows; goal: under 2 µs."""
    manager, requests = _requests()
    for request in requests:
        manager.decide_request(request)
    return single("decide-cached-us", "µs", _timed(manager.decide_request, requests), "< 2")


def uncached() -> Row:
    """A decision that the ACM module makes, with its reason; goal: under 10 µs."""
    manager, requests = _requests()
    times = _timed(lambda request: manager.decide_request(request, cached=False), requests)
    return single("decide-acm-us", "µs", times, "< 10")
