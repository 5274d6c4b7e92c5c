"""Flows over Debian's SELinux policy, compared with SETools: every edge, and much at random.

SETools takes a minute and 800 MB for its graph, so this is part of `./run oracle`.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest

from skerry.flow import search
from skerry.flow.flask import flask_graph
from skerry.flow.graph import Graph
from skerry.flow.permission_map import read_map
from skerry.policy.load import load_policy
from skerry.xsm.flask.module import FlaskModule
from tests.support import policies
from tests.support import setools_oracle as setools

WEIGHTS = (1, 5)
REACHES, PATHS, SIMPLE = 60, 150, 12


@cache
def graphs() -> dict[int, Graph]:
    """Return our graphs by weight, whatever the booleans, with SETools' own map."""
    module = load_policy(policies.selinux())
    assert isinstance(module, FlaskModule)
    own = read_map(setools.own_map().read_bytes(), "perm_map")
    return {
        weight: flask_graph(
            module, permission_map=own, min_weight=weight, any_booleans=True, skip_unknown=True
        )
        for weight in WEIGHTS
    }


@cache
def asked() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the questions and SETools' answers, asked once for all tests."""
    chance = random.Random(7)
    questions = []
    for weight in WEIGHTS:
        # Types that nothing flows out of say little: most are drawn from the others.
        sending = [n for n, row in zip(graphs()[weight].names, graphs()[weight].rows, strict=True)
                   if row]  # fmt: skip
        pairs = [chance.sample(sending, 2) for _ in range(PATHS)]
        questions.append(
            {
                "weight": weight,
                "reach": chance.sample(sending, REACHES),
                "shortest": pairs,
                "simple": [(*pair, 2) for pair in pairs[:SIMPLE]],
            }
        )
    return questions, setools.ask(policies.selinux(), setools.own_map(), questions)


@pytest.mark.parametrize("number", range(len(WEIGHTS)))
def test_every_edge_is_one_of_setools_and_none_is_missing(number: int) -> None:
    """The edge sets are equal at weights 1 and 5; together more than a million."""
    graph, answer = graphs()[WEIGHTS[number]], asked()[1][number]
    assert graph.edges() == answer["count"] > 100_000
    rows = zip(graph.names, graph.rows, strict=True)
    assert {n: setools.digest(graph.named(row)) for n, row in rows if row} == answer["edges"]


@pytest.mark.parametrize("number", range(len(WEIGHTS)))
def test_reach_sets_are_those_of_setools(number: int) -> None:
    """What each of many types reaches, as a set."""
    graph, answer = graphs()[WEIGHTS[number]], asked()[1][number]
    for name, theirs in answer["reach"].items():
        reached = graph.named(search.reach(graph, graph.find(name)))
        assert setools.digest(reached) == theirs, name


@pytest.mark.parametrize("number", range(len(WEIGHTS)))
def test_paths_between_random_pairs_are_those_of_setools(number: int) -> None:
    """Length of a shortest path, all shortest paths, number of simple ones."""
    graph, question, answer = graphs()[WEIGHTS[number]], asked()[0][number], asked()[1][number]
    lengths = set()
    for (one, two), theirs in zip(question["shortest"], answer["shortest"], strict=True):
        ends = graph.find(one), graph.find(two)
        ours = [graph.named_path(path[:-1]) for path in search.all_shortest_paths(graph, *ends)]
        assert sorted(ours) == sorted(map(tuple, theirs)), (one, two)
        length = search.distance(graph, *ends)
        assert length == (len(theirs[0]) if theirs else 0)
        lengths.add(length)
    assert len(lengths) >= 2  # the draw has near and far pairs
    for (one, two, longest), count in zip(question["simple"], answer["simple"], strict=True):
        ends = graph.find(one), graph.find(two)
        assert sum(1 for _ in search.simple_paths(graph, *ends, longest)) == count
