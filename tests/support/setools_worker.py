"""Asks SETools; run by Debian's own Python, with a question as JSON on standard input.

The answer is one JSON object on standard output. `tests.support.setools_oracle` starts this.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Iterable
from typing import Any

import networkx as nx  # type: ignore[import-untyped]
import setools  # type: ignore[import-not-found]


def made(question: Any) -> Any:
    """Load the policy and make SETools' graph, ready to be asked."""
    policy = setools.SELinuxPolicy(question["policy"])
    permission_map = setools.PermissionMap(question["map"])
    analysis = setools.InfoFlowAnalysis(policy, permission_map)
    analysis.exclude = question.get("exclude", [])
    return analysis


def edges(analysis: Any) -> dict[str, str]:
    """Return, for each type with a flow out of it, a digest of where to."""
    found: dict[str, list[str]] = {}
    for source, sink in analysis.subG.edges():
        found.setdefault(str(source), []).append(str(sink))
    return {name: digest(sinks) for name, sinks in found.items()}


def digest(names: Iterable[str]) -> str:
    """Return a digest of a set of names."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def ask(analysis: Any, question: Any) -> dict[str, Any]:
    """Answer everything that is asked at one weight."""
    analysis.min_weight = question["weight"]
    if "booleans" in question:
        analysis.booleans = question["booleans"]
    analysis._build_subgraph()
    graph = analysis.subG
    named = {str(node): node for node in graph.nodes()}
    found: dict[str, Any] = {"count": graph.number_of_edges(), "edges": edges(analysis)}
    found["reach"] = {
        name: digest(map(str, nx.descendants(graph, named[name]))) if name in named else digest([])
        for name in question.get("reach", [])
    }
    found["shortest"] = [
        [[str(edge.source) for edge in path] for path in analysis.all_shortest_paths(one, two)]
        for one, two in question.get("shortest", [])
    ]
    found["simple"] = [
        sum(1 for _ in analysis.all_paths(one, two, longest))
        for one, two, longest in question.get("simple", [])
    ]
    return found


def clock(question: Any) -> None:
    """Measure SETools for the benchmark: a line of JSON for each round of the same questions."""
    begin = time.perf_counter()
    analysis = made(question)
    analysis.min_weight = question["weight"]
    first, *_ = question["reach"]
    nx.descendants(_graph(analysis), analysis.policy.lookup_type(first))
    ready = time.perf_counter() - begin
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    send({"ready": ready, "rss_mb": memory})
    for line in sys.stdin:
        kind, names = json.loads(line)
        types = [analysis.policy.lookup_type(name) for name in names]
        begin = time.perf_counter()
        if kind == "reach":
            size = len(nx.descendants(analysis.subG, types[0]))
        else:
            size = len([list(path) for path in analysis.all_shortest_paths(*types)])
        send({"seconds": time.perf_counter() - begin, "size": size})


def _graph(analysis: Any) -> Any:
    analysis._build_subgraph()
    return analysis.subG


def send(answer: Any) -> None:
    """Write one answer."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.get("clock"):
            clock(asked)
            break
        whole = made(asked)
        send([ask(whole, each) for each in asked["questions"]])
