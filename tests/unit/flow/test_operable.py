"""A system as it could be by any operator command: labels given later, and operators themselves."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from skerry.errors import InputError
from skerry.flow.claim import parse_claim
from skerry.flow.proof import prove
from skerry.node import relabels as relabels_module
from skerry.node.asking import Asker, PlainAsker
from skerry.node.flows import SystemFlows
from skerry.node.relabels import Relabels
from skerry.node.setup import Setup, load_setup
from skerry.xsm.hooks import HOOKS, expand
from tests.support import policies
from tests.support.simulated import write_system
from tests.unit.flow.sample import handed_pairs, pairs

EXAMPLES = Path(__file__).parents[3] / "examples"
CLAIM = parse_claim("clerk -/-> broker except red,blue")


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """The small system."""
    return load_setup(Path(write_system(tmp_path)))


def test_a_label_given_later_opens_what_was_closed(setup: Setup) -> None:
    """The clerk meets the broker through red alone; relabelled to red, it meets it itself."""
    assert prove(SystemFlows(setup).graph(), CLAIM).holds
    graph = SystemFlows(setup, relabels=True).graph()
    proof = prove(graph, CLAIM)
    assert not proof.holds
    assert proof.path[0].startswith("clerk@")
    assert proof.path[-1].startswith("broker@")
    assert not {name.partition("@")[0] for name in proof.path} & {"red", "blue"}


def test_each_relabel_is_one_that_the_monitor_would_allow(setup: Setup) -> None:
    """Every pair of the policy's labels, asked by the hook; chains are followed to the end."""
    stack = setup.stack
    relabels = Relabels(setup, PlainAsker(stack))
    labels = [stack.label(text, "domain") for text in stack.modules[0].labels()]
    steps = set()
    for old, new in permutations(labels, 2):
        parties = {"operator": setup.owner, "domain": old, "new": new}
        requests = expand(HOOKS["domain_relabel"], parties, stack.transition)
        allowed = all(stack.decide(request, 0).allowed for request in requests)
        assert relabels.allowed(old, new) is allowed
        if allowed:
            steps.add((old, new))
    assert 0 < len(steps) < len(labels) * (len(labels) - 1)
    for label in labels:
        reached = {label}
        while more := {new for old, new in steps if old in reached} - reached:
            reached |= more
        assert set(relabels.of(label)) == reached
        assert relabels.of(label)[0] == label


def test_a_domain_under_two_labels_exchanges_nothing_with_itself_but_by_relabel(
    setup: Setup,
) -> None:
    """Between the states of one domain there is a flow exactly where a relabel is allowed."""
    flows = SystemFlows(setup, relabels=True)
    graph = flows.graph()
    relabels = Relabels(setup, Asker(setup.stack))
    place = dict(zip(flows.names, flows.things, strict=True))
    same = [(a, b) for a, b in permutations(flows.names, 2) if place[a].name == place[b].name]
    assert same
    for one, two in same:
        found = (one, two) in pairs(graph)
        assert found is relabels.allowed(place[one].label, place[two].label)


def test_an_operator_carries_words_where_he_may_open_consoles(setup: Setup) -> None:
    """The owner may open both consoles, so only a claim that trusts operators holds."""
    graph = SystemFlows(setup, operators=True).graph()
    assert prove(graph, CLAIM).path == ("clerk", "operator:system", "broker")
    trusting = parse_claim("clerk -/-> broker except red,blue,operator")
    assert prove(graph, trusting).holds
    text = " ".join(graph.reasons("clerk", "operator:system"))
    assert text.startswith("possible as domain_exec, domain_console")


@pytest.mark.parametrize("name", ["two-banks", "diode"])
@pytest.mark.parametrize(("relabels", "operators"), [(True, False), (False, True), (True, True)])
def test_the_evidence_is_the_graph(name: str, relabels: bool, operators: bool) -> None:
    """Pair by pair, the checker is handed what the graph holds."""
    setup = load_setup(EXAMPLES / name / "system.toml")
    flows, plain = (
        SystemFlows(setup, relabels=relabels, operators=operators, plainly=plainly)
        for plainly in (False, True)
    )
    assert handed_pairs(plain.names, plain.evidence()) == pairs(flows.graph())


