"""Questions asked many times over: the same answers as one by one, operators and consoles too."""

from __future__ import annotations

import random
from itertools import permutations, product
from pathlib import Path

import pytest

from skerry.errors import Denied
from skerry.label import Label
from skerry.node.asking import Asker, PlainAsker
from skerry.node.assertions import AnalysisFailed
from skerry.node.flows import SystemFlows
from skerry.node.proving import prove_change
from skerry.node.setup import Setup, load_setup
from skerry.policy.source import NewPolicy
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.hooks import HOOKS
from skerry.xsm.stack import Stack
from tests.support import policies
from tests.support.policies import compile_conf
from tests.support.simulated import POLICY, write_system
from tests.unit.flow.sample import compiled, loaded, pairs

CONF = (
    policies.XEN_CLASSES
    + """\
attribute all_t;
type op_t, all_t; type a_t, all_t; type b_t, all_t; type console_t; type loose_t, all_t;
permissive loose_t;
role r; role r types { op_t a_t b_t loose_t console_t };
allow all_t all_t:event { create bind send };
allow op_t b_t:grant { map_read map_write };
allow b_t op_t:grant { map_read map_write };
RULES
user u roles r;
sid kernel u:r:op_t
sid security u:r:op_t
"""
)
READS = "allow op_t a_t:grant map_read;"
CONSOLE = """\
allow { op_t a_t } console_t:resource use;
allow a_t console_t:grant { map_read map_write };
allow op_t console_t:grant map_read;
"""
SYSTEM = """\
name = "s"
policy = "p"
[operators]
"uid:0" = "u:r:op_t"
[domains.a]
label = "u:r:a_t"
machine = "simulator"
[domains.b]
label = "u:r:b_t"
machine = "simulator"
"""


def system(folder: Path, rules: str, text: str = SYSTEM) -> Setup:
    """Load two domains and an operator, who may run commands in `b`."""
    compile_conf(CONF.replace("RULES", rules), folder / "p", "selinux", 33)
    (folder / "s.toml").write_text(text)
    return load_setup(folder / "s.toml")


@pytest.mark.parametrize(("rules", "reads"), [("", False), (READS, True)])
def test_who_only_reads_a_console_learns_what_the_domain_knows(
    rules: str, reads: bool, tmp_path: Path
) -> None:
    """It is a flow to the operator and none back, and through him to where he runs commands."""
    setup = system(tmp_path, rules)
    for plainly in (False, True):
        flows = SystemFlows(setup, operators=True, plainly=plainly)
        operator = next(name for name in flows.names if name.startswith("operator:"))
        assert flows.flows("a", operator) is reads
        assert not flows.flows(operator, "a")
        assert flows.flows(operator, "b")
        assert flows.flows("b", operator)
    if reads:
        why = flows.reasons("a", operator)
        assert why[0] == "possible as domain_console_read"


@pytest.mark.parametrize("rules", [READS, CONSOLE, READS + CONSOLE])
def test_a_console_with_a_label_of_its_own_is_asked_for_as_a_resource(
    rules: str, tmp_path: Path
) -> None:
    """Then what the policy says of the domain itself does not open its console."""
    labelled = SYSTEM.replace('label = "u:r:a_t"', 'label = "u:r:a_t"\nconsole = "u:r:console_t"')
    setup = system(tmp_path, rules, labelled)
    for plainly in (False, True):
        flows = SystemFlows(setup, operators=True, plainly=plainly)
        operator = next(name for name in flows.names if name.startswith("operator:"))
        assert flows.flows("a", operator) is (CONSOLE in rules)
        assert not flows.flows(operator, "a")
        assert (("a", operator) in pairs(flows.graph())) is (CONSOLE in rules)
    if CONSOLE in rules:
        assert flows.reasons("a", operator)[0] == "possible as console_read"


def test_domains_of_one_label_with_other_consoles_are_asked_apart(tmp_path: Path) -> None:
    """Only of the one whose console has no label may the operator read."""
    second = SYSTEM[SYSTEM.index("[domains.a]") : SYSTEM.index("[domains.b]")]
    text = SYSTEM + second.replace("domains.a", "domains.c") + 'console = "u:r:console_t"\n'
    graph = SystemFlows(system(tmp_path, READS, text), operators=True).graph()
    senders = {one for one, two in pairs(graph) if two.startswith("operator:")}
    assert senders == {"a", "b"}


