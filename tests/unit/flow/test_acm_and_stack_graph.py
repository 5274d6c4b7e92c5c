"""The graphs of ACM policies and of stacks, against the modules that decide; and the evidence."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings

from skerry.errors import InputError
from skerry.flow.acm import acm_graph
from skerry.flow.claim import Claim
from skerry.flow.evidence import policy_evidence
from skerry.flow.flask import flask_graph
from skerry.flow.graph import MAX_NODES, Graph
from skerry.flow.policy import Options, policy_graph
from skerry.flow.proof import certificate, prove
from skerry.flow.verify import check
from skerry.policy.acm_toml import read_acm_toml
from skerry.policy.load import load_policy
from skerry.policy.source import load_stack
from skerry.xsm.acm.check import find_problems
from skerry.xsm.acm.model import AcmPolicy
from skerry.xsm.acm.module import RESOURCE_PREFIX, AcmModule
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.module import SecurityModule, Standing
from skerry.xsm.stack import Stack
from tests.support import policies
from tests.support.simulated import POLICY
from tests.unit.flow.sample import compiled, pairs
from tests.unit.policy import samples

BANKS = Path(__file__).parents[3] / "examples/two-banks/policy.xml"


def may_exchange(module: AcmModule, one: str, two: str) -> bool:
    """Ask the module: may the two share, and may both run at once in either order?"""
    resources = [one.startswith(RESOURCE_PREFIX), two.startswith(RESOURCE_PREFIX)]
    if all(resources):
        return False
    if resources[0]:
        one, two = two, one
    if not module.decide(one, two, "share", ("share",)).allowed:
        return False
    if any(resources):
        return True
    orders = ((one, two), (two, one))
    return any(module.admit(new, Standing((old,), {})).allowed for new, old in orders)


@given(samples.policies())
@settings(max_examples=60)
def test_labels_exchange_where_the_module_lets_them(policy: AcmPolicy) -> None:
    """Over policies at random, every pair of labels, resources too, and each label with itself."""
    if find_problems(policy):
        return
    module = AcmModule(policy)
    graph = acm_graph(module)
    for one, two in itertools.product(graph.names, repeat=2):
        place = graph.index(one), graph.index(two)
        found = graph.own >> place[0] & 1 if one == two else graph.rows[place[0]] >> place[1] & 1
        assert bool(found) is may_exchange(module, one, two), (one, two)


@given(samples.policies())
@settings(max_examples=40)
def test_the_evidence_of_a_policy_is_its_graph(policy: AcmPolicy) -> None:
    """What the checker is handed says the same as the graph, though no code is shared."""
    if find_problems(policy):
        return
    _same_as_graph(Stack([AcmModule(policy)]), Options())


@pytest.mark.parametrize("seed", range(10))
def test_the_evidence_of_a_flask_policy_is_its_graph(seed: int, tmp_path: Path) -> None:
    """At each weight, with booleans as they are and with any."""
    stack = load_stack([compiled(seed, tmp_path)])
    for weight, any_booleans in itertools.product((1, 5, 10), (False, True)):
        _same_as_graph(stack, Options(min_weight=weight, any_booleans=any_booleans))
    _same_as_graph(stack, Options(exclude_classes=("file",)))


def _same_as_graph(stack: Stack, options: Options) -> None:
    graph = policy_graph(stack, options)
    names, flows = policy_evidence(stack, options)
    assert sorted(names) == sorted(graph.names)
    found = {
        (names[one], names[two])
        for senders, receivers in flows
        for one in range(senders.bit_length())
        if senders >> one & 1
        for two in range(receivers.bit_length())
        if receivers >> two & 1
    }
    assert {(one, two) for one, two in found if one != two} == pairs(graph)
    assert {one for one, two in found if one == two} == set(graph.named(graph.own))


def test_a_stack_lets_flow_what_every_module_lets_flow() -> None:
    """Two banks under Xen's policy too: each pair of combinations, against both graphs."""
    stack = load_stack([str(BANKS), str(policies.xen())])
    graph = policy_graph(stack)
    acm, flask = map(_graph, stack.modules)

    def lets(part: Graph, one: str, two: str) -> bool:
        if one == two:
            return bool(part.own >> part.index(one) & 1)
        return bool(part.rows[part.index(one)] >> part.index(two) & 1)

    def halves(name: str) -> tuple[str, str]:
        left, _, right = name.partition(",flask=")
        return left.removeprefix("acm="), right

    assert len(graph.names) == len(acm.names) * len(flask.names)
    expected = {
        (one, two)
        for one, two in itertools.permutations(graph.names, 2)
        if lets(acm, halves(one)[0], halves(two)[0]) and lets(flask, halves(one)[1], halves(two)[1])
    }
    assert pairs(graph) == expected
    assert graph.named(graph.find("acm=broker")) == tuple(
        name for name in graph.names if name.startswith("acm=broker,")
    )
    assert {halves(name)[1] for name in graph.named(graph.find("flask=domU_t"))} == {"domU_t"}
    one, two = "acm=bank-a,flask=domU_t", "acm=broker,flask=domU_t"
    reasons = graph.reasons(one, two)
    assert any(text.startswith("acm: ") and "trade-a" in text for text in reasons)
    assert any(text.startswith("flask: allow ") for text in reasons)


