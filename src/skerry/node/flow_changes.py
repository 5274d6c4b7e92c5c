"""Which flows appear and which vanish from one policy to another.

The rules this module keeps: labels are compared by name; what only one of the two policies has
counts as without a flow in the other, and is left out or set there where the other has no such
name; where neither has, it is an error. *Flow* is a direct one, *reach* one over whatever chain.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from skerry.errors import InputError, Problem
from skerry.flow.bits import members
from skerry.flow.claim import labels
from skerry.flow.graph import Graph, is_pattern, packed
from skerry.flow.policy import Options
from skerry.flow.search import closure
from skerry.node.assertions import known_graph
from skerry.node.flows import SystemFlows
from skerry.node.setup import carried, load_setup
from skerry.node.written import with_writers
from skerry.policy.difference import Change
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.module import SecurityModule
from skerry.xsm.stack import Stack

_SHOWN = 12
"""Most booleans that a message lists."""


def policy_flow_changes(
    old: SecurityModule, new: SecurityModule, options: Options
) -> Iterator[Change]:
    """Yield the flows that differ between two policies, by what `options` count in either.

    Raises `InputError` for unlike modules, and what `policy_graph` does.
    """
    if old.name != new.name:
        message = f"flows of the module {new.name} can't be compared with those of {old.name}"
        raise InputError([Problem("policy", 0, message)])
    modules = (old, new)
    graphs = [known_graph(Stack([m]), _fitting(options, m, modules)) for m in modules]
    return graph_changes(*(_without(graph, options.exclude, graphs) for graph in graphs))


def set_in_either(
    modules: tuple[SecurityModule, SecurityModule], booleans: Mapping[str, bool]
) -> tuple[SecurityModule, SecurityModule]:
    """Set booleans in each of two policies that has them. Raises `InputError` if neither has."""
    known = [m.booleans() if isinstance(m, FlaskModule) else {} for m in modules]
    for name in booleans:
        if not any(name in names for names in known):
            listed = ", ".join(sorted({*known[0], *known[1]})[:_SHOWN]) or "none"
            message = f"neither policy has a boolean {name}; they have: {listed}"
            raise InputError([Problem("--boolean", 0, message)])
    one, two = (
        m.with_booleans({name: value for name, value in booleans.items() if name in names})
        if isinstance(m, FlaskModule)
        else m
        for m, names in zip(modules, known, strict=True)
    )
    return one, two


def _fitting(
    options: Options, module: SecurityModule, modules: tuple[SecurityModule, SecurityModule]
) -> Options:
    """Return the options as they apply to one policy: without classes that only the other has."""
    known = [m for m in modules if isinstance(m, FlaskModule)]
    classes = options.exclude_classes
    if isinstance(module, FlaskModule):
        having = {c: [m for m in known if m.policy.class_named(c) is not None] for c in classes}
        # What nobody has stays: the graph says that the policy has no such class.
        classes = tuple(c for c in classes if module in having[c] or not having[c])
    return msgspec.structs.replace(options, exclude=(), exclude_classes=classes)


def _without(graph: Graph, untrusted: Sequence[str], graphs: Sequence[Graph]) -> Graph:
    """Leave labels out of one of two graphs, as far as it has them."""
    names = [t for t in untrusted if _has(graph, t) or not any(_has(g, t) for g in graphs)]
    return graph.without(labels(graph, names)) if names else graph


def _has(graph: Graph, untrusted: str) -> bool:
    """Tell whether a graph has what is named; several names in one text it must have all."""
    if graph.knows(untrusted) or "," in untrusted:
        return True
    return is_pattern(untrusted) and bool(fnmatch.filter(graph.names, untrusted))


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
