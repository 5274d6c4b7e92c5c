"""Walls with history: clingo's answer against every order of exchanges, tried one by one."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from skerry.errors import SkerryError
from skerry.flow import history
from skerry.flow.acm import acm_graph
from skerry.flow.claim import Claim, parse_claim
from skerry.flow.graph import Graph
from skerry.flow.history import is_open, open_path
from skerry.flow.policy import policy_graph
from skerry.flow.proof import prove
from skerry.flow.search import shortest_path
from skerry.policy.source import load_stack
from skerry.xsm.acm.check import find_problems
from skerry.xsm.acm.model import AcmPolicy, ConflictSet, TypeName, VmLabel
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.module import Standing
from tests.support import policies

Touched = tuple[frozenset[str], ...]


def test_a_search_over_too_many_flows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before clingo begins with it. The control: a flow less."""
    pairs = [(f"n{one}", f"n{two}") for one in range(9) for two in range(9) if one != two]
    plain = Graph.from_edges(pairs)
    graph = Graph(plain.names, plain.rows, conflicts=[[1, 1 << 8]])
    monkeypatch.setattr(history, "MAX_SOLVED", 64)
    assert open_path(graph, 1, 1 << 8) == []
    monkeypatch.setattr(history, "MAX_SOLVED", 63)
    with pytest.raises(SkerryError, match="more than 63 flows"):
        open_path(graph, 1, 1 << 8)


def random_policy(chance: random.Random) -> AcmPolicy:
    """Return a sound policy of four or five labels with one or two conflict sets, most kept."""
    ste = [f"s{number}" for number in range(4)]
    sets = [[f"c{kind}{number}" for number in range(chance.choice((2, 3)))] for kind in "xy"]
    labels = []
    for number in range(chance.choice((4, 5))):
        walls = [chance.choice(types) for types in sets if chance.random() < 0.6]
        shares = chance.sample(ste, chance.choice((1, 2, 2)))
        labels.append(VmLabel(f"l{number}", tuple(shares), tuple(walls)))
    conflicts = [
        ConflictSet(f"set{number}", tuple(types), chance.random() < 0.8)
        for number, types in enumerate(sets)
    ]
    return AcmPolicy(
        "random", "1.0", "l0",
        tuple(map(TypeName, ste)),
        tuple(TypeName(kind) for types in sets for kind in types),
        tuple(conflicts), tuple(labels),
    )  # fmt: skip


