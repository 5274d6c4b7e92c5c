"""Systems of many labels: asked in bulk, they have the graph that asking every pair gives."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.label import Label
from skerry.node.alike import ASKED
from skerry.node.flows import SystemFlows, Thing, _hooks_between
from skerry.node.setup import Setup
from skerry.policy.source import Policy
from skerry.system.model import DomainSpec, ResourceKind, ResourceSpec, System
from skerry.xsm.acm.model import AcmPolicy, ConflictSet, ResourceLabel, TypeName, VmLabel
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.dummy import DummyModule
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.hooks import HOOKS
from skerry.xsm.module import SecurityModule
from skerry.xsm.stack import Stack
from tests.support import policies
from tests.unit.flow.sample import handed_pairs, loaded, pairs

FLASK_POLICIES = 12
KINDS = "abcdefgh"


def flask_source(chance: random.Random) -> str:
    """Return a policy in which who may exchange depends on all that a FLASK policy can say."""
    classes = policies.XEN_CLASSES
    if chance.random() < 0.2:  # a policy that does not know what hooks ask
        classes = classes.replace("{ map_read map_write }", "{ map_write }")
    lines = ["attribute every; attribute some;"]
    for kind in KINDS:
        held = ", some" if chance.random() < 0.4 else ""
        lines.append(f"type {kind}_t, every{held}; type {kind}_end;")
    lines.append("bool opened false;")
    sides = [f"{kind}_t" for kind in KINDS] + ["some", "some", "self"]

    def allow(tclass: str, held: Sequence[str]) -> str:
        one, two = chance.choice(sides[:-1]), chance.choice(sides)
        given = " ".join(chance.sample(held, chance.randrange(1, len(held) + 1)))
        return f"allow {one} {two}:{tclass} {{ {given} }};"

    grants = ["map_write"] if "map_read" not in classes else ["map_read", "map_write"]
    lines += [allow("grant", grants) for _ in range(chance.randrange(4, 25))]
    lines += [allow("resource", ["use"]) for _ in range(chance.randrange(1, 9))]
    if chance.random() < 0.8:
        lines.append("allow every every:event { create bind send };")
    lines += [allow("event", ["create", "bind", "send"]) for _ in range(6)]
    lines.append(f"if (opened) {{ {allow('grant', grants)} }} else {{ {allow('grant', grants)} }}")
    for kind in chance.sample(KINDS, chance.randrange(3)):
        lines.append(f"type_transition {kind}_t every:event {kind}_end;")
        lines.append(f"allow every {kind}_end:event {{ create send }};")
        lines.append(f"allow {kind}_end every:event bind;")
    if chance.random() < 0.3:
        lines.append(f"permissive {chance.choice(KINDS)}_t;")
    if chance.random() < 0.3:
        one, two = chance.sample(KINDS, 2)
        lines.append(f"typebounds {one}_t {two}_t;")
    everybody = " ".join(f"{kind}_t {kind}_end" for kind in KINDS)
    lines += [
        f"role r; role r types {{ {everybody} }};",
        f"role q; role q types {{ {everybody} }};",
    ]
    lines += ["user u roles { r q };", "user v roles r;"]
    if chance.random() < 0.5:
        lines.append("constrain grant map_write (u1 == u2 or r1 == q);")
    lines += ["sid kernel u:r:a_t", "sid security u:r:a_t", ""]
    return classes + "\n".join(lines)


@pytest.fixture(scope="module")
def flask(tmp_path_factory: pytest.TempPathFactory) -> list[FlaskModule]:
    """Some policies at random."""
    folder = tmp_path_factory.mktemp("flask")
    made = []
    for seed in range(FLASK_POLICIES):
        source = flask_source(random.Random(seed))
        path = policies.compile_conf(source, folder / str(seed), "selinux", 33)
        made += [loaded(path), loaded(path, {"opened": True})]
    return made


def acm(chance: random.Random) -> AcmModule:
    """Return a policy such as one may write, or worse: no checks are made here."""
    types = [f"t{n}" for n in range(chance.randrange(1, 8))] if chance.random() < 0.9 else []
    colours = [f"c{n}" for n in range(chance.randrange(1, 6))] if chance.random() < 0.7 else []
    wild = chance.random() < 0.2

    def some(names: Sequence[str], most: int) -> tuple[str, ...]:
        return tuple(chance.sample(names, min(len(names), chance.randrange(most + 1))))

    labels = [VmLabel(f"l{n}", some(types, 4), some(colours, 3 if wild else 1)) for n in range(9)]
    labels.append(VmLabel("boss", tuple(types)))
    if chance.random() < 0.3:
        labels += [VmLabel("r0", some(types, 2)), VmLabel("resource:r1", some(types, 2))]
    conflicts = [
        ConflictSet(f"w{n}", some(colours, 4), history=chance.random() < 0.4) for n in range(2)
    ]
    return AcmModule(
        AcmPolicy(
            "p",
            "1.0",
            "boss",
            tuple(map(TypeName, types)),
            tuple(map(TypeName, colours)) if chance.random() < 0.9 else (),
            tuple(one for one in conflicts if len(one.types) > 1),
            tuple(labels),
            tuple(ResourceLabel(f"r{n}", chance.choice(types)) for n in range(3) if types),
        )
    )


def text(module: SecurityModule, kind: str, chance: random.Random) -> str:
    """Return a label's part: mostly one that the policy knows for such a thing."""
    if isinstance(module, DummyModule):
        return chance.choice(["dom0", "x", "y", "z"])
    if isinstance(module, FlaskModule):
        known = f"{chance.choice(['u:r', 'u:r', 'u:q', 'v:r'])}:{chance.choice(KINDS)}_t"
        return known if chance.random() < 0.95 else chance.choice(["security", "u:r:gone_t", ""])
    if chance.random() < 0.05:
        return chance.choice(["gone", "resource:gone", "r0", "resource:r1", ""])
    if kind == "resource":
        return f"resource:r{chance.randrange(3)}"
    return chance.choice([*module.labels()])


