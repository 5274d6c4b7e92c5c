"""The graph of whole contexts: users, roles, levels and constraints count, and no other context."""

from __future__ import annotations

import json
import random
from itertools import permutations, product
from pathlib import Path

import pytest
from click.testing import CliRunner

from skerry.cli.flow import flow
from skerry.errors import InputError
from skerry.flow import contexts as contexts_module
from skerry.flow.claim import parse_claim
from skerry.flow.contexts import context_graph, named_contexts
from skerry.flow.evidence import policy_evidence
from skerry.flow.graph import Graph
from skerry.flow.permission_map import map_for
from skerry.flow.policy import Options, policy_graph
from skerry.flow.proof import certificate, prove
from skerry.flow.verify import check
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.stack import Stack
from tests.support import policies
from tests.support.policies import compile_conf
from tests.unit.flow.sample import PERMISSIONS, loaded, pairs, source

ALL = ("*:*:*",)


def constrained(seed: int, folder: Path) -> FlaskModule:
    """Return a policy at random with two users, two roles and constraints, one type permissive."""
    chance = random.Random(seed)
    plain = source(seed)
    types = plain[plain.index("role r types { ") :].split("{ ", 1)[1].split(" }", 1)[0].split()
    held = [" ".join(chance.sample(types, len(types) - 1)) for _ in range(2)]
    kept = [f"{{ {types[0]} {names} }}" for names in held]
    roles = (
        f"role some_r; role other_r;\nrole some_r types {kept[0]};\nrole other_r types {kept[1]};\n"
    )
    checks = ("u1 == u2", "r1 == r2", f"t1 == {types[1]} or u1 == u2", "u1 != u2 and t2 != a1")
    constraints = []
    for tclass, known in PERMISSIONS.items():
        asked = " ".join(chance.sample(known, 2))
        constraints.append(f"constrain {tclass} {{ {asked} }} ({chance.choice(checks)});")
    loose = f"permissive {types[-1]};\n" if seed % 3 == 0 else ""
    before, _, after = plain.partition("user u roles r;")
    users = "user u roles { r some_r };\nuser v roles { some_r other_r };\n"
    text = before + loose + roles + users + "\n".join(constraints) + after
    return loaded(compile_conf(text, folder / f"constrained-{seed}", "selinux", 33))


def by_asking(module: FlaskModule, names: list[str]) -> set[tuple[str, str]]:
    """Return the flows between contexts by the module's decisions, one permission at a time."""
    known_map = map_for(module.policy).classes
    found = set()
    for (one, two), (tclass, names_) in product(permutations(names, 2), PERMISSIONS.items()):
        for permission in names_:
            if not module.decide(one, two, tclass, (permission,)).allowed:
                continue
            way = known_map[tclass][permission].direction
            found |= {(one, two)} if way in "wb" else set()
            found |= {(two, one)} if way in "rb" else set()
    return found


@pytest.mark.parametrize("seed", range(16))
def test_a_flow_between_contexts_is_what_the_module_decides(seed: int, tmp_path: Path) -> None:
    """Every pair of all contexts of a small policy, every permission asked by itself."""
    module = constrained(seed, tmp_path)
    graph = context_graph(module, ALL)
    assert pairs(graph) == by_asking(module, list(graph.names))
    names, flows = policy_evidence(Stack([module]), Options(contexts=ALL))
    assert names == list(graph.names)
    handed = {(a, b) for one, two in flows for a in _named(one, names) for b in _named(two, names)}
    assert {(a, b) for a, b in handed if a != b} == pairs(graph)


def _named(bits: int, names: list[str]) -> list[str]:
    return [name for number, name in enumerate(names) if bits >> number & 1]


@pytest.mark.parametrize("seed", range(16))
def test_types_alone_miss_no_flow_between_contexts(seed: int, tmp_path: Path) -> None:
    """What flows between contexts flows between their types, permissive ones too; not the
    other way round."""
    module = constrained(seed, tmp_path)
    whole, types = context_graph(module, ALL), policy_graph(Stack([module]))
    kinds = {(a.split(":")[2], b.split(":")[2]) for a, b in pairs(whole)}
    assert {(a, b) for a, b in kinds if a != b} <= pairs(types)