def exchanges(module: AcmModule, names: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return the pairs that may share, and run at once, with no regard to history."""
    found = []
    for one in range(len(names)):
        for two in range(one):
            sides = names[one], names[two]
            shares = module.decide(*sides, "share", ("share",)).allowed
            beside = module.admit(sides[0], Standing((sides[1],), {})).allowed
            if shares and beside:
                found.append((one, two))
    return found


def every_state(module: AcmModule, start: int) -> Iterator[tuple[Touched, frozenset[int]]]:
    """Yield every state that some order of exchanges leads to: what each has touched, and who
    holds what `start` knew. The module itself says what may follow.
    """
    names = module.labels()
    pairs = exchanges(module, names)
    first: tuple[Touched, frozenset[int]] = (tuple(frozenset() for _ in names), frozenset({start}))
    seen, waiting = {first}, [first]
    while waiting:
        touched, holders = waiting.pop()
        yield touched, holders
        standing = Standing((), dict(zip(names, touched, strict=True)))
        for one, two in pairs:
            sides = names[one], names[two]
            if not module.admit_bind(sides, standing).allowed:
                continue
            new = module.touch(sides, standing)
            after = tuple(new.get(name, old) for name, old in zip(names, touched, strict=True))
            both = holders | {one, two} if holders & {one, two} else holders
            if (after, both) not in seen:
                seen.add((after, both))
                waiting.append((after, both))


@pytest.mark.parametrize("seed", range(200))
def test_a_path_is_found_where_some_order_of_exchanges_leads(seed: int) -> None:
    """200 small policies, every pair of labels: as the exhaustive search over the module says."""
    module = AcmModule(random_policy(random.Random(seed)))
    assert find_problems(module.policy) == []
    graph = acm_graph(module)
    names = module.labels()
    for start in range(len(names)):
        reached = {holder for _, holders in every_state(module, start) for holder in holders}
        for end in range(len(names)):
            if end == start:
                continue
            path = open_path(graph, 1 << start, 1 << end)
            assert bool(path) is (end in reached), (names[start], names[end])
            if path:
                assert is_open(graph, path)
                assert all(graph.rows[a] >> b & 1 for a, b in pairwise(path))
                assert (path[0], path[-1]) == (start, end)


def test_the_small_policies_are_not_all_the_easy_case() -> None:
    """Among them are pairs with a path that the walls close, and such that need a longer way."""
    closed = longer = 0
    for seed in range(200):
        graph = acm_graph(AcmModule(random_policy(random.Random(seed))))
        for start in range(len(graph.names)):
            for end in range(len(graph.names)):
                plain = shortest_path(graph, 1 << start, 1 << end) if start != end else []
                if plain and not is_open(graph, plain):
                    found = open_path(graph, 1 << start, 1 << end)
                    closed += not found
                    longer += len(found) >= len(plain)
    assert closed > 50
    assert longer > 2


def ladder(length: int) -> Graph:
    """Return a chain of choices: at each rung red or blue, and the last step needs all blue.

    A shortest path takes red, so only the choice of the whole path tells.
    """
    edges: list[tuple[str, str]] = []
    red: list[str] = []
    blue: list[str] = []
    for rung in range(length):
        for colour, held in (("red", red), ("blue", blue)):
            held.append(f"{colour}{rung}")
            edges += [(f"p{rung}", held[-1]), (held[-1], f"p{rung + 1}")]
    edges.append((f"p{length}", "end"))
    graph = Graph.from_edges(edges)
    conflicts = [
        [graph.bits([red[rung], "end"]), graph.bits([blue[rung]])] for rung in range(length)
    ]
    return Graph(graph.names, graph.rows, graph.back, conflicts=conflicts)


def test_a_path_of_any_length_is_found() -> None:
    """200 choices, one after the other: a bound on the length would say no."""
    graph = ladder(200)
    path = open_path(graph, graph.find("p0"), graph.find("end"))
    assert len(path) == 402
    assert not {name for name in graph.named_path(path) if name.startswith("blue")}


def test_many_labels_with_history_are_decided_soon() -> None:
    """1,000 labels, 40 conflict sets: within seconds, on a machine that does other things too."""
    chance = random.Random(5)
    names = [f"l{number}" for number in range(1_000)]
    edges = [tuple(chance.sample(names, 2)) for _ in range(6_000)]
    plain = Graph.from_edges([(one, two) for one, two in edges], names)
    conflicts = []
    for _ in range(40):
        held = chance.sample(names, 300)
        conflicts.append(
            [plain.bits(held[:100]), plain.bits(held[100:200]), plain.bits(held[200:])]
        )
    graph = Graph(plain.names, plain.rows, plain.back, conflicts=conflicts)
    begin = time.monotonic()
    for number in range(1, 6):
        path = open_path(graph, 1, 1 << number)
        assert not path or is_open(graph, path)
    assert time.monotonic() - begin < 60


HISTORY = """\
[policy]
name = "banks"
version = "1.0"
bootstrap = "hub"
[simple-type-enforcement]
types = ["a", "b", "x"]
[chinese-wall]
types = ["bank-a", "bank-b"]
[[chinese-wall.conflicts]]
name = "banks"
types = ["bank-a", "bank-b"]
history = true
[labels.hub]
ste = ["x"]
[labels.bank-a]
ste = ["a"]
cw = ["bank-a"]
[labels.bank-b]
ste = ["b"]
cw = ["bank-b"]
[labels.adviser]
ste = ["a", "b"]
[labels.clerk]
ste = ["a"]
"""


def test_an_adviser_who_has_seen_one_bank_tells_the_other_nothing(tmp_path: Path) -> None:
    """By each exchange alone there is a path; along the whole path the wall closes it."""
    policy = tmp_path / "policy.toml"
    policy.write_text(HISTORY)
    graph = policy_graph(load_stack([policy]))
    claim = parse_claim("bank-a -/-> bank-b")
    assert prove(graph, claim).path == ("bank-a", "adviser", "bank-b")
    proof = prove(graph, claim, history=True)
    assert proof.holds
    assert proof.by_history
    assert (proof.closed, proof.path) == ((), ())
    other = prove(graph, parse_claim("bank-a -/-> clerk"), history=True)
    assert other.path == ("bank-a", "clerk")
    plain = prove(graph, parse_claim("bank-a -/-> hub"), history=True)
    assert plain.holds
    assert not plain.by_history
    assert plain.closed


def test_the_walls_of_a_stack_are_those_of_its_acm_policy(tmp_path: Path) -> None:
    """Under Xen's policy too, what the adviser learnt of one bank does not reach the other."""
    policy = tmp_path / "policy.toml"
    policy.write_text(HISTORY)
    graph = policy_graph(load_stack([policy, policies.xen()]))
    claim = Claim(("acm=bank-a,flask=domU_t",), ("acm=bank-b,flask=domU_t",))
    assert prove(graph, claim).path
    assert prove(graph, claim, history=True).by_history