def test_a_policy_with_too_many_labels_is_refused_and_not_tried_in_part(tmp_path: Path) -> None:
    """With levels there is no end of contexts; without, Xen's can all be tried."""
    system = (EXAMPLES / "xen-policy/system.toml").read_text()
    (tmp_path / "system.toml").write_text(system)
    (tmp_path / "xen.30").write_bytes(policies.xen().read_bytes())
    plain = SystemFlows(load_setup(tmp_path / "system.toml"), relabels=True)
    assert len(plain.names) >= 3
    (tmp_path / "xen.30").write_bytes(policies.xen_mls().read_bytes())
    (tmp_path / "system.toml").write_text(system.replace('_t"', '_t:s0"').replace("_t'", "_t:s0'"))
    with pytest.raises(InputError, match="with levels"):
        SystemFlows(load_setup(tmp_path / "system.toml"), relabels=True)


def test_more_labels_than_can_be_tried_or_held_are_refused(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each limit it is answered; beyond it none of it is, and that is said by name."""
    labels = len(setup.stack.modules[0].labels())
    states = sum("@" in name for name in SystemFlows(setup, relabels=True).names)
    for limit, at, words in (
        ("MAX_CANDIDATES", labels, "labels to try"),
        ("MAX_STATES", states, "under all their labels"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(relabels_module, limit, at)
            assert SystemFlows(setup, relabels=True).graph().edges()
            patch.setattr(relabels_module, limit, at - 1)
            with pytest.raises(InputError, match=words) as caught:
                SystemFlows(setup, relabels=True)
            assert "leave relabels out" in str(caught.value)
    with monkeypatch.context() as patch:
        patch.setattr(relabels_module, "MAX_STATES", 0)
        assert SystemFlows(setup).graph().edges()


RELABELS = (
    policies.XEN_CLASSES
    + """\
type op_t; type a_t; type b_t;
role r; role s; role r types { op_t a_t b_t }; role s types { a_t };
allow op_t { a_t b_t }:domain2 { relabelfrom relabelto };
allow { a_t b_t } { a_t b_t }:domain transition;
EXTRA
user u roles { r s };
sid kernel u:r:op_t
sid security u:r:op_t
"""
)
UNDER = """\
name = "s"
policy = "p"
[operators]
"uid:0" = "u:r:op_t"
[domains.a]
label = "u:r:a_t"
machine = "simulator"
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("", ""), ""),
        (("EXTRA", "permissive a_t;"), "a permissive type may get any context"),
    ],
)
def test_a_context_that_is_not_listed_is_not_left_out_in_silence(
    change: tuple[str, str], words: str, tmp_path: Path
) -> None:
    """Where a domain could get one, the question is refused; else both its labels are there."""
    text = RELABELS.replace(*change) if words or change[0] else RELABELS
    policies.compile_conf(text.replace("EXTRA", ""), tmp_path / "p", "selinux", 33)
    (tmp_path / "s.toml").write_text(UNDER)
    loaded = load_setup(tmp_path / "s.toml")
    if words:
        with pytest.raises(InputError, match=words):
            SystemFlows(loaded, relabels=True)
        return
    names = set(SystemFlows(loaded, relabels=True).names)
    roles = {f"a@u:{role}:{kind}" for role in ("r", "object_r") for kind in ("a_t", "b_t")}
    assert names == roles | {"a@u:s:a_t"}


def test_what_lets_unknown_relabels_pass_is_refused(tmp_path: Path) -> None:
    """Without the class, under `handle_unknown = allow`, any context could be given."""
    cut = RELABELS.replace("class domain2\n", "").replace("EXTRA", "")
    lines = [line for line in cut.splitlines() if "domain2" not in line]
    text = "\n".join(lines) + "\n"
    (tmp_path / "s.toml").write_text(UNDER)
    for flag, refused in (("allow", True), ("deny", False)):
        policies.compile_conf(text, tmp_path / "p", "selinux", 33, "-U", flag)
        loaded = load_setup(tmp_path / "s.toml")
        if refused:
            with pytest.raises(InputError, match="lets every relabel pass"):
                SystemFlows(loaded, relabels=True)
        else:
            assert SystemFlows(loaded, relabels=True).names == ["a"]
