"""The graph of a FLASK policy: against SETools, and against a direct reading of the rules."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest

from skerry.errors import InputError
from skerry.flow import search
from skerry.flow.flask import flask_graph
from skerry.flow.graph import Graph
from skerry.flow.permission_map import PermissionMap, read_map, shipped_map
from skerry.flow.policy import Options, policy_graph
from skerry.xsm.flask.model import Conditional, FlaskPolicy, TeRule
from skerry.xsm.stack import Stack
from tests.support import policies
from tests.support import setools_oracle as setools
from tests.support.policies import compile_conf
from tests.unit.flow.sample import HEAD, by_reading, compiled, loaded, pairs

SEEDS = range(8)
WEIGHTS = (1, 5)


def setools_map() -> PermissionMap:
    """Return SETools' own map as we read it."""
    return read_map(setools.own_map().read_bytes(), "perm_map")


def edge_digests(graph: Graph) -> dict[str, str]:
    """Return, for each type with a flow out of it, a digest of where to."""
    rows = zip(graph.names, graph.rows, strict=True)
    return {name: setools.digest(graph.named(row)) for name, row in rows if row}


def drawn_pairs(graph: Graph, seed: int) -> list[tuple[str, str]]:
    """Return pairs of types to ask for paths between."""
    chance = random.Random(seed)
    drawn = (chance.sample(graph.names, 2) for _ in range(12))
    return [(one, two) for one, two in drawn]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, list[Any]]]:
    """By seed, a policy at random and what SETools says of it at both weights."""
    folder = tmp_path_factory.mktemp("setools")
    paths = {seed: compiled(seed, folder) for seed in SEEDS}
    asked = []
    for seed, path in paths.items():
        names = flask_graph(loaded(path), any_booleans=True)
        drawn = drawn_pairs(names, seed)
        question = {
            "reach": list(names.names),
            "shortest": drawn,
            "simple": [(*pair, 3) for pair in drawn],
        }
        questions = [{"weight": weight, **question} for weight in WEIGHTS]
        asked.append((path, setools.own_map(), questions))
    found = setools.ask_all(asked)
    return {seed: (paths[seed], answer) for seed, answer in zip(SEEDS, found, strict=True)}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("number", range(2))
def test_flows_paths_and_reach_are_those_of_setools(
    seed: int, number: int, answers: dict[int, tuple[Path, list[Any]]]
) -> None:
    """Over a policy at random, any booleans: edges, reach, all shortest and simple paths."""
    path, theirs = answers[seed][0], answers[seed][1][number]
    ours = flask_graph(
        loaded(path), permission_map=setools_map(), min_weight=WEIGHTS[number], any_booleans=True
    )
    assert ours.edges() == theirs["count"]
    assert edge_digests(ours) == theirs["edges"]
    for name in ours.names:
        reached = ours.named(search.reach(ours, ours.find(name)))
        assert setools.digest(reached) == theirs["reach"][name]
    for (one, two), paths, count in zip(
        drawn_pairs(ours, seed), theirs["shortest"], theirs["simple"], strict=True
    ):
        ends = ours.find(one), ours.find(two)
        found = [list(ours.named_path(p)) for p in search.all_shortest_paths(ours, *ends)]
        assert sorted(path[:-1] for path in found) == sorted(paths)
        assert sum(1 for _ in search.simple_paths(ours, *ends, 3)) == count


def test_xens_flows_are_those_of_setools_with_our_map(tmp_path: Path) -> None:
    """SETools has no map for Xen's classes; given ours, it finds the same flows."""
    xen_map = tmp_path / "xen.map"
    xen_map.write_text(shipped_map("xen").setools())
    questions = [{"weight": weight} for weight in (1, 5, 10)]
    theirs, own = setools.ask_all(
        [
            (policies.xen(), xen_map, questions),
            (policies.xen(), setools.own_map(), questions[:1]),
        ]
    )
    for weight, answer in zip((1, 5, 10), theirs, strict=True):
        ours = flask_graph(loaded(policies.xen()), min_weight=weight, any_booleans=True)
        assert edge_digests(ours) == answer["edges"]
        assert ours.edges() > 200
    assert own[0]["count"] < 10  # the control: only the class `security` is in its map


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("states", list(itertools.product((False, True), repeat=2)))
def test_booleans_count_as_the_rules_say(
    seed: int, states: tuple[bool, bool], tmp_path: Path
) -> None:
    """Under each setting, the flows are those of the rules in force, read one by one."""
    booleans = dict(zip(("one", "two"), states, strict=True))
    module = loaded(compiled(seed, tmp_path), booleans)
    policy = module.policy
    in_force = [*policy.rules, *conditional_rules(policy.conditionals, states)]
    for weight in (1, 5, 7, 10):
        graph = flask_graph(module, min_weight=weight)
        assert pairs(graph) == by_reading(policy, in_force, shipped_map("selinux"), weight)
        turned = {(two, one) for two, row in zip(graph.names, graph.back, strict=True)
                  for one in graph.named(row)}  # fmt: skip
        assert {(two, one) for one, two in turned} == pairs(graph)


