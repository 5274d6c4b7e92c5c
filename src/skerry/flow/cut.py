"""Minimum cuts: the fewest labels, flows or channels through which everything must pass.

The rule this module keeps: a cut is minimal, and what proves it comes with it: as many paths that
have no label (no flow, no channel) in common as the cut has members (Menger's theorem). The method
is Dinic's, on rows of bits. Sets are given as `skerry.flow.given` takes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec

from skerry.errors import InputError, Problem
from skerry.flow.bits import each, members, union
from skerry.flow.given import Labels, nodes
from skerry.flow.graph import Graph


class LabelCut(msgspec.Struct, frozen=True):
    """The fewest labels to remove or to trust, and as many paths that meet only at their ends."""

    labels: tuple[str, ...]
    paths: tuple[tuple[str, ...], ...]


class FlowCut(msgspec.Struct, frozen=True):
    """The fewest flows to remove, and as many paths without a flow in common."""

    flows: tuple[tuple[str, str], ...]
    paths: tuple[tuple[str, ...], ...]


class Channel(msgspec.Struct, frozen=True):
    """One channel between two labels of a graph, by which `sink` may send too if not `one_way`.

    `kind` is what it is called beside its name, for whoever reads the cut.
    """

    name: str
    source: str
    sink: str
    one_way: bool = False
    kind: str = ""


class ChannelCut(msgspec.Struct, frozen=True):
    """The fewest channels to cut, and as many paths without a channel in common.

    `flows` says, channel by channel, which way what is cut would flow; `over`, path by path, over
    which channels it goes.
    """

    channels: tuple[Channel, ...]
    flows: tuple[tuple[str, str], ...]
    paths: tuple[tuple[str, ...], ...]
    over: tuple[tuple[Channel, ...], ...]


def cut_labels(graph: Graph, sources: Labels, sinks: Labels) -> LabelCut:
    """Return a minimum cut of labels between sources and sinks, none of which is in the cut.

    Raises `InputError` where a source may send to a sink directly: no label lies between.
    """
    sources, sinks = nodes(graph, sources), nodes(graph, sinks)
    for source in members(sources):
        direct = graph.rows[source] & sinks
        if direct:
            one, two = graph.names[source], graph.names[next(each(direct))]
            message = f"{one} may send to {two} directly, so no label lies between them"
            raise InputError([Problem("cut", 0, f"{message}; ask for flows to remove instead")])
    size = len(graph.names)
    # Each node becomes two: what comes in, at its number, and what goes out, `size` above it.
    ends = sources | sinks
    rows = [0 if ends >> node & 1 else 1 << size + node for node in range(size)]
    rows += [0 if sinks >> node & 1 else row & ~sources for node, row in enumerate(graph.rows)]
    network = _Network(rows)
    network.saturate(sources << size, sinks)
    seen = network.reached(sources << size)
    labels = seen & ~(seen >> size) & ((1 << size) - 1) & ~ends
    # What crosses between two labels is cut in the second, or in the first before a sink.
    for node in members(seen >> size):
        across = rows[size + node] & ~seen
        labels |= across & ~sinks | (1 << node if across & sinks else 0)
    paths = network.paths(sources << size, sinks)
    names = graph.names
    return LabelCut(
        graph.named(labels),
        tuple(
            tuple(names[at % size] for at in path if at >= size or sinks >> at & 1)
            for path in paths
        ),
    )


def cut_flows(graph: Graph, sources: Labels, sinks: Labels) -> FlowCut:
    """Return a minimum cut of flows between sources and sinks."""
    sources, sinks = nodes(graph, sources), nodes(graph, sinks)
    rows = [row & ~sources for row in graph.rows]
    network = _Network(rows)
    network.saturate(sources, sinks)
    seen = network.reached(sources)
    names = graph.names
    flows = [
        (names[source], names[sink])
        for source in members(seen)
        for sink in members(rows[source] & ~seen)
    ]
    paths = network.paths(sources, sinks)
    return FlowCut(tuple(flows), tuple(tuple(names[at] for at in path) for path in paths))


def cut_channels(graph: Graph, channels: Sequence[Channel], sources: int, sinks: int) -> ChannelCut:
    """Return a minimum cut of channels, each of which counts once, also where it is two-way.

    Of the graph only the labels count, and which are left out; what flows, the channels say. Their
    names need not differ.
    """
    sources, sinks = nodes(graph, sources), nodes(graph, sinks)
    size = len(graph.names)
    place = {name: number for number, name in enumerate(graph.names)}
    left_out = set(graph.named(graph.gone))
    kept = [one for one in channels if left_out.isdisjoint((one.source, one.sink))]
    # Each channel becomes an edge between two nodes of its own, the one into which its senders
    # send and the one, `len(kept)` above, out of which it comes: so it carries one path in all.
    rows = [0] * (size + 2 * len(kept))
    for number, one in enumerate(kept, size):
        source, sink = place[one.source], place[one.sink]
        rows[source] |= 1 << number
        rows[sink] |= 0 if one.one_way else 1 << number
        rows[number] = 1 << number + len(kept)
        rows[number + len(kept)] = (1 << sink | (0 if one.one_way else 1 << source)) & ~sources
    network = _Network(rows)
    network.saturate(sources, sinks)
    seen = network.reached(sources)
    # No more edges are full than paths, so each stands for another channel: one that is entered
    # from what is reached and leads out of it.
    crossing = [
        (one, flow)
        for one in kept
        for flow in _ways(one)
        if seen >> place[flow[0]] & 1 and not seen >> place[flow[1]] & 1
    ]
    paths = network.paths(sources, sinks)
    return ChannelCut(
        tuple(one for one, _ in crossing),
        tuple(flow for _, flow in crossing),
        tuple(tuple(graph.names[at] for at in path if at < size) for path in paths),
        tuple(
            tuple(kept[at - size] for at in path if size <= at < size + len(kept)) for path in paths
        ),
    )


def _ways(channel: Channel) -> Iterator[tuple[str, str]]:
    """Yield from whom to whom a channel carries."""
    yield channel.source, channel.sink
    if not channel.one_way:
        yield channel.sink, channel.source


class _Network:
    """A network of edges that carry one unit each, and what is left of it."""

    def __init__(self, rows: Sequence[int]) -> None:
        self._rows = tuple(rows)
        self._left = list(rows)
        # An edge whose opposite is used and that was there itself can carry two.
        self._twice = [0] * len(rows)

    def saturate(self, sources: int, sinks: int) -> None:
        """Send as much as can be sent."""
        while layers := self._layers(sources, sinks):
            for path in self._blocking(layers):
                for one, two in pairwise(path):
                    self._use(one, two)

    def reached(self, sources: int) -> int:
        """Return what can still be reached from the sources."""
        seen = new = sources
        while new:
            new = union(self._left, new) & ~seen
            seen |= new
        return seen

    def paths(self, sources: int, sinks: int) -> list[list[int]]:
        """Return the paths along which something is sent, apart from circles."""
        used = [row & ~left for row, left in zip(self._rows, self._left, strict=True)]
        found = []
        for source in members(sources):
            while used[source]:
                path = [source]
                while not sinks >> path[-1] & 1:
                    here = path[-1]
                    there = next(each(used[here]))
                    used[here] &= ~(1 << there)
                    if there in path:
                        del path[path.index(there) + 1 :]
                    else:
                        path.append(there)
                found.append(path)
        return found

    def _layers(self, sources: int, sinks: int) -> list[int]:
        layers = [sources]
        seen = sources
        while layers[-1]:
            new = union(self._left, layers[-1]) & ~seen
            if new & sinks:
                return [*layers, new & sinks]
            seen |= new
            layers.append(new)
        return []

    def _blocking(self, layers: Sequence[int]) -> Iterator[list[int]]:
        """Yield paths through the layers, each used before the next is looked for."""
        alive = list(layers)
        path: list[int] = []
        while True:
            depth = len(path)
            choice = alive[0] if not path else self._left[path[-1]] & alive[depth]
            if choice:
                path.append(next(each(choice)))
                if len(path) == len(layers):
                    yield path
                    path = []
            elif path:
                alive[depth - 1] &= ~(1 << path.pop())
            else:
                return

    def _use(self, one: int, two: int) -> None:
        here, there = 1 << one, 1 << two
        if self._twice[one] & there:
            self._twice[one] ^= there
        else:
            self._left[one] ^= there
        if self._left[two] & here:
            self._twice[two] |= here
        else:
            self._left[two] |= here
