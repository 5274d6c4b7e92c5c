"""The graph of a policy, whatever modules it has: FLASK, ACM, or a stack that must all allow.

The rule this module keeps: in a stack there is a flow where every module has one. A label then has
a part for each module, so the nodes are all their combinations, written `acm=broker,flask=domU_t`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from itertools import product
from operator import or_

import msgspec

from skerry.errors import InputError, Problem
from skerry.flow.acm import acm_graph
from skerry.flow.claim import labels
from skerry.flow.contexts import context_graph
from skerry.flow.deadline import Check, unbounded
from skerry.flow.flask import flask_graph
from skerry.flow.graph import MAX_NODES, About, Graph
from skerry.flow.permission_map import PermissionMap
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.dummy import DummyModule
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.module import SecurityModule
from skerry.xsm.stack import Stack


class Options(msgspec.Struct, frozen=True):
    """What counts as a flow. All but `exclude` concerns FLASK policies alone.

    See `flask_graph` for the meaning of each. With `contexts` (see `named_contexts`) the graph of
    a FLASK policy is one of these whole contexts, and not of types. Where several names may stand,
    one text is one name. Raises `TypeError` for what is no name.
    """

    permission_map: PermissionMap | None = None
    min_weight: int = 1
    exclude: tuple[str, ...] = ()
    exclude_classes: tuple[str, ...] = ()
    any_booleans: bool = False
    skip_unknown: bool = False
    contexts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Let a text or a list stand where a tuple is meant, so that none is read by letters."""
        for field in ("exclude", "exclude_classes", "contexts"):
            given: object = getattr(self, field)
            if not isinstance(given, Iterable):
                raise TypeError(f"{field} holds names, as ('a', 'b'), not {given!r}")
            names = (given,) if isinstance(given, str) else tuple(given)
            if not all(isinstance(name, str) for name in names):
                raise TypeError(f"{field} holds names, as ('a', 'b'), not {given!r}")
            msgspec.structs.force_setattr(self, field, names)


def policy_graph(stack: Stack, options: Options | None = None, check: Check = unbounded) -> Graph:
    """Make the graph of a policy's labels.

    Raises `InputError`, `TypeError` for what is no stack, and what `check` raises.
    """
    asked: object = stack
    if not isinstance(asked, Stack):
        kind = type(asked).__name__
        raise TypeError(f"a stack is asked, as load_stack([FILE]) returns one, not {kind}")
    chosen = options or Options()
    graphs = [_graph(module, chosen, check) for module in stack.modules]
    found = [(m.name, g) for m, g in zip(stack.modules, graphs, strict=True) if g is not None]
    if not found:
        message = "the module dummy lets every domain exchange with every other: nothing to ask"
        raise InputError([Problem("dummy", 0, message)])
    if not any(isinstance(m, FlaskModule) for m in stack.modules):
        _require_none(chosen)
    graph = found[0][1] if len(found) == 1 else _joined(found)
    excluded = chosen.exclude
    return graph.without(labels(graph, excluded)) if excluded else graph


def _require_none(options: Options) -> None:
    """Raise `InputError` for what only a FLASK policy has: it would be passed over in silence."""
    for given, what in (
        (options.contexts, "contexts"),
        (options.exclude_classes, "classes to leave out"),
        (options.min_weight != 1 or options.permission_map, "permissions with weights"),
    ):
        if given:
            raise InputError([Problem("argument", 0, f"only a FLASK policy has {what}")])


def _graph(module: SecurityModule, options: Options, check: Check) -> Graph | None:
    if isinstance(module, AcmModule):
        return acm_graph(module)
    if isinstance(module, FlaskModule):
        contexts = options.contexts
        make = partial(context_graph, patterns=contexts, check=check) if contexts else flask_graph
        return make(
            module,
            permission_map=options.permission_map,
            min_weight=options.min_weight,
            exclude_classes=options.exclude_classes,
            any_booleans=options.any_booleans,
            skip_unknown=options.skip_unknown,
        )
    if isinstance(module, DummyModule):  # channels are free to everybody
        return None
    raise InputError([Problem(module.name, 0, "what flows under this module is not known")])


