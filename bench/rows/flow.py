"""Flows: Debian's SELinux policy against SETools, and proofs over many domains.

The rules: both are given the same permission map (SETools' own), the same least weight and the
same questions, and what they answer is compared: a row exists only where the two agree. SETools
runs from Debian's package, by Debian's Python.
"""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bench.measure import Row, compare, say, single
from skerry.errors import SkerryError
from skerry.flow.claim import parse_claim
from skerry.flow.graph import Graph
from skerry.flow.proof import certificate, prove
from skerry.flow.verify import check
from tests.support import policies, setools_oracle

WEIGHT = 5
STARTS = 3
QUESTIONS = 40
PROOF_ROUNDS = 15
DOMAINS, CHANNELS = 1_000, 50_000

_OURS = """\
import json, resource, sys, time
begin = time.perf_counter()
from skerry.flow.flask import flask_graph
from skerry.flow.permission_map import read_map
from skerry.flow.search import all_shortest_paths, reach
from skerry.policy.load import load_policy
asked = json.loads(sys.stdin.readline())
module = load_policy(asked["policy"])
chosen = read_map(open(asked["map"], "rb").read(), "map")
graph = flask_graph(module, permission_map=chosen, min_weight=asked["weight"], any_booleans=True,
                    skip_unknown=True)
reach(graph, graph.find(asked["reach"][0]))
ready = time.perf_counter() - begin
rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
print(json.dumps({"ready": ready, "rss_mb": rss}), flush=True)
for line in sys.stdin:
    kind, names = json.loads(line)
    types = [graph.find(name) for name in names]
    begin = time.perf_counter()
    if kind == "reach":
        size = len(graph.named(reach(graph, types[0])))
    else:
        size = len([graph.named_path(path) for path in all_shortest_paths(graph, *types)])
    print(json.dumps({"seconds": time.perf_counter() - begin, "size": size}), flush=True)
"""


class Asked:
    """A process with the graph ready, ours or SETools'; its imports count for ours alone."""

    def __init__(self, argv: list[str], environment: dict[str, str], first: str) -> None:
        self._process = subprocess.Popen(
            argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        begin = {"policy": str(policies.selinux()), "map": str(setools_oracle.own_map())}
        found = self.ask({**begin, "weight": WEIGHT, "reach": [first], "clock": True})
        self.ready: float = found["ready"]
        self.rss_mb: float = found["rss_mb"]

    def ask(self, question: object) -> Any:
        """Send one line of JSON and return the answer."""
        if self._process.stdin is None or self._process.stdout is None:
            raise SkerryError("the process has no pipes")
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SkerryError(f"a process of the benchmark ended: {self._process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


def _ours(first: str) -> Asked:
    source = Path(__file__).parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source)}
    return Asked([sys.executable, "-c", _OURS], environment, first)


def _other(first: str) -> Asked:
    return Asked(setools_oracle.command(), dict(setools_oracle.environment()), first)


class Measured(msgspec.Struct):
    """What both took: seconds to be ready, MB, seconds for each question of both kinds."""

    ready: tuple[list[float], list[float]]
    rss: tuple[list[float], list[float]]
    reach: tuple[list[float], list[float]]
    paths: tuple[list[float], list[float]]


@functools.cache
def _measured() -> Measured:
    """Start both in turn and ask both the same in turn, once for all four rows."""
    found = Measured(([], []), ([], []), ([], []), ([], []))
    chance = random.Random(1)
    names = _sending_types()
    for number in range(STARTS):
        first = chance.choice(names)
        makers: list[Callable[[str], Asked]] = [_ours, _other]
        running: dict[int, Asked] = {}
        for which in (0, 1) if number % 2 else (1, 0):
            running[which] = makers[which](first)
            found.ready[which].append(running[which].ready)
            found.rss[which].append(running[which].rss_mb)
        say(f"SETools is ready for the time {number + 1} of {STARTS}")
        for _ in range(QUESTIONS):
            _ask_both(running, found.reach, ["reach", [chance.choice(names)]])
            _ask_both(running, found.paths, ["paths", chance.sample(names, 2)])
        for process in running.values():
            process.end()
    return found


def _sending_types() -> list[str]:
    """Return types to draw from: those that an allow rule of the policy names by themselves."""
    from skerry.policy.policydb.read import read_policydb
    from skerry.xsm.flask.model import ALLOW

    path = policies.selinux()
    policy = read_policydb(path.read_bytes(), str(path))
    named = {rule[0] for rule in policy.rules if rule[3] == ALLOW}
    return sorted(policy.types[v].name for v in named if not policy.types[v].attribute)


