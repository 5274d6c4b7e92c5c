"""Which flows appear and which vanish from one policy to another.

The rules this module keeps: labels are compared by name; what only one of the two policies has
counts as without a flow in the other. *Flow* is a direct one, *reach* one over whatever chain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from skerry.errors import InputError, Problem
from skerry.flow.bits import members
from skerry.flow.graph import Graph, packed
from skerry.flow.policy import Options
from skerry.flow.search import closure
from skerry.node.assertions import known_graph
from skerry.node.flows import SystemFlows
from skerry.node.setup import carried, load_setup
from skerry.node.written import with_writers
from skerry.policy.difference import Change
from skerry.xsm.module import SecurityModule
from skerry.xsm.stack import Stack


def policy_flow_changes(
    old: SecurityModule, new: SecurityModule, options: Options
) -> Iterator[Change]:
    """Yield the flows that differ between two policies. Raises `InputError` for unlike modules."""
    if old.name != new.name:
        message = f"flows of the module {new.name} can't be compared with those of {old.name}"
        raise InputError([Problem("policy", 0, message)])
    return graph_changes(known_graph(Stack([old]), options), known_graph(Stack([new]), options))


def system_flow_changes(path: Path, old: SecurityModule, new: SecurityModule) -> Iterator[Change]:
    """Yield the flows between a system's domains that differ. Raises `InputError`."""
    setup = load_setup(path)
    graphs = []
    for module in (old, new):
        if module.name not in setup.stack.names:
            message = f"the system has no policy of the module {module.name}"
            raise InputError([Problem(str(path), setup.system.line(("policy",)), message)])
        modules = [module if m.name == module.name else m for m in setup.stack.modules]
        policy = msgspec.structs.replace(setup.policy, stack=Stack(modules))
        graphs.append(SystemFlows(with_writers(carried(setup, policy))).graph())
    return graph_changes(*graphs)


def graph_changes(old: Graph, new: Graph) -> Iterator[Change]:
    """Yield the flows that differ between two graphs, direct ones first."""
    names = [*old.names, *(name for name in new.names if name not in old)]
    rows: tuple[Callable[[Graph], list[int]], ...] = (lambda g: list(g.rows), _reached)
    for kind, made in zip(("flow", "reach"), rows, strict=True):
        before, after = (_renumbered(graph, made(graph), names) for graph in (old, new))
        yield from _compared(kind, names, before, after)


def _compared(kind: str, names: list[str], before: list[int], after: list[int]) -> Iterator[Change]:
    for effect, gained, lost in (("allowed", after, before), ("denied", before, after)):
        groups: defaultdict[int, list[str]] = defaultdict(list)
        for name, more, less in zip(names, gained, lost, strict=True):
            if more & ~less:
                groups[more & ~less].append(name)
        for bits, sources in groups.items():
            yield Change(effect, kind, tuple(sources), tuple(names[n] for n in members(bits)))


def _reached(graph: Graph) -> list[int]:
    """Return what each node reaches, itself left out."""
    return [
        closure(graph.rows, graph.back, 1 << node, 0) & ~(1 << node)
        for node in range(len(graph.names))
    ]


def _renumbered(graph: Graph, rows: list[int], names: list[str]) -> list[int]:
    if list(graph.names) == names:
        return rows
    place = {name: number for number, name in enumerate(names)}
    found = [0] * len(names)
    for name, row in zip(graph.names, rows, strict=True):
        found[place[name]] = packed((place[graph.names[n]] for n in members(row)), len(names))
    return found