def _graph(module: SecurityModule) -> Graph:
    if isinstance(module, FlaskModule):
        return flask_graph(module)
    assert isinstance(module, AcmModule)
    return acm_graph(module)


@pytest.mark.parametrize("files", [["banks"], ["xen"], ["banks", "xen"], ["xen", "dummy"]])
def test_proofs_over_policies_are_accepted_by_the_checker(files: list[str]) -> None:
    """Random claims over one policy and over stacks; every proof that holds is verified."""
    places = {"banks": str(BANKS), "xen": str(policies.xen()), "dummy": "dummy"}
    stack = load_stack([places[file] for file in files])
    graph = policy_graph(stack)
    names, flows = policy_evidence(stack, Options())
    chance = random.Random(3)
    holding = 0
    for _ in range(150):
        drawn = chance.sample(graph.names, chance.randrange(2, 6))
        proof = prove(graph, Claim((drawn[0],), (drawn[1],), tuple(drawn[2:])))
        if proof.holds:
            holding += 1
            assert check(json.loads(certificate(graph.about, [proof])), names, flows) == 1
    assert holding >= 5


def test_the_wall_separates_whom_it_never_lets_run_together() -> None:
    """Red and blue share a type and may not run at once: between them there is only the broker."""
    graph = acm_graph(AcmModule(read_acm_toml(POLICY.encode(), "policy.toml")))
    assert ("red", "broker") in pairs(graph)
    assert ("broker", "blue") in pairs(graph)
    assert ("red", "blue") not in pairs(graph)
    without = POLICY.replace('types = ["red", "blue"]\n\n[labels', 'types = ["red"]\n\n[labels')
    control = acm_graph(AcmModule(read_acm_toml(without.encode(), "policy.toml")))
    assert ("red", "blue") in pairs(control)


def test_a_group_of_a_policy_is_the_holders_of_a_type() -> None:
    """`type:trade-a` stands for all labels that have it."""
    module = load_policy(BANKS)
    assert isinstance(module, AcmModule)
    graph = acm_graph(module)
    held = {label.name for label in module.policy.labels if "trade-a" in label.ste}
    assert set(graph.named(graph.find("type:trade-a"))) == held


def test_the_dummy_module_alone_is_no_question() -> None:
    """Everything may flow under it: that is said, and not answered label by label."""
    with pytest.raises(InputError, match="dummy lets every domain"):
        policy_graph(load_stack(["dummy"]))


def test_a_stack_with_too_many_combinations_is_refused() -> None:
    """Debian's policy beside the banks' has more labels than a graph may have."""
    stack = load_stack([str(BANKS), str(policies.selinux())])
    with pytest.raises(InputError, match=f"at most {MAX_NODES}"):
        policy_graph(stack)