def _ask_both(
    running: dict[int, Asked], series: tuple[list[float], list[float]], question: object
) -> None:
    answers = {which: process.ask(question) for which, process in running.items()}
    if answers[0]["size"] != answers[1]["size"]:
        raise SkerryError(f"SETools and Skerry differ over {question}: {answers}")
    for which, answer in answers.items():
        series[which].append(answer["seconds"])


def _faster(name: str, unit: str, series: tuple[list[float], list[float]], goal: str) -> Row:
    """Make a row whose ratio says how many times as fast ours is."""
    rates = [[1 / seconds for seconds in one] for one in series]
    return compare(name, unit, rates[0], rates[1], goal)


def ready() -> Row:
    """From the file to the first answer, in a fresh process: answers a second."""
    return _faster("flow-ready-vs-setools", "/s", _measured().ready, ">= 30")


def rss() -> Row:
    """Most resident memory up to the first answer."""
    return compare("flow-rss-vs-setools", "MB", *_measured().rss, "<= 0.33")


def reach() -> Row:
    """What one type reaches, with the names: answers a second."""
    return _faster("flow-reach-vs-setools", "/s", _measured().reach, ">= 100")


def paths() -> Row:
    """All shortest paths of a pair of types: answers a second."""
    return _faster("flow-paths-vs-setools", "/s", _measured().paths, ">= 50")


def many(domains: int, channels: int, seed: int = 1) -> Graph:
    """Return a graph of domains in which nothing flows from the first half to the second.

    That is the case in which a proof has to look at the most.
    """
    chance = random.Random(seed)
    names = [f"domain-{number}" for number in range(domains)]
    edges = []
    for _ in range(channels):
        one, two = chance.sample(range(domains), 2)
        if one < domains // 2 <= two:
            one, two = two, one
        edges.append((names[one], names[two]))
    return Graph.from_edges(edges, names)


def prove_ms() -> Row:
    """A proof and its certificate over 1,000 domains and 50,000 flows, the graph made anew."""
    claim = parse_claim(f"domain-0 -/-> domain-{DOMAINS - 1}")
    series = []
    searches = []
    for seed in range(PROOF_ROUNDS):
        given = many(DOMAINS, CHANNELS, seed)
        edges = [(one, two) for one, row in zip(given.names, given.rows, strict=True)
                 for two in given.named(row)]  # fmt: skip
        begin = time.perf_counter()
        graph = Graph.from_edges(edges, given.names)
        made = time.perf_counter()
        proof = prove(graph, claim)
        if not proof.holds or not certificate(graph.about, [proof]):
            raise SkerryError("the benchmark's claim does not hold")
        end = time.perf_counter()
        series.append((end - begin) * 1e3)
        searches.append((end - made) * 1e3)
    say(f"prove-ms: of that, the search and the certificate: {sorted(searches)[7]:.2f} ms")
    return single("prove-ms", "ms", series, "< 100")


def verify_ms() -> Row:
    """The check of that certificate, from the file's bytes and the flows as pairs of sets."""
    graph = many(DOMAINS, CHANNELS)
    claim = parse_claim(f"domain-0 -/-> domain-{DOMAINS - 1}")
    written = certificate(graph.about, [prove(graph, claim)])
    flows = [(1 << number, row) for number, row in enumerate(graph.rows)]
    series = []
    for _ in range(PROOF_ROUNDS):
        begin = time.perf_counter()
        check(json.loads(written), graph.names, flows)
        series.append((time.perf_counter() - begin) * 1e3)
    return single("verify-ms", "ms", series, "< 50")


def curve() -> str:
    """Return the table of docs/flow.md: what grows how with the number of domains."""
    lines = ["| domains | flows | graph | proof | check |", "|---|---|---|---|---|"]
    for domains in (1_000, 2_000, 5_000, 10_000):
        graph = many(domains, 50 * domains)
        edges = [(one, two) for one, row in zip(graph.names, graph.rows, strict=True)
                 for two in graph.named(row)]  # fmt: skip
        times = []
        begin = time.perf_counter()
        again = Graph.from_edges(edges, graph.names)
        times.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        proof = prove(again, parse_claim(f"domain-0 -/-> domain-{domains - 1}"))
        written = certificate(again.about, [proof])
        times.append(time.perf_counter() - begin)
        flows = [(1 << number, row) for number, row in enumerate(again.rows)]
        begin = time.perf_counter()
        check(json.loads(written), again.names, flows)
        times.append(time.perf_counter() - begin)
        shown = " | ".join(f"{seconds * 1e3:.1f} ms" for seconds in times)
        lines.append(f"| {domains:,} | {len(edges):,} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(curve())
