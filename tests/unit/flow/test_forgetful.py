"""Operators and uplinks: no history is kept of them, so they lead round walls, and it is said."""

from __future__ import annotations

import random
from itertools import count, permutations
from pathlib import Path

import pytest

from skerry.errors import SkerryError
from skerry.flow import history
from skerry.flow.claim import parse_claim
from skerry.flow.deadline import Deadline, TookTooLong
from skerry.flow.graph import Graph
from skerry.flow.history import is_open, open_path
from skerry.flow.policy import policy_graph
from skerry.flow.proof import Proof, prove
from skerry.node.flows import SystemFlows
from skerry.node.setup import load_setup
from skerry.policy.source import load_stack
from tests.unit.flow.test_history import HISTORY

POLICY = HISTORY.replace('[labels.hub]\nste = ["x"]', '[labels.hub]\nste = ["a", "b", "x"]')
SYSTEM = """\
name = "banks"
policy = "policy.toml"
[domains.one]
label = "bank-a"
{uses}
[domains.two]
label = "bank-b"
autostart = false
{uses}
"""
CLAIM = parse_claim("one -/-> two")


def proven(folder: Path, resource: str = "", *, operators: bool = False) -> Proof:
    """Prove with history that one bank tells the other nothing, both using a resource or none."""
    uses = 'uses = ["shared"]' if resource else ""
    more = f'[resources.shared]\nlabel = "common"\n{resource}' if resource else ""
    policy = POLICY + '[resources.common]\nste = "c"\n' if resource else POLICY
    if resource:
        policy = policy.replace('["a", "b", "x"]\n[ch', '["a", "b", "c", "x"]\n[ch')
        policy = policy.replace('ste = ["a"]\ncw', 'ste = ["a", "c"]\ncw')
        policy = policy.replace('ste = ["b"]\ncw', 'ste = ["b", "c"]\ncw')
    (folder / "policy.toml").write_text(policy)
    (folder / "system.toml").write_text(SYSTEM.format(uses=uses) + more)
    setup = load_setup(folder / "system.toml")
    return prove(SystemFlows(setup, operators=operators).graph(), CLAIM, history=True)


def test_what_an_operator_carries_no_history_closes(tmp_path: Path) -> None:
    """Who may run commands in both is asked by no wall with history. The control is without them,
    and an adviser in the middle, which is a domain."""
    assert proven(tmp_path).holds
    proof = proven(tmp_path, operators=True)
    assert proof.path == ("one", "operator:hub", "two")
    with (tmp_path / "system.toml").open("a") as file:
        file.write('[domains.middle]\nlabel = "adviser"\n')
    graph = SystemFlows(load_setup(tmp_path / "system.toml")).graph()
    assert prove(graph, CLAIM).path == ("one", "middle", "two")
    assert prove(graph, CLAIM, history=True).by_history


def test_what_comes_back_by_an_uplink_no_history_closes(tmp_path: Path) -> None:
    """What the world was told is nowhere written down. The control: who wrote a disk is."""
    uplink = 'kind = "uplink"\nallow = ["example.org:443"]\n'
    assert proven(tmp_path, uplink).path == ("one", "shared", "two")
    assert proven(tmp_path, 'kind = "disk"\nfile = "d.img"\nshared = true\n').by_history


def test_a_label_for_resources_may_be_an_uplinks(tmp_path: Path) -> None:
    """Over a policy alone nobody knows, so nothing is closed by what it would remember."""
    policy = tmp_path / "policy.toml"
    shared = HISTORY.replace('ste = ["b"]\ncw', 'ste = ["b", "x"]\ncw')
    shared = shared.replace('ste = ["a"]\ncw', 'ste = ["a", "x"]\ncw')
    for text, by_history in ((shared, True), (shared + '[resources.net]\nste = "x"\n', False)):
        policy.write_text(text)
        graph = policy_graph(load_stack([policy]))
        proof = prove(graph, parse_claim("bank-a -/-> bank-b"), history=True)
        assert proof.by_history is by_history
        assert proof.path == (() if by_history else ("bank-a", "resource:net", "bank-b"))


def chosen(chance: random.Random) -> Graph:
    """Return a small graph with two conflict sets and some nodes that forget."""
    names = [f"n{number}" for number in range(7)]
    edges = [pair for pair in permutations(names, 2) if chance.random() < 0.3]
    plain = Graph.from_edges(edges, names)
    conflicts = []
    for _ in range(2):
        held = [chance.randrange(3) for _ in names]
        conflicts.append(
            [sum(1 << n for n, kind in enumerate(held) if kind == which) for which in (1, 2)]
        )
    forgets = sum(1 << number for number in range(7) if chance.random() < 0.25)
    free = [[held & ~forgets for held in types] for types in conflicts]
    return Graph(plain.names, plain.rows, plain.back, conflicts=free, forgets=forgets)


def reached(graph: Graph, start: int) -> set[int]:
    """Return where information comes, step by step: with all that was touched since it was lost."""

    def types(node: int) -> frozenset[tuple[int, int]]:
        return frozenset(
            (number, place)
            for number, kinds in enumerate(graph.conflicts)
            for place, held in enumerate(kinds)
            if held >> node & 1
        )

    begin = start, types(start)
    seen, waiting = {begin}, [begin]
    while waiting:
        node, touched = waiting.pop()
        for other in range(len(graph.names)):
            after = touched | types(other)
            if graph.rows[node] >> other & 1 and len({n for n, _ in after}) == len(after):
                state = other, frozenset() if graph.forgets >> other & 1 else after
                if state not in seen:
                    seen.add(state)
                    waiting.append(state)
    return {node for node, _ in seen}


def test_a_path_goes_on_behind_whoever_forgets() -> None:
    """300 small graphs, every pair of nodes, against a walk that counts what was touched."""
    through = closed = 0
    for seed in range(300):
        graph = chosen(random.Random(seed))
        for start, end in permutations(range(7), 2):
            path = open_path(graph, 1 << start, 1 << end)
            assert bool(path) is (end in reached(graph, start)), (seed, start, end)
            closed += not path
            if path:
                assert is_open(graph, path)
                assert (path[0], path[-1]) == (start, end)
                through += any(graph.forgets >> node & 1 for node in path[1:-1])
    assert through > 100
    assert closed > 100


def test_where_clingo_gives_no_answer_nothing_is_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped: that is an error; and if its time ends while it searches, it is given up. The
    control: its own answer."""
    policy = tmp_path / "policy.toml"
    policy.write_text(HISTORY)
    graph = policy_graph(load_stack([policy]))
    claim = parse_claim("bank-a -/-> bank-b")
    assert prove(graph, claim, history=True).by_history

    class Stopped:
        satisfiable = unsatisfiable = None

        def add(self, *_: object) -> None:
            """Take the program."""

        def ground(self, *_: object) -> None:
            """Do nothing."""

        def solve(self, **_: object) -> Stopped:
            """Begin to search."""
            return self

        def __enter__(self) -> Stopped:
            return self

        def __exit__(self, *_: object) -> None:
            ends.append("given up")

        def wait(self, _: float) -> bool:
            """Tell whether it is done."""
            return done

        def get(self) -> Stopped:
            """Return neither yes nor no."""
            return self

    ends: list[str] = []
    monkeypatch.setattr(history, "_control", Stopped)
    done = True
    with pytest.raises(SkerryError, match="can't tell"):
        prove(graph, claim, history=True)
    done, seconds = False, count()
    with pytest.raises(TookTooLong):
        prove(graph, claim, history=True, check=Deadline(50, lambda: next(seconds)).check)
    assert ends == ["given up"] * 2
