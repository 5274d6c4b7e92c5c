"""What can be reached, and by which paths.

The rule this module keeps: each answer is exact. A path never visits a node twice; `avoid` are
nodes that no path may pass through. Sets are given as `skerry.flow.given` takes them: as bits, as
`Graph.find` returns them, or by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from skerry.flow.bits import each, members, union
from skerry.flow.given import Labels, nodes
from skerry.flow.graph import Graph


def reach(graph: Graph, sources: Labels, avoid: Labels = 0) -> int:
    """Return the nodes that information from the sources can come to, without the sources."""
    start, barred = nodes(graph, sources), nodes(graph, avoid)
    return closure(graph.rows, graph.back, start, barred) & ~start


def reach_back(graph: Graph, sinks: Labels, avoid: Labels = 0) -> int:
    """Return the nodes from which information can come to the sinks, without the sinks."""
    start, barred = nodes(graph, sinks), nodes(graph, avoid)
    return closure(graph.back, graph.rows, start, barred) & ~start


def closure(rows: Sequence[int], back: Sequence[int], start: int, avoid: int) -> int:
    """Return `start` and all that can be reached from there without entering `avoid`.

    Where fewer nodes are left than were found last, those that are left are asked whether
    something found sends to them, instead of the found ones whom they send to.
    """
    everything = (1 << len(rows)) - 1
    seen = new = start
    while new:
        left = everything & ~(seen | avoid)
        if left.bit_count() < new.bit_count():
            found = 0
            for node in members(left):
                if back[node] & seen:
                    found |= 1 << node
            new = found
        else:
            new = union(rows, new) & left
        seen |= new
    return seen


def distance(graph: Graph, sources: Labels, sinks: Labels, avoid: Labels = 0) -> int:
    """Return the number of flows of a shortest path, 0 if there is none."""
    return max(0, len(_narrowed(graph, sources, sinks, avoid)) - 1)


def shortest_path(graph: Graph, sources: Labels, sinks: Labels, avoid: Labels = 0) -> list[int]:
    """Return one shortest path from a source to a sink, or an empty list."""
    return next(all_shortest_paths(graph, sources, sinks, avoid), [])


def all_shortest_paths(
    graph: Graph, sources: Labels, sinks: Labels, avoid: Labels = 0
) -> Iterator[list[int]]:
    """Yield every shortest path from a source to a sink, in the order of their nodes."""
    layers = _narrowed(graph, sources, sinks, avoid)
    if not layers:
        return
    rows, last = graph.rows, len(layers) - 1
    path: list[int] = []
    choices = [each(layers[0])]
    while choices:
        node = next(choices[-1], -1)
        if node < 0:
            choices.pop()
            if path:
                path.pop()
            continue
        depth = len(path)
        if depth == last - 1:
            before = [*path, node]
            for sink in members(rows[node] & layers[last]):
                yield [*before, sink]
            continue
        path.append(node)
        choices.append(each(rows[node] & layers[depth + 1]))


def _narrowed(graph: Graph, sources: Labels, sinks: Labels, avoid: Labels) -> list[int]:
    """Return the layers of all shortest paths: each node lies on one.

    They are searched for from both ends, from the end that has found less, until they meet.
    """
    rows, back = graph.rows, graph.back
    seen, known = nodes(graph, sources), nodes(graph, sinks)
    ahead, behind = [seen], [known]
    barred = nodes(graph, avoid) & ~(seen | known)
    while True:
        if ahead[-1].bit_count() <= behind[-1].bit_count():
            new = union(rows, ahead[-1]) & ~(seen | barred)
            seen |= new
            ahead.append(new)
        else:
            new = union(back, behind[-1]) & ~(known | barred)
            known |= new
            behind.append(new)
        if not new:
            return []
        if ahead[-1] & behind[-1]:
            break
    middle = ahead[-1] & behind[-1]
    front, rear = [middle], [middle]
    for layer in reversed(ahead[:-1]):
        front.append(layer & union(back, front[-1]))
    for layer in reversed(behind[:-1]):
        rear.append(layer & union(rows, rear[-1]))
    return [*reversed(front), *rear[1:]]


def simple_paths(
    graph: Graph, sources: Labels, sinks: Labels, longest: int, avoid: Labels = 0
) -> Iterator[list[int]]:
    """Yield every path of at most `longest` flows that visits no node twice and ends at a sink.

    Only at its ends does a path touch sources or sinks.
    """
    rows = graph.rows
    start, end = nodes(graph, sources), nodes(graph, sinks)
    barred = nodes(graph, avoid) & ~end | start
    near = [end]  # near[k]: from where a sink is at most k flows away
    for _ in range(longest):
        near.append(near[-1] | union(graph.back, near[-1]) & ~barred)
    path: list[int] = []
    choices = [each(start)]
    while choices:
        node = next(choices[-1], -1)
        if node < 0:
            choices.pop()
            if path:
                barred &= ~(1 << path.pop()) | start
            continue
        left = longest - len(path)
        if end >> node & 1:
            yield [*path, node]
            continue
        if left:
            path.append(node)
            barred |= 1 << node
            choices.append(each(rows[node] & near[left - 1] & ~barred))
