"""Paths, reach and cuts on small graphs at random, against searches too simple to err."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import pytest

from skerry.errors import InputError
from skerry.flow import search
from skerry.flow.bits import bitset, each, marks, members, union
from skerry.flow.cut import Channel, cut_channels, cut_flows, cut_labels
from skerry.flow.graph import MAX_NODES, Graph, packed, transposed

Edges = frozenset[tuple[str, str]]
SEEDS = range(120)


def random_graph(seed: int) -> tuple[Graph, Edges]:
    """Return a small graph with its edges."""
    chance = random.Random(seed)
    names = [f"n{number}" for number in range(chance.randrange(3, 9))]
    edges = frozenset(
        (one, two)
        for _ in range(chance.randrange(1, 3 * len(names)))
        for one, two in [chance.sample(names, 2)]
    )
    return Graph.from_edges(sorted(edges), names), edges


def simple(edges: Edges, path: tuple[str, ...], sinks: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Yield every path that goes on from one, ends at its first sink and visits nothing twice."""
    if path[-1] in sinks:
        yield path
        return
    for one, two in edges:
        if one == path[-1] and two not in path:
            yield from simple(edges, (*path, two), sinks)


def reached(edges: Edges, sources: Iterable[str]) -> set[str]:
    """Return what can be reached, the sources included, by adding until nothing is new."""
    found = set(sources)
    while more := {two for one, two in edges if one in found} - found:
        found |= more
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_paths_are_exactly_those_there_are(seed: int) -> None:
    """All simple paths up to each length, all shortest ones, the distance; with labels avoided."""
    graph, edges = random_graph(seed)
    source, sink = graph.names[0], graph.names[-1]
    for avoid in ((), graph.names[1:2]):
        left = frozenset(e for e in edges if not set(e) & set(avoid))
        every = sorted(simple(left, (source,), {sink}))
        ends = graph.find(source), graph.find(sink)
        barred = graph.bits(avoid)
        for longest in (1, 2, 3, 8):
            ours = search.simple_paths(graph, *ends, longest, barred)
            fitting = [path for path in every if len(path) - 1 <= longest]
            assert sorted(map(graph.named_path, ours)) == fitting
        least = min(map(len, every), default=1)
        shortest = [path for path in every if len(path) == least]
        ours = search.all_shortest_paths(graph, *ends, barred)
        assert sorted(map(graph.named_path, ours)) == shortest
        assert search.distance(graph, *ends, barred) == least - 1
        one = graph.named_path(search.shortest_path(graph, *ends, barred))
        assert one in shortest if shortest else not one


@pytest.mark.parametrize("seed", SEEDS)
def test_reach_is_what_adding_up_finds(seed: int) -> None:
    """Both ways, from sets, with labels avoided; a source is not reached by itself."""
    graph, edges = random_graph(seed)
    sources, avoid = set(graph.names[:2]), set(graph.names[2:3])
    left = frozenset(e for e in edges if not set(e) & avoid)
    start, barred = graph.bits(sources), graph.bits(avoid)
    assert set(graph.named(search.reach(graph, start, barred))) == reached(left, sources) - sources
    turned = frozenset((two, one) for one, two in left)
    back = graph.named(search.reach_back(graph, start, barred))
    assert set(back) == reached(turned, sources) - sources


@pytest.mark.parametrize("seed", SEEDS)
def test_shortest_paths_between_sets_end_at_the_nearest(seed: int) -> None:
    """From any source to any sink, none longer than needed; no path passes another end."""
    graph, edges = random_graph(seed)
    sources, sinks = graph.names[:2], graph.names[2:4] if len(graph.names) > 3 else graph.names[2:]
    inner = frozenset((one, two) for one, two in edges if two not in sources)
    every = [path for source in sources for path in simple(inner, (source,), sinks)]
    least = min(map(len, every), default=0)
    ours = search.all_shortest_paths(graph, graph.bits(sources), graph.bits(sinks))
    shortest = sorted(path for path in every if len(path) == least)
    assert sorted(map(graph.named_path, ours)) == shortest
    bounded = search.simple_paths(graph, graph.bits(sources), graph.bits(sinks), 8)
    assert sorted(map(graph.named_path, bounded)) == sorted(every)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cut_of_labels_separates_and_no_smaller_one_does(seed: int) -> None:
    """Every smaller set of labels is tried; the paths that prove it share no label."""
    graph, edges = random_graph(seed)
    source, sink = graph.names[0], graph.names[-1]
    ends = graph.find(source), graph.find(sink)
    if (source, sink) in edges:
        with pytest.raises(InputError, match="directly"):
            cut_labels(graph, *ends)
        return
    found = cut_labels(graph, *ends)

    def separates(removed: Iterable[str]) -> bool:
        gone = set(removed)
        return sink not in reached(frozenset(e for e in edges if not set(e) & gone), {source})

    assert separates(found.labels)
    assert not set(found.labels) & {source, sink}
    inner = graph.names[1:-1]
    for size in range(len(found.labels)):
        assert not any(map(separates, itertools.combinations(inner, size)))
    _check_paths(found.paths, edges, source, sink, len(found.labels))
    between = [name for path in found.paths for name in path[1:-1]]
    assert len(between) == len(set(between))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cut_of_flows_separates_and_no_smaller_one_does(seed: int) -> None:
    """Every smaller set of flows is tried; the paths that prove it share no flow."""
    graph, edges = random_graph(seed)
    source, sink = graph.names[0], graph.names[-1]
    found = cut_flows(graph, graph.find(source), graph.find(sink))

    def separates(removed: Iterable[tuple[str, str]]) -> bool:
        return sink not in reached(edges - set(removed), {source})

    assert separates(found.flows)
    assert set(found.flows) <= edges
    for size in range(min(len(found.flows), 3)):
        assert not any(map(separates, itertools.combinations(edges, size)))
    _check_paths(found.paths, edges, source, sink, len(found.flows))
    used = [pair for path in found.paths for pair in pairwise(path)]
    assert len(used) == len(set(used))