def conditional_rules(
    conditionals: tuple[Conditional, ...], states: tuple[bool, bool]
) -> list[TeRule]:
    """Return the conditional rules in force, by evaluating the three conditions of the sample."""
    one, two = states
    truth = {("one",): one, ("two",): two, ("one", "two", "not", "and"): one and not two}
    names = {1: "one", 2: "two"}
    found: list[TeRule] = []
    for conditional in conditionals:
        words = tuple(names.get(v, w) if w == "bool" else w for w, v in conditional.expression)
        found += conditional.if_true if truth[words] else conditional.if_false
    return found


DISABLED = """\
type a_t;
type b_t;
bool one false;
role r;
role r types { a_t b_t };
allow a_t b_t:file getattr;
if (one) { allow a_t b_t:file read; }
user u roles r;
sid kernel u:r:a_t
sid security u:r:a_t
"""


def test_a_rule_that_is_not_in_force_leaves_no_weight_behind(tmp_path: Path) -> None:
    """Reading is off, so at weight 10 nothing flows. SETools says that it does: its known error."""
    path = compile_conf(HEAD + DISABLED, tmp_path / "disabled", "selinux", 33)
    graph = flask_graph(loaded(path), permission_map=setools_map(), min_weight=10)
    assert pairs(graph) == set()
    enabled = flask_graph(loaded(path, {"one": True}), permission_map=setools_map(), min_weight=10)
    assert pairs(enabled) == {("b_t", "a_t")}
    question = {"weight": 10, "booleans": {"one": False}}
    (theirs,) = setools.ask(path, setools.own_map(), [question])
    assert theirs["count"] == 1


@pytest.mark.parametrize("any_booleans", [False, True])
@pytest.mark.parametrize("seed", [3, 4, 5])
def test_an_edge_names_exactly_the_rules_that_make_it(
    seed: int, any_booleans: bool, tmp_path: Path
) -> None:
    """Taking the named rules away takes the flow away; each alone makes it. Conditions stand by."""
    module = loaded(compiled(seed, tmp_path))
    policy, chosen = module.policy, shipped_map("selinux")
    graph = flask_graph(module, any_booleans=any_booleans)
    counting = list(module.rules_in_force())
    if any_booleans:
        counting = [*policy.rules, *(r for c in policy.conditionals for r in c.if_true),
                    *(r for c in policy.conditionals for r in c.if_false)]  # fmt: skip
    conditions = set()
    for one, two in pairs(graph):
        named = graph.reasons(one, two)
        assert named
        conditions |= {text.partition(")")[0] for text in named if text.startswith("if (")}
        bare = {re.sub(r"^if \(.*?\) \{ (.*) \}$", r"\1", text) for text in named}
        making = [rule for rule in counting if rule_text(policy, rule) in bare]
        assert {rule_text(policy, rule) for rule in making} == bare
        for rule in making:
            assert (one, two) in by_reading(policy, [rule], chosen, 1)
        others = [rule for rule in counting if rule not in making]
        assert (one, two) not in by_reading(policy, others, chosen, 1)
    if any_booleans:
        assert {"if (one", "if (!one"} & conditions


def rule_text(policy: FlaskPolicy, rule: TeRule) -> str:
    """Write a rule as a policy does."""
    tclass = policy.classes[rule[2]]
    names = " ".join(tclass.names(rule[4]))
    sides = f"{policy.type_name(rule[0])} {policy.type_name(rule[1])}"
    return f"allow {sides}:{tclass.name} {{ {names} }};"


def test_a_map_that_lacks_classes_is_reported_by_class() -> None:
    """Xen's policy under SELinux's map is an error that names each class, never 'no flows'."""
    module = loaded(policies.xen())
    with pytest.raises(InputError) as caught:
        flask_graph(module, permission_map=shipped_map("selinux"))
    message = caught.value.problems[0].message
    for tclass in ("domain {", "event { bind create", "grant {", "mmu {"):
        assert tclass in message
    graph = flask_graph(module, permission_map=shipped_map("selinux"), skip_unknown=True)
    assert graph.edges() < 20


def test_what_is_left_out_has_no_flow_and_can_not_be_named() -> None:
    """Excluded types, attributes and patterns are gone, and a question about them is an error."""
    stack = Stack([loaded(policies.xen())])
    whole = policy_graph(stack)
    graph = policy_graph(stack, Options(exclude=("dom0_t", "event_type", "xenstore*")))
    gone = {"dom0_t", "xenstore_t", "domU_t_channel", "xenstore_t_channel"}
    assert gone <= set(graph.named(graph.gone))
    assert pairs(graph) == {
        (one, two) for one, two in pairs(whole) if not {one, two} & set(graph.named(graph.gone))
    }
    with pytest.raises(InputError, match="left out"):
        graph.find("dom0_t")
    assert "dom0_t" not in graph.named(graph.find("xen_type"))


def test_a_class_left_out_makes_no_flow() -> None:
    """Xen's policy lets every domain send to every other by Argo; without it, they need dom0."""
    module = loaded(policies.xen())
    with_argo = flask_graph(module)
    assert ("domU_t", "isolated_domU_t") in pairs(with_argo)
    without = flask_graph(module, exclude_classes=("argo",))
    assert ("domU_t", "isolated_domU_t") not in pairs(without)
    with pytest.raises(InputError, match="no class 'argos'"):
        flask_graph(module, exclude_classes=("argos",))