def test_a_permissive_type_exchanges_with_every_other(tmp_path: Path) -> None:
    """In the graph of types, too, with its statement as the reason; the control: enforced."""
    text = source(4)
    last = text[text.index("role r types { ") :].split("{ ", 1)[1].split(" }", 1)[0].split()[-1]
    loose = text.replace("role r;", f"permissive {last};\nrole r;")
    enforced, let = (
        policy_graph(Stack([loaded(compile_conf(conf, tmp_path / name, "selinux", 33))]))
        for conf, name in ((text, "enforced"), (loose, "loose"))
    )
    others = set(let.names) - {last}
    assert {(last, other) for other in others} | {(o, last) for o in others} <= pairs(let)
    assert pairs(let) - pairs(enforced)
    assert {last} >= {a for a, b in pairs(let) - pairs(enforced) if b != last}
    assert let.back[let.index(last)].bit_count() == len(others)
    one = next(iter(others))
    assert f"permissive {last};" in let.reasons(one, last)
    module = loaded(tmp_path / "loose")
    names, flows = policy_evidence(Stack([module]), Options())
    handed = {(a, b) for s, t in flows for a in _named(s, names) for b in _named(t, names)}
    assert {(a, b) for a, b in handed if a != b} == pairs(let)


LEVELS = """\
class process
class file
sid kernel
sid security
class process { signal }
class file { read write }
sensitivity s0; sensitivity s1;
dominance { s0 s1 }
category c0;
level s0:c0; level s1:c0;
mlsconstrain file read (l1 dom l2);
mlsconstrain file write (l1 domby l2);
attribute any;
type low_t, any; type high_t, any; type file_t;
allow any file_t:file { read write };
role r; role r types { any file_t };
user u roles r level s0 range s0 - s1:c0;
sid kernel u:r:low_t:s0
sid security u:r:low_t:s0
"""
MLS = ("u:r:low_t:s0", "u:r:high_t:s1:c0", "u:object_r:file_t:s0", "u:object_r:file_t:s1:c0")


def test_levels_count(tmp_path: Path) -> None:
    """No read up and no write down: high reaches low over types alone, and not with levels."""
    module = loaded(compile_conf(LEVELS, tmp_path / "levels", "selinux", 33, mls=True))
    types = policy_graph(Stack([module]))
    assert not prove(types, parse_claim("high_t -/-> low_t")).holds
    graph = context_graph(module, MLS)
    assert prove(graph, parse_claim("high_t -/-> low_t")).holds
    up = prove(graph, parse_claim("u:r:low_t:s0 -/-> high_t")).path
    assert (up[0], up[-1], len(up)) == (MLS[0], MLS[1], 3)
    text = graph.reasons(MLS[0], MLS[2])
    assert text == ("allow any file_t:file { read write };",)
    assert graph.reasons(MLS[1], MLS[2]) == ()


def test_patterns_stand_for_valid_contexts_alone(tmp_path: Path) -> None:
    """Users with their roles, roles with their types; `object_r` goes with every type."""
    module = constrained(1, tmp_path)
    every = named_contexts(module, ALL)
    assert len(every) == len(set(every))
    for text in every:
        assert module.check_label(text, "domain") == text
    assert named_contexts(module, ["u:*:*", "v:*:*"]) == every
    assert set(named_contexts(module, ["*:object_r:*"])) < set(every)
    assert {text.split(":")[1] for text in every} == {"r", "some_r", "other_r", "object_r"}
    two = named_contexts(module, [every[0], every[0], "*:*:" + every[0].split(":")[2]])
    assert every[0] in two


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("u", "is written user:role:type"),
        ("u:r:t:s0", "is written user:role:type"),
        ("u:r:none", "no type 'none'"),
        ("x:*:*", "no context of the policy matches"),
        ("u:other_r:*", "no context of the policy matches"),
    ],
)
def test_a_text_that_names_no_context_is_an_error(text: str, words: str, tmp_path: Path) -> None:
    """With what is wrong, and never an empty graph."""
    with pytest.raises(InputError, match=words):
        named_contexts(constrained(1, tmp_path), [text])


