"""Sets of labels as a caller of the library gives them: bits, a name, or several.

The rule this module keeps: what is meant is taken, and what could be meant in no way is refused
at once and by name; nothing is gone through letter by letter.
"""

from __future__ import annotations

from collections.abc import Iterable

from skerry.errors import InputError, Problem
from skerry.flow.claim import labels
from skerry.flow.graph import Graph

Labels = int | str | Iterable[str]
"""A set of a graph's labels: a whole number with a bit for each, or names as in a claim."""


def nodes(graph: Graph, untrusted: Labels) -> int:
    """Return the set that is given: of bits as it is, of names what they stand for.

    A text may name several labels, set apart by commas, attributes and patterns. Raises
    `InputError` for a name that there is not and for bits beyond the graph, `TypeError` for what is
    neither, and for what is no graph.
    """
    asked: object = graph
    if not isinstance(asked, Graph):
        raise TypeError(f"a Graph is asked, as policy_graph makes one, not {_kind(asked)}")
    given: object = untrusted
    if isinstance(given, int) and not isinstance(given, bool):
        size = len(graph.names)
        if given < 0:  # all but some, as ~ makes it
            return given & ((1 << size) - 1)
        if given >> size:
            message = f"{given} is no set of this graph's {size} labels: a bit stands for each"
            raise InputError([Problem("argument", 0, message)])
        return given
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, Iterable):
        raise _wrong(given)
    texts = tuple(names)
    for text in texts:
        if not isinstance(text, str):
            raise _wrong(text)
    return labels(graph, texts)


def _wrong(given: object) -> TypeError:
    what = "labels are given by name, several as a list of names, or as Graph.find returns them"
    return TypeError(f"{what}, not as {_kind(given)}")


def _kind(given: object) -> str:
    return type(given).__name__