def system(modules: Sequence[SecurityModule], chance: random.Random, relabels: bool) -> Setup:
    """Return a system at random; without `relabels` also with labels that make no sense."""

    def label(kind: str, *, whole: bool = False) -> Label:
        parts = [(module.name, text(module, kind, chance)) for module in modules]
        if chance.random() < 0.03 and modules[0].name != "acm" and not whole:
            parts.pop(0)
        return Label(tuple(sorted(parts)))

    domains = {f"d{n}": DomainSpec(f"d{n}", "") for n in range(chance.randrange(2, 14))}
    kinds: Sequence[ResourceKind] = ("disk", "disk", "uplink", "switch")
    resources = {
        f"s{n}": ResourceSpec(f"s{n}", chance.choice(kinds), "") for n in range(chance.randrange(4))
    }
    labels = {name: label("domain") for name in domains}
    labels |= {name: label("resource") for name in resources}
    consoles = {name: label("resource") for name in domains if chance.random() < 0.2}
    made = System(Path("s.toml"), "s", ("p",), domains, resources=resources)
    operators = {uid: label("domain", whole=True) for uid in range(2)}
    return Setup(
        made, Policy((), Stack(modules)), labels, operators, operators[0], consoles=consoles
    )


@given(st.integers(0, 2**32))
@settings(max_examples=250, deadline=None)
def test_asking_in_bulk_answers_as_asking_every_pair(flask: list[FlaskModule], seed: int) -> None:
    """Policies and systems at random, each module alone and stacked, domains and resources of all
    kinds, consoles, operators and relabels: the graph is that of every pair asked by the modules'
    whole decisions, and the checker's flows are its own."""
    chance = random.Random(seed)
    choices: list[list[SecurityModule]] = [
        [acm(chance)],
        [chance.choice(flask)],
        [DummyModule()],
        [acm(chance), chance.choice(flask)],
        [chance.choice(flask), DummyModule(), acm(chance)],
    ]
    modules = chance.choice(choices)
    operators = chance.random() < 0.4
    relabels = chance.random() < 0.2 and len(modules) == 1 and modules[0].name == "acm"
    setup = system(modules, chance, relabels)
    quick, plain = (
        SystemFlows(setup, operators=operators, relabels=relabels, plainly=plainly)
        for plainly in (False, True)
    )
    reference = plain.graph()
    assert quick.graph().rows == reference.rows
    assert handed_pairs(plain.names, plain.evidence()) == pairs(reference)


def ring(domains: int) -> Setup:
    """Return a system of domains with as many labels, each of which shares with two others."""
    names = [f"d{n}" for n in range(domains)]
    labels = [VmLabel(name, (f"t{n}", f"t{(n + 1) % domains}")) for n, name in enumerate(names)]
    types = tuple(TypeName(f"t{n}") for n in range(domains))
    module = AcmModule(AcmPolicy("p", "1.0", "d0", types, labels=tuple(labels)))
    made = System(Path("s.toml"), "s", ("p",), {name: DomainSpec(name, "") for name in names})
    given_labels = {name: Label((("acm", name),)) for name in names}
    owner = given_labels["d0"]
    return Setup(made, Policy((), Stack([module])), given_labels, {0: owner}, owner)


@pytest.mark.parametrize("plainly", [False, True])
def test_a_system_of_many_labels_asks_no_more_than_one_of_few(
    plainly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 labels for 30, all different: as many questions, for the graph and for the checker. The
    control: every pair by itself takes more of them with every label."""
    asked = 0
    sends = SystemFlows._sends

    def counted(self: SystemFlows, *sides: Thing) -> bool:
        nonlocal asked
        asked += 1
        return sends(self, *sides)

    monkeypatch.setattr(SystemFlows, "_sends", counted)

    def questions(domains: int, *, pairwise: bool = False) -> int:
        nonlocal asked
        asked = 0
        flows = SystemFlows(ring(domains), plainly=plainly or pairwise)
        if plainly and not pairwise:
            found = handed_pairs(flows.names, flows.evidence())
        else:
            found = pairs(flows.graph())
        assert len(found) == 2 * domains
        return asked

    assert 0 < questions(300) == questions(30) < 5
    assert questions(8, pairwise=True) == 8 * 8 < questions(16, pairwise=True)


def test_every_hook_between_two_things_asks_for_memory_first() -> None:
    """So whom no rule lets map anything of the other exchanges nothing, whatever else is allowed:
    this is what pairs are left out by."""
    tclass, permission = ASKED
    hooks = {
        hook
        for kinds in (("domain", "domain"), ("domain", "disk"), ("disk", "domain"))
        for hook in _hooks_between(*kinds)
    }
    assert len(hooks) == 6
    for hook in hooks:
        assert any(
            {question.subject, question.target} == {"source", "sink"}
            and question.tclass == tclass
            and permission in question.permissions
            for question in HOOKS[hook].asks
        )