def test_a_flask_module_allows_what_it_decides_to_allow(tmp_path: Path) -> None:
    """Every class and pair of contexts, known and unknown permissions, permissive sources."""
    seen = set()
    modules = [loaded(compiled(seed, tmp_path)) for seed in range(12)]
    path = compile_conf(CONF.replace("RULES", READS), tmp_path / "loose", "selinux", 33)
    modules += [loaded(path), loaded(policies.xen())]
    chance = random.Random(1)
    for module in modules:
        contexts = [*_contexts(module), "u:r:none", "x", "security"]
        classes = [*module.classes, "none"]
        for one, two in chance.sample(list(product(contexts, repeat=2)), 40):
            for tclass in classes:
                known = module.classes.get(tclass)
                names = [name for name in known.permissions if name] if known else ["x"]
                for asked in ((names[0],), tuple(sorted(names[:2])), ("none",), ()):
                    found = module.allows(one, two, tclass, asked)
                    assert found is module.decide(one, two, tclass, asked).allowed
                    seen.add((found, tclass == "none", asked == ("none",)))
    assert {(True, False, False), (False, False, False), (False, True, False)} <= seen


def _contexts(module: FlaskModule) -> list[str]:
    if module.policy.flavour == "xen":
        return list(module.labels())[:8]
    names = [kind.name for kind in module.policy.types.values() if not kind.attribute]
    return [f"u:r:{name}" for name in names][:8]


@pytest.mark.parametrize("stacked", [False, True])
def test_every_hook_is_answered_as_the_monitor_asks_it(stacked: bool, tmp_path: Path) -> None:
    """Between all labels of Xen's policy, alone and with ACM: the quick and the plain answer."""
    from skerry.policy.load import load_policy

    modules = [load_policy(policies.xen())]
    wanted = ("dom0_t", "domU_t", "isolated_domU_t", "xenstore_t", "nomigrate_t")
    texts = [text for text in modules[0].labels() if text.endswith(wanted)][:9]
    if stacked:
        modules.append(load_policy(Path(__file__).parents[3] / "examples/two-banks/policy.xml"))
    stack = Stack(modules)
    banks = ["bank-a", "broker", "bank-b"] if stacked else [""]
    labels = [_label(text, bank) for text in texts for bank in banks]
    quick, plain = Asker(stack), PlainAsker(stack)
    hooks = ["channel_two_way", "channel_one_way", "memory_read", "resource_both", "resource_read",
             "domain_exec", "domain_console_read", "memory_both"]  # fmt: skip
    answers = set()
    for hook in hooks:
        for one, two in permutations(labels, 2):
            found = quick.allowed(hook, one, two)
            assert found is plain.allowed(hook, one, two), (hook, one, two)
            answers.add(found)
    assert answers == {True, False}
    assert set(hooks) <= HOOKS.keys()


def _label(text: str, bank: str) -> Label:
    parts = (("flask", text),)
    return Label((("acm", bank), *parts) if bank else parts)


@pytest.mark.parametrize(
    ("module", "asked"),
    [
        (FlaskModule, "allows"),
        (FlaskModule, "transition"),
        (AcmModule, "decide"),
        (AcmModule, "admit"),
        (AcmModule, "admit_bind"),
    ],
)
@pytest.mark.parametrize("plainly", [False, True])
def test_a_module_that_fails_proves_nothing(
    module: type, asked: str, plainly: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monitor would refuse what it asks then, and may allow it when it asks again: so there is
    no graph at all. The control has flows."""
    if module is FlaskModule:
        setup = system(tmp_path, READS)
    else:
        setup = load_setup(Path(write_system(tmp_path)))
    assert SystemFlows(setup, operators=True, plainly=plainly).evidence()

    def fail(*_: object) -> bool:
        raise RuntimeError("boom")

    monkeypatch.setattr(module, asked, fail)
    if (asked, plainly) == ("allows", True):
        monkeypatch.setattr(module, "decide", fail)
    with pytest.raises(Denied, match="failed: RuntimeError: boom") as caught:
        SystemFlows(setup, operators=True, plainly=plainly).evidence()
    assert caught.value.code == "MODULE-FAILED"
    with pytest.raises(Denied, match="failed: RuntimeError: boom"):
        SystemFlows(setup, operators=True, plainly=plainly).graph()


def test_assertions_are_not_proven_by_a_module_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is refused. The control: while the module answers they hold."""
    setup = load_setup(Path(write_system(tmp_path)))
    change = NewPolicy("p", POLICY.replace('"1.0"', '"1.1"').encode())
    assert prove_change(setup, change, setup, "policy_load").assertions

    def fail(*_: object) -> bool:
        raise RuntimeError("boom")

    monkeypatch.setattr(AcmModule, "decide", fail)
    with pytest.raises(AnalysisFailed, match="boom"):
        prove_change(setup, change, setup, "policy_load")
