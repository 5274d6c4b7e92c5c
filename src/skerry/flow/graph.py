"""The graph of flows: who may send to whom, directly.

The rules this module keeps: a node stands for a label, a type or a domain and has a name; the
flows out of a node are one set, so a graph of 4,000 types with a million flows takes 4 MB; what
makes a flow (the rules) is looked up when it is asked for. A graph never changes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from skerry.errors import InputError, Problem
from skerry.flow.bits import bitset, members, picked

MAX_NODES = 20_000
"""Most nodes of a graph, which then takes 100 MB; a policy or system with more is refused."""

_SHOWN = 8
_COMPARED, _LIKE = 1_000, 128
"""Names, and characters of a name, among which one that was meant is looked for."""

Reason = Callable[[str, str], Sequence[str]]
"""Returns what makes the flow from one node to another: rules, as their policy writes them."""


def _no_reason(source: str, sink: str) -> Sequence[str]:
    return ()


class About(msgspec.Struct, frozen=True):
    """What a graph was made from, so that a proof can say for what it holds.

    `digests` are those of the policies, `system` that of a system file's meaning; `permission_map`
    that of the map. `any_booleans` says that every rule counts, whatever the booleans; `contexts`
    of which contexts it is, where it is not of types.
    """

    kind: str
    digests: Mapping[str, str] = {}
    permission_map: str = ""
    min_weight: int = 0
    any_booleans: bool = False
    excluded: tuple[str, ...] = ()
    system: str = ""
    contexts: tuple[str, ...] = ()


class Graph:
    """Nodes by name, and for each the set of those it may send to."""

    def __init__(
        self,
        names: Sequence[str],
        rows: Sequence[int],
        back: Sequence[int] | None = None,
        *,
        own: int = 0,
        groups: Mapping[str, int] | None = None,
        gone: int = 0,
        conflicts: Sequence[Sequence[int]] = (),
        forgets: int = 0,
        about: About | None = None,
        reason: Reason = _no_reason,
    ) -> None:
        """Take the flows: bit `j` of `rows[i]` is the flow from node `i` to node `j`.

        `back` is the same turned round, made here where it is not given. `own` holds the nodes
        that stand for several things which may send to each other; `groups` names sets of nodes;
        `gone` are nodes left out, without flows; `conflicts` holds, for each conflict set of a
        Chinese Wall with history, the nodes that hold each of its types; `forgets` are nodes of
        which no history is kept. Raises `InputError` beyond `MAX_NODES`.
        """
        check_size(len(names))
        self.names = tuple(names)
        self.rows = tuple(rows)
        self.back = tuple(transposed(rows) if back is None else back)
        self.own = own
        self.groups = groups or {}
        self.gone = gone
        self.conflicts = tuple(tuple(types) for types in conflicts)
        self.forgets = forgets
        self.about = about or About("graph")
        self._index = {name: number for number, name in enumerate(self.names)}
        if len(self._index) != len(self.names):
            raise self._wrong("two labels have the same name, so they can't be told apart")
        self._reason = reason
        self._suggests = True
        self.has_commas = any("," in name for name in (*self.names, *self.groups))

    @classmethod
    def from_flows(cls, flows: Mapping[str, Collection[str]]) -> Graph:
        """Make a graph of a mapping from each node to those it may send to."""
        return cls.from_edges(((one, two) for one in flows for two in flows[one]), flows)

    @classmethod
    def from_edges(cls, edges: Iterable[tuple[str, str]], names: Iterable[str] = ()) -> Graph:
        """Make a graph of pairs: source and sink. `names` are nodes that may have no flow."""
        index: dict[str, int] = {name: number for number, name in enumerate(dict.fromkeys(names))}
        sinks: dict[int, list[int]] = {}
        sources: dict[int, list[int]] = {}
        for source, sink in edges:
            one = index.setdefault(source, len(index))
            two = index.setdefault(sink, len(index))
            if one != two:
                sinks.setdefault(one, []).append(two)
                sources.setdefault(two, []).append(one)
        size = len(index)
        check_size(size)
        rows, back = (
            [packed(way.get(n, ()), size) for n in range(size)] for way in (sinks, sources)
        )
        return cls(list(index), rows, back)

    def index(self, name: str) -> int:
        """Return a node's number. Raises `KeyError`."""
        return self._index[name]

    def __repr__(self) -> str:
        """Say how large it is and of what, instead of what it holds."""
        kind = self.about.kind
        of = "" if kind == "graph" else f" of {kind}"
        return f"<Graph{of}: {len(self.names)} labels, {self.edges()} flows>"

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def named(self, bits: int) -> tuple[str, ...]:
        """Return the names of a set of nodes."""
        return picked(self.names, bits)

    def named_path(self, path: Sequence[int]) -> tuple[str, ...]:
        """Return the names along a path, in its order."""
        return tuple([self.names[number] for number in path])

    def bits(self, names: str | Iterable[str]) -> int:
        """Return the set of some nodes. Raises `InputError` for a name that there is not."""
        found = 0
        for name in (names,) if isinstance(names, str) else names:
            found |= self.find(name)
        return found

    def find(self, untrusted: str) -> int:
        """Return the nodes of a name, a group (an attribute of types) or a pattern such as `a*`.

        Raises `InputError` where that names nothing, or only what is left out.
        """
        found = self.find_all(untrusted)
        if not found & ~self.gone:
            raise self._wrong(f"{untrusted!r} is left out, so nothing can be said of it")
        return found & ~self.gone

    def find_all(self, untrusted: str) -> int:
        """Return the same with what is left out. Raises `InputError` where it names nothing."""
        matching = fnmatch.filter(self.names, untrusted) if is_pattern(untrusted) else []
        if untrusted in self._index:
            found = 1 << self._index[untrusted]
            if matching not in ([], [untrusted]) or self.groups.get(untrusted, found) != found:
                raise self._wrong(f"{untrusted!r} is a label, and stands for others as well")
        elif untrusted in self.groups:
            found = self.groups[untrusted]
            if not found:
                raise self._wrong(f"{untrusted!r} stands for no label: nothing has it")
        elif is_pattern(untrusted):
            if not matching:
                raise self._wrong(f"no label matches {untrusted!r}")
            found = bitset(self._index[name] for name in matching)
        else:
            raise self._wrong(f"there is no label {untrusted!r}; {self._meant(untrusted)}")
        return found

    def knows(self, name: str) -> bool:
        """Tell whether a name is that of a label or of a group."""
        return name in self._index or name in self.groups

    def edges(self) -> int:
        """Return the number of flows."""
        return sum(row.bit_count() for row in self.rows)

    def reasons(self, source: str, sink: str) -> tuple[str, ...]:
        """Return the rules that make a flow, each as its policy writes it.

        Raises `InputError` for what is no single label.
        """
        for name in (source, sink):
            if name not in self._index:
                self.find(name)
                raise self._wrong(f"{name!r} stands for labels; rules are asked of one and one")
        return tuple(self._reason(source, sink))

    def without(self, labels: int | str | Iterable[str]) -> Graph:
        """Return the graph with some nodes left out, given as a set or by name."""
        bits = labels if isinstance(labels, int) else self.bits(labels)
        keep = ~bits
        rows = [0 if bits >> n & 1 else row & keep for n, row in enumerate(self.rows)]
        back = [0 if bits >> n & 1 else row & keep for n, row in enumerate(self.back)]
        gone = self.gone | bits
        about = msgspec.structs.replace(self.about, excluded=self.named(gone))
        return Graph(
            self.names,
            rows,
            back,
            own=self.own & keep,
            groups=self.groups,
            gone=gone,
            conflicts=self.conflicts,
            forgets=self.forgets & keep,
            about=about,
            reason=self._reason,
        )

    def _meant(self, untrusted: str) -> str:
        from difflib import get_close_matches
        from heapq import nlargest
        from operator import eq

        if self.about.kind == "flask" and untrusted.count(":") > 1:
            return "the labels are types; name whole contexts by --context"
        # Looking for it may cost more than any answer: it is done once, and among so many.
        if not self._suggests:
            return self._listed()
        self._suggests = False
        word, short = untrusted[:_LIKE], (n for n in self.names if len(n) <= _LIKE)
        among = nlargest(_COMPARED, short, lambda n: sum(map(eq, n, word)))
        close = get_close_matches(word, among, 3)
        if close:
            return f"did you mean {' or '.join(close)}?"
        return self._listed()

    def _listed(self) -> str:
        more = len(self.names) - _SHOWN
        shown = ", ".join(self.names[:_SHOWN]) or "none"
        return f"the labels are: {shown}{f' and {more} more' if more > 0 else ''}"

    def _wrong(self, message: str) -> InputError:
        return InputError([Problem("flow", 0, message)])


def is_pattern(untrusted: str) -> bool:
    """Tell whether a name may stand for all that it matches."""
    return any(character in untrusted for character in "*?[")


def check_size(labels: int) -> None:
    """Raise `InputError` for more labels than a graph may have, before anything is made of them."""
    if labels > MAX_NODES:
        message = f"{labels} labels, but a graph of flows has at most {MAX_NODES}"
        raise InputError([Problem("flow", 0, message)])


def packed(numbers: Iterable[int], size: int) -> int:
    """Return the set of some numbers below `size`; quicker than `bitset` where they are many."""
    room = bytearray((size + 7) // 8)
    for number in numbers:
        room[number >> 3] |= 1 << (number & 7)
    return int.from_bytes(room, "little")


def transposed(rows: Sequence[int]) -> list[int]:
    """Return a matrix of bits with its rows as columns."""
    sources: list[list[int]] = [[] for _ in rows]
    for number, row in enumerate(rows):
        for sink in members(row):
            sources[sink].append(number)
    return [packed(found, len(rows)) for found in sources]