def test_levels_have_no_pattern_and_are_written(tmp_path: Path) -> None:
    """There is no end of them, so none is left out in silence."""
    module = loaded(compile_conf(LEVELS, tmp_path / "levels", "selinux", 33, mls=True))
    with pytest.raises(InputError, match="a level has no pattern"):
        named_contexts(module, ["*:*:*:*"])
    with pytest.raises(InputError, match="user:role:type:level"):
        named_contexts(module, ["*:*:*"])
    found = named_contexts(module, ["*:*:*:s0", "u:r:high_t:s1:c0"])
    assert "u:r:high_t:s1:c0" in found
    assert "u:object_r:file_t:s0" in found


def test_more_contexts_than_can_be_asked_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit they are answered, beyond it none of them is."""
    module = constrained(1, tmp_path)
    count = len(named_contexts(module, ALL))
    monkeypatch.setattr(contexts_module, "MAX_CONTEXTS", count)
    assert len(context_graph(module, ALL).names) == count
    monkeypatch.setattr(contexts_module, "MAX_CONTEXTS", count - 1)
    with pytest.raises(InputError, match=f"more than {count - 1} contexts"):
        context_graph(module, ALL)


def test_only_a_flask_policy_has_contexts_weights_and_classes() -> None:
    """Of another they are an error, and not passed over; and contexts need booleans as they are."""
    from skerry.policy.load import load_policy

    banks = load_policy(Path(__file__).parents[3] / "examples/two-banks/policy.xml")
    with pytest.raises(InputError, match="only a FLASK policy has contexts"):
        policy_graph(Stack([banks]), Options(contexts=ALL))
    with pytest.raises(InputError, match="only a FLASK policy has permissions with weights"):
        policy_graph(Stack([banks]), Options(min_weight=2))
    with pytest.raises(InputError, match="only a FLASK policy has classes"):
        policy_graph(Stack([banks]), Options(exclude_classes=("argo",)))
    with pytest.raises(InputError, match="booleans as they are"):
        policy_graph(Stack([load_policy(policies.xen())]), Options(contexts=ALL, any_booleans=True))


def test_contexts_are_asked_proven_and_verified_by_hand(tmp_path: Path) -> None:
    """By the commands on Xen's policy; the certificate is for these contexts alone."""
    run = CliRunner().invoke
    xen = ["--policy", str(policies.xen()), "--context", "user_1:*:*", "--exclude-class", "argo"]
    reach = run(flow, ["reach", *xen, "--from", "user_1:vm_r:domU_t", "--json"])
    assert "user_1:vm_r:xenstore_t" in json.loads(reach.stdout)["labels"], reach.exception
    claim = "user_1:vm_r:prot_domU_t -/-> isolated_domU_t except dom0_t,xen_t,xenstore_t"
    written = str(tmp_path / "proof.json")
    proof = run(flow, ["prove", *xen, claim, "--certificate", written])
    assert proof.exit_code == 0, proof.output
    assert "1 claim verified" in run(flow, ["verify", *xen, written]).stdout
    other = run(flow, ["verify", *xen, "--context", "user_2:*:*", written])
    assert "made for something else" in str(other.exception)
    hint = run(flow, ["reach", "--policy", str(policies.xen()), "--from", "user_1:vm_r:domU_t"])
    assert "name whole contexts by --context" in str(hint.exception)


def test_a_graph_of_contexts_has_types_and_attributes_as_groups(tmp_path: Path) -> None:
    """A type stands for all its contexts, an attribute for those of its types."""
    graph: Graph = context_graph(constrained(2, tmp_path), ALL)
    kind = graph.names[0].split(":")[2]
    assert set(graph.named(graph.find(kind))) == {n for n in graph.names if n.endswith(kind)}
    attributes = [name for name in graph.groups if name.startswith("a")]
    assert attributes
    for name in attributes:
        assert graph.find(name)


def test_a_certificate_of_contexts_is_checked(tmp_path: Path) -> None:
    """From the graph to the checker with evidence of its own."""
    module = loaded(compile_conf(LEVELS, tmp_path / "levels", "selinux", 33, mls=True))
    graph = context_graph(module, MLS)
    proof = prove(graph, parse_claim("high_t -/-> low_t"))
    names, flows = policy_evidence(Stack([module]), Options(contexts=MLS))
    assert check(json.loads(certificate(graph.about, [proof])), names, flows) == 1