def channels_at_random(seed: int) -> tuple[list[str], list[Channel]]:
    """Return up to eight channels between a few domains, two-way ones and several to a pair."""
    chance = random.Random(seed)
    names = [f"n{number}" for number in range(chance.randrange(3, 6))]
    channels = []
    for number in range(chance.randrange(1, 9)):
        source, sink = chance.sample(names, 2)
        channels.append(Channel(f"c{number}", source, sink, chance.random() < 0.4))
    return names, channels


def carried(channels: Sequence[Channel]) -> Edges:
    """Return from whom to whom some channels carry."""
    ahead = {(one.source, one.sink) for one in channels}
    return frozenset(ahead | {(one.sink, one.source) for one in channels if not one.one_way})


@pytest.mark.parametrize("seed", range(300))
def test_a_cut_of_channels_separates_and_no_smaller_one_does(seed: int) -> None:
    """Every smaller set of channels is tried; the paths that prove it share no channel."""
    names, channels = channels_at_random(seed)
    graph = Graph.from_edges(sorted(carried(channels)), names)
    sources, sinks = names[: 1 + seed % 2], names[-1:]
    found = cut_channels(graph, channels, graph.bits(sources), graph.bits(sinks))

    def separates(removed: Iterable[Channel]) -> bool:
        left = carried([one for one in channels if one not in set(removed)])
        return sinks[0] not in reached(left, sources)

    assert separates(found.channels)
    assert len(set(found.channels)) == len(found.channels) == len(found.flows)
    for size in range(len(found.channels)):
        assert not any(map(separates, itertools.combinations(channels, size)))
    assert all(
        flow in carried([one]) for one, flow in zip(found.channels, found.flows, strict=True)
    )
    assert len(found.paths) == len(found.over) == len(found.channels)
    for path, over in zip(found.paths, found.over, strict=True):
        assert path[0] in sources
        assert path[-1] == sinks[0]
        assert all(p in carried([c]) for p, c in zip(pairwise(path), over, strict=True))
    used = [one for over in found.over for one in over]
    assert len(used) == len(set(used))


def test_a_channel_with_an_end_that_is_left_out_is_none() -> None:
    """Without m only the direct channel is left to cut; with it there are two."""
    channels = [Channel("one", "a", "m"), Channel("two", "m", "z"), Channel("three", "a", "z")]
    graph = Graph.from_edges(sorted(carried(channels)))
    for asked, least in ((graph, 2), (graph.without(graph.find("m")), 1)):
        found = cut_channels(asked, channels, graph.find("a"), graph.find("z"))
        assert len(found.channels) == least
        assert "three" in {one.name for one in found.channels}


def _check_paths(
    paths: tuple[tuple[str, ...], ...], edges: Edges, source: str, sink: str, count: int
) -> None:
    assert len(paths) == count
    for path in paths:
        assert (path[0], path[-1]) == (source, sink)
        assert set(pairwise(path)) <= edges


def test_a_cut_between_sets_takes_none_of_their_members() -> None:
    """Two sources and two sinks through one label: that one, with one path to prove it."""
    edges = [("a", "m"), ("b", "m"), ("m", "x"), ("m", "y"), ("a", "b"), ("x", "y")]
    graph = Graph.from_edges(edges)
    found = cut_labels(graph, graph.bits(["a", "b"]), graph.bits(["x", "y"]))
    assert found.labels == ("m",)
    assert len(found.paths) == 1
    assert len(cut_flows(graph, graph.bits(["a", "b"]), graph.bits(["x", "y"])).flows) == 2


def test_sets_of_bits_keep_what_is_put_in() -> None:
    """Members, marks, unions, packing and turning round agree with Python's sets."""
    chance = random.Random(1)
    for size in (1, 5, 30, 400):
        held = {number for number in range(size) if chance.random() < 0.4}
        bits = bitset(held)
        assert bits == packed(held, size)
        assert set(members(bits)) == set(each(bits)) == held
        assert {n for n, mark in enumerate(marks(bits)) if mark} == held
        rows = [chance.getrandbits(size) for _ in range(size)]
        whole = 0
        for number in held:
            whole |= rows[number]
        assert union(rows, bits) == whole
        turned = transposed(rows)
        assert all(rows[a] >> b & 1 == turned[b] >> a & 1 for a in range(size) for b in range(size))


def test_a_graph_with_too_many_labels_is_refused() -> None:
    """One more than the limit is an error that names it."""
    with pytest.raises(InputError, match=f"at most {MAX_NODES}"):
        Graph.from_edges([], map(str, range(MAX_NODES + 1)))