def _joined(graphs: Sequence[tuple[str, Graph]]) -> Graph:
    """Return the product of some graphs."""
    parts = sorted(graphs, key=lambda pair: pair[0])
    size = 1
    for _, graph in parts:
        size *= len(graph.names)
    if size > MAX_NODES:
        message = f"{size} combinations of labels, but a graph of flows has at most {MAX_NODES}"
        raise InputError([Problem("stack", 0, f"{message}; ask one policy at a time")])
    rows, back = [1], [1]  # with each node's own bit, which is taken out at the end
    for _, graph in parts:
        stride = len(graph.names)
        rows = _product(rows, _with_own(graph.rows, graph.own), stride)
        back = _product(back, _with_own(graph.back, graph.own), stride)
    own = sum(row & 1 << number for number, row in enumerate(rows))
    keys = list(product(*(graph.names for _, graph in parts)))
    names = [",".join(f"{m}={text}" for (m, _), text in zip(parts, k, strict=True)) for k in keys]
    split = dict(zip(names, keys, strict=True))

    def reasons(source: str, sink: str) -> Sequence[str]:
        sides = zip(parts, split[source], split[sink], strict=True)
        return [
            f"{module}: {text}"
            for (module, graph), one, two in sides
            for text in graph.reasons(one, two)
        ]

    groups = _groups(parts, size)
    return Graph(
        names,
        [row & ~(1 << number) for number, row in enumerate(rows)],
        [row & ~(1 << number) for number, row in enumerate(back)],
        own=own,
        groups=groups,
        conflicts=_conflicts(parts, groups),
        forgets=reduce(or_, (_spread_of(m, g, g.forgets, groups) for m, g in parts)),
        about=_about([graph.about for _, graph in parts]),
        reason=reasons,
    )


def _with_own(rows: Sequence[int], own: int) -> list[int]:
    return [row | own & 1 << number for number, row in enumerate(rows)]


def _product(outer: Sequence[int], inner: Sequence[int], stride: int) -> list[int]:
    """Return the rows of pairs: an outer bit stands for `stride` bits of the product."""
    spread = [_spread(row, stride) for row in outer]
    # The bits of `spread` lie `stride` apart, so nothing of this product overlaps.
    return [places * row for places in spread for row in inner]


def _spread(row: int, stride: int) -> int:
    found = 0
    for place, mark in enumerate(f"{row:b}"[::-1]):
        if mark == "1":
            found |= 1 << place * stride
    return found


def _groups(parts: Sequence[tuple[str, Graph]], size: int) -> dict[str, int]:
    """Return a set for each part of a label: `acm=broker` is all that have it."""
    found: dict[str, int] = {}
    inner = size
    for module, graph in parts:
        outer, inner = size // inner, inner // len(graph.names)
        period = inner * len(graph.names)
        repeated = sum(1 << number * period for number in range(outer))
        for place, name in enumerate(graph.names):
            found[f"{module}={name}"] = (((1 << inner) - 1) << place * inner) * repeated
    return found


def _conflicts(parts: Sequence[tuple[str, Graph]], groups: Mapping[str, int]) -> list[list[int]]:
    """Return the conflict sets of the parts, over the combinations that hold each type."""
    return [
        [_spread_of(module, graph, held, groups) for held in types]
        for module, graph in parts
        for types in graph.conflicts
    ]


def _spread_of(module: str, graph: Graph, held: int, groups: Mapping[str, int]) -> int:
    """Return the combinations with one of some nodes of a part."""
    return reduce(or_, (groups[f"{module}={name}"] for name in graph.named(held)), 0)


def _about(parts: Sequence[About]) -> About:
    def one(value: Callable[[About], str]) -> str:
        return next(filter(None, map(value, parts)), "")

    return About(
        "stack",
        {module: digest for part in parts for module, digest in part.digests.items()},
        one(lambda part: part.permission_map),
        max(part.min_weight for part in parts),
        any(part.any_booleans for part in parts),
        contexts=next((part.contexts for part in parts if part.contexts), ()),
    )
