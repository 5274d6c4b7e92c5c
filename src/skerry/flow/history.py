"""Chinese Walls with history (Brewer and Nash): is there a path that no wall closes?

Whoever exchanges with another has touched all that the other has touched, for ever, and for as long
as the channel lasts what the other learns; and an exchange is refused where those who are joined
would hold more than one type of a conflict set. So information comes from A to B only over a path
whose labels together hold at most one type of each set; and over such a path it does come, if its
exchanges are made in order. That is a choice of one type for each set, and in general there is no
better way than to try: clingo, a solver for answer sets, decides it for paths of any length.

Of some nodes no history is kept (`Graph.forgets`). Behind one of them nobody knows what came
before, so a path is open if each of its legs between them is.

The rules this module keeps: the answer is exact for a history that begins empty and is kept of all;
one that is not empty can only close more, and legs that share labels err to "open". What can't be
decided is an error, never a path that is closed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from skerry.errors import SkerryError
from skerry.flow.bits import bitset, members
from skerry.flow.deadline import Check, unbounded
from skerry.flow.graph import Graph
from skerry.flow.search import closure, shortest_path

if TYPE_CHECKING:
    import clingo

MAX_SOLVED = 1_000_000
"""Most flows over which clingo looks for a path, which takes it some 10 s and 200 MB; with more the
question is refused."""

_LOOK_S = 0.05

_PROGRAM = """\
{ pick(S, T) : type(S, T) } 1 :- set(S).
out(X) :- holds(X, S, T), not pick(S, T).
reach(X) :- source(X), not out(X).
reach(Y) :- reach(X), edge(X, Y), not out(Y).
goal :- reach(X), sink(X).
:- not goal.
#show pick/2.
"""


def open_path(
    graph: Graph, sources: int, sinks: int, avoid: int = 0, check: Check = unbounded
) -> list[int]:
    """Return a path that no wall with history closes, or an empty list if there is none.

    Each leg is a shortest one among those that touch the same types. Raises `SkerryError` where
    clingo is needed and missing, or can't tell, and what `check` does, also while clingo searches.
    """
    plain = shortest_path(graph, sources, sinks, avoid)
    if not plain or is_open(graph, plain):
        return plain
    begun: dict[int, list[int]] = {node: [node] for node in members(sources)}
    while True:
        origins = bitset(begun)
        ends = sinks | graph.forgets & ~(origins | avoid)
        check()
        leg = _open_leg(graph, origins, ends, avoid | graph.forgets, check)
        if not leg:
            return []
        path = [*begun[leg[0]], *leg[1:]]
        if sinks >> leg[-1] & 1:
            return path
        begun[leg[-1]] = path


def _open_leg(graph: Graph, sources: int, sinks: int, avoid: int, check: Check) -> list[int]:
    plain = shortest_path(graph, sources, sinks, avoid)
    if not plain or _holds_one(graph, plain):
        return plain
    picked = _solve(graph, sources, sinks, avoid, check)
    if picked is None:
        return []
    allowed = (1 << len(graph.names)) - 1
    for number, types in enumerate(graph.conflicts):
        for place, held in enumerate(types):
            if place != picked.get(number, -1):
                allowed &= ~held
    path = shortest_path(graph, sources & allowed, sinks & allowed, avoid | ~allowed)
    if not path:
        raise SkerryError("clingo found a path through walls with history, and there is none")
    return path


def is_open(graph: Graph, path: Sequence[int]) -> bool:
    """Tell whether the labels of each leg of a path hold at most one type of each conflict set."""
    stops = [place for place, node in enumerate(path) if graph.forgets >> node & 1]
    legs = zip([0, *stops], [*stops, len(path) - 1], strict=True)
    return all(_holds_one(graph, path[begin : end + 1]) for begin, end in legs)


def _holds_one(graph: Graph, leg: Sequence[int]) -> bool:
    nodes = bitset(leg)
    return all(sum(bool(held & nodes) for held in types) < 2 for types in graph.conflicts)


def _solve(
    graph: Graph, sources: int, sinks: int, avoid: int, check: Check
) -> dict[int, int] | None:
    """Return the type of each conflict set with which there is a path; None if there is none."""
    control = _control()
    # Only what lies on some way from the sources to the sinks can matter.
    ahead = closure(graph.rows, graph.back, sources, avoid & ~sinks)
    between = ahead & closure(graph.back, graph.rows, sinks, avoid & ~sources)
    facts = "".join(_facts(graph, sources & between, sinks & between, between, check))
    control.add("base", [], _PROGRAM + facts)
    control.ground([("base", [])])
    picked: dict[int, int] = {}

    def keep(model: clingo.Model) -> None:
        for symbol in model.symbols(shown=True):
            one, two = symbol.arguments
            picked[one.number] = two.number

    with control.solve(on_model=keep, async_=True) as search:  # left early, it is given up
        while not search.wait(_LOOK_S):
            check()
        found = search.get()
    if not found.satisfiable and not found.unsatisfiable:
        raise SkerryError("clingo can't tell whether walls with history close every path")
    return picked if found.satisfiable else None


def _facts(graph: Graph, sources: int, sinks: int, between: int, check: Check) -> Iterator[str]:
    for number, types in enumerate(graph.conflicts):
        yield f"set({number})."
        for place, held in enumerate(types):
            yield f"type({number},{place})."
            yield from (f"holds({node},{number},{place})." for node in members(held & between))
    yield from (f"source({node})." for node in members(sources))
    yield from (f"sink({node})." for node in members(sinks))
    edges = 0
    for node in members(between & ~sinks):
        check()
        edges += (graph.rows[node] & between).bit_count()
        if edges > MAX_SOLVED:
            raise SkerryError(
                f"more than {MAX_SOLVED} flows may lead there, too many for walls with history",
                fix="ask without history, or of fewer labels",
            )
        yield from (f"edge({node},{other})." for other in members(graph.rows[node] & between))


def _control() -> clingo.Control:
    try:
        import clingo
    except ImportError:
        message = "walls with history are decided by clingo, which is not installed"
        raise SkerryError(message, fix="pip install clingo") from None
    return clingo.Control(["--warn=none"])
