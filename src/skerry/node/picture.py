"""A system as a drawing: its domains coloured by label, its channels as arrows."""

from __future__ import annotations

import msgspec

from skerry.flow.draw import Arrow, Box, Drawing
from skerry.flow.graph import Graph
from skerry.node.flows import BEFORE, CHANNELS, SystemFlows
from skerry.node.setup import Setup

_SHOWN_PORTS = 40
"""Up to so many channels the arrows have the names of their ports."""


def draw_system(setup: Setup, *, refused: bool = False) -> Drawing:
    """Return the drawing of the channels that a system file configures.

    Those that the policy refuses are left out, or dashed.
    """
    flows = SystemFlows(msgspec.structs.replace(setup, written={}))
    place = {name: number for number, name in enumerate(flows.names)}
    named = len(setup.system.channels) <= _SHOWN_PORTS
    arrows = []
    for one in flows.configured():
        if one.allowed or refused:
            source, sink = (place[name] for name in one.ends)
            text = one.channel.name if named and one.channel.kind in CHANNELS else ""
            arrows.append(Arrow(source, sink, not one.one_way, not one.allowed, text))
    names = [name for name in flows.names if name in setup.labels]
    return Drawing(setup.system.name, tuple(_boxes(setup, names)), tuple(arrows))


def draw_possible(setup: Setup, graph: Graph) -> Drawing:
    """Return the drawing of every flow that the policy would let an operator bind.

    Two domains with the same label have the same flows, so each label is one box. So is a label
    that wrote something before and that no domain has any more.
    """
    system = setup.system
    sets: dict[tuple[str, bool], list[str]] = {}
    for name in graph.names:
        label = str(setup.labels[name]) if name in setup.labels else name.removeprefix(BEFORE)
        sets.setdefault((label, name in system.resources), []).append(name)
    place = {name: number for number, held in enumerate(sets.values()) for name in held}
    pairs: dict[tuple[int, int], None] = {}
    for name in graph.names:
        for sink in graph.named(graph.rows[graph.index(name)]):
            pairs[place[name], place[sink]] = None
    boxes = [
        Box(tuple(held), label, resource, (place[held[0]], place[held[0]]) in pairs)
        for (label, resource), held in sets.items()
    ]
    arrows = [
        Arrow(one, two, both=(two, one) in pairs)
        for one, two in pairs
        if one != two and not ((two, one) in pairs and two < one)
    ]
    return Drawing(system.name, tuple(boxes), tuple(arrows))


def _boxes(setup: Setup, names: list[str]) -> list[Box]:
    resources = setup.system.resources
    return [Box((name,), str(setup.labels[name]), name in resources) for name in names]
