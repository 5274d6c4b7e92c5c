"""What is proven before another policy comes into force, and what a failure of that means."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from skerry.errors import Denied, InputError, PolicyError
from skerry.flow.deadline import Deadline
from skerry.node import assertions, proving
from skerry.node.assertions import AnalysisFailed, policy_violations, violations
from skerry.node.flows import SystemFlows
from skerry.node.proving import Proven, prove_change
from skerry.node.setup import Setup, load_setup
from skerry.policy.asserted import assertions_of
from skerry.policy.opening import opens_nothing
from skerry.policy.source import (
    Change,
    NewBooleans,
    NewPolicy,
    NewSources,
    Source,
    changed,
    make_policy,
    read_policy,
)
from skerry.xsm.explain import Refused
from tests.support import policies
from tests.support.policies import compile_conf
from tests.support.simulated import POLICY, SYSTEM, write_system

ASSERTED = '[[assert]]\nnever = "clerk -> broker"\nexcept = ["red", "system"]\n'
WIDER = POLICY.replace('ste = ["books"]', 'ste = ["books", "trade"]')
NARROWER = POLICY.replace('ste = ["trade", "books"]', 'ste = ["books"]')
PLAIN_SYSTEM = SYSTEM[: SYSTEM.index("[[assert]]")]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """The small system without assertions of its own, under a policy with one."""
    return load_setup(Path(write_system(tmp_path, PLAIN_SYSTEM, POLICY + ASSERTED)))


def load(setup: Setup, text: str, beside: str = "", deadline: Deadline | None = None) -> Proven:
    """Prove what a load of another policy would bring."""
    change = NewPolicy("next.toml", text.encode(), assertions=beside.encode())
    return prove_change(setup, change, setup, "policy_load", deadline)


def test_a_policy_that_breaks_its_own_assertion_is_refused_with_path_and_rules(
    setup: Setup,
) -> None:
    """Code, sentence, chain and rules; the control: without the assertion it may come."""
    with pytest.raises(Refused) as caught:
        load(setup, WIDER + ASSERTED)
    error = caught.value
    assert (error.code, error.exit_code) == ("ASSERTION-BROKEN", 3)
    text = error.explanation.text()
    assert "never clerk -> broker does not hold: clerk -> broker" in text
    assert "share the type trade" in text
    assert "next.toml:" in text
    assert error.fix
    assert load(setup, WIDER, "assert = []").assertions == 0
    assert load(setup, POLICY.replace('"1.0"', '"1.1"') + ASSERTED).assertions == 1


def test_a_policy_that_comes_without_assertions_must_hold_those_in_force(setup: Setup) -> None:
    """Leaving the file out is no way round; ending them on purpose is."""
    with pytest.raises(Refused, match="clerk -> broker"):
        load(setup, WIDER)
    assert load(setup, NARROWER).assertions == 1


def test_it_is_said_which_assertions_a_policy_ends(setup: Setup) -> None:
    """Others, none on purpose, or the same of other flows. The controls keep it."""
    was = ("never clerk -> broker except red, system",)
    other = '[[assert]]\nnever = "broker -> clerk"\nexcept = ["blue", "system"]\n'
    assert load(setup, NARROWER, "assert = []").ended == was
    assert load(setup, NARROWER, other).ended == was
    assert load(setup, NARROWER).ended == ()
    assert load(setup, NARROWER, other + ASSERTED).ended == ()


def test_the_systems_own_assertions_are_proven_beside_the_policys(tmp_path: Path) -> None:
    """Both are in the refusal, each with its place."""
    setup = load_setup(Path(write_system(tmp_path, SYSTEM, POLICY + ASSERTED)))
    with pytest.raises(Refused) as caught:
        load(setup, WIDER)
    text = caught.value.explanation.text()
    assert text.count("assert: denies") == 2
    assert "possible as channel_two_way" in text
    assert load(setup, NARROWER).assertions == 2


CONF = (
    policies.XEN_CLASSES
    + """\
bool open false;
type a_t; type b_t;
role r; role r types { a_t b_t };
if (open) { allow a_t b_t:grant { map_read map_write }; }
user u roles r;
sid kernel u:r:a_t
sid security u:r:a_t
"""
)


def _boolean_system(folder: Path, more: str = "") -> Setup:
    """Load a domain under a FLASK policy that asserts what one of its booleans breaks."""
    path = compile_conf(CONF, folder / "open", "selinux", 33)
    Path(f"{path}.assert").write_text('[[assert]]\nnever = "a_t -> b_t"\n')
    system = 'name = "s"\npolicy = "open"\n[domains.a]\nlabel = "u:r:a_t"\nmachine = "simulator"\n'
    (folder / "system.toml").write_text(system + more)
    return load_setup(folder / "system.toml")


def test_assertions_of_a_flask_policy_hold_over_its_booleans(tmp_path: Path) -> None:
    """What holds while a boolean is off is refused when it is to be set; off again it holds."""
    setup = _boolean_system(tmp_path)
    assert policy_violations(setup.policy) == []
    with pytest.raises(Refused, match="a_t -> b_t") as caught:
        prove_change(setup, NewBooleans({"open": True}), setup, "policy_setbool")
    assert "if (open)" in caught.value.explanation.text()
    prove_change(setup, NewBooleans({"open": False}), setup, "policy_setbool")


def test_an_alarm_that_would_break_an_assertion_is_found_before_the_emergency(
    tmp_path: Path,
) -> None:
    """The alarm's booleans are tried; one that switches rules off is none to prove."""
    setup = _boolean_system(tmp_path, "[alarm.quiet]\nbooleans = { open = true }\n")
    (broken,) = violations(setup)
    assert broken.text == "under the alarm quiet: never a_t -> b_t does not hold: a_t -> b_t"
    assert (
        violations(_boolean_system(tmp_path, "[alarm.quiet]\nbooleans = { open = false }\n")) == []
    )


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ('[[assert]]\nnever = "clerk -> nobody"\n', "no label 'nobody'"),
        ('[[assert]]\nnever = "clerk -> clerk"\n', "stands on both sides"),
        ('[[assert]]\nnever = "clerk -> blue"\nexcept = ["blue"]\n', "is a sink and trusted"),
        ('[[assert]]\nnever = "no* -> blue"\n', "no label matches"),
        ('[[assert]]\nnever = "type:system -> type:nothing"\n', "no label 'type:nothing'"),
        ('[[assert]]\nnever = ", -> blue"\n', 'never must be "A -> B"'),
        ("[[assert]]\nnever = 3\n", "never must be"),
    ],
)
def test_an_assertion_that_says_nothing_is_an_error(beside: str, words: str, setup: Setup) -> None:
    """With file and line, and it denies by type; also where the policy only takes away."""
    for text in (POLICY, NARROWER):
        with pytest.raises(PolicyError) as caught:
            load(setup, text, beside)
        problem = caught.value.problems[0]
        assert (problem.file, problem.line) == ("next.toml.assert", 2)
        assert words in problem.message


class Clock:
    """A clock that goes on by a step each time it is read."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        """Return the time."""
        self.now += self.step
        return self.now


def test_an_analysis_beyond_its_bound_is_a_refusal(setup: Setup) -> None:
    """It is a denial that says so; the control: with time enough the same policy may come."""
    wider = WIDER.replace('["books", "trade"]', '["books", "system"]')
    assert load(setup, wider, deadline=Deadline(1e9, Clock(1))).assertions == 1
    with pytest.raises(AnalysisFailed) as caught:
        load(setup, wider, deadline=Deadline(0.5, Clock(1)))
    assert isinstance(caught.value, Denied)
    assert caught.value.code == "ANALYSIS-TOO-LONG"
    assert "longer than 0.5 s" in str(caught.value)


def test_the_graph_of_a_system_is_not_made_beyond_the_bound(tmp_path: Path) -> None:
    """The time is looked at while pairs are asked, not only at the end."""
    setup = load_setup(Path(write_system(tmp_path)))
    clock = Clock(1)
    with pytest.raises(Denied, match="longer than"):
        violations(setup, Deadline(1.5, clock))
    assert clock.now <= 4
    assert SystemFlows(setup, deadline=Deadline(1e9, clock)).graph().edges()


def fail(*_: object, **__: object) -> None:
    """Fail as a defect would."""
    raise RuntimeError("boom")


def test_an_analysis_that_fails_refuses_what_gives_and_not_what_only_takes(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the narrower policy everything proven before still holds, and a warning says so; not
    so with an assertion that was never proven."""
    monkeypatch.setattr(assertions, "prove", fail)
    done = load(setup, NARROWER)
    assert done.assertions == 1
    assert "not proven again (RuntimeError)" in done.warnings[0]
    for text, beside in ((WIDER, ""), (NARROWER, '[[assert]]\nnever = "blue -> clerk"\n')):
        with pytest.raises(AnalysisFailed, match="could not be proven: RuntimeError"):
            load(setup, text, beside)
    assert load(setup, NARROWER, "assert = []").warnings == ()


def test_what_an_up_brings_is_always_proven(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's setup has assertions and domains of its own, so nothing of it was proven before."""
    content = NARROWER.encode()
    asserted = assertions_of(content, ASSERTED.encode(), "next.toml")
    change = NewSources((Source("next.toml", content, assertions=asserted),))
    other = load_setup(setup.system.path)
    monkeypatch.setattr(assertions, "prove", fail)
    with pytest.raises(AnalysisFailed):
        prove_change(setup, change, other, "policy_load")


def test_a_comparison_that_fails_or_takes_too_long_proves_nothing(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the narrower policy is refused as any other."""
    monkeypatch.setattr(assertions, "prove", fail)
    load(setup, NARROWER, deadline=Deadline(1e9, Clock(1)))
    with pytest.raises(AnalysisFailed):
        load(setup, NARROWER, deadline=Deadline(0.5, Clock(1)))
    monkeypatch.setattr(proving, "opens_nothing", fail)
    with pytest.raises(AnalysisFailed):
        load(setup, NARROWER)


@pytest.mark.parametrize(
    ("change", "takes"),
    [
        (("", ""), True),
        (('ste = ["trade", "books"]', 'ste = ["books"]'), True),
        (("[labels.clerk]\nste", "[labels.clark]\nste"), False),
        (('[labels.clerk]\nste = ["books"]\ncw = ["red"]\n', ""), True),
        (('ste = ["books"]', 'ste = ["books", "trade"]'), False),
        (('types = ["red", "blue"]\n\n[labels', 'types = ["red"]\n\n[labels'), False),
        (('name = "rivals"\ntypes', 'name = "rivals"\nhistory = true\ntypes'), True),
        (('ste = ["books"]\ncw = ["red"]', 'ste = ["books"]'), False),
        (('bootstrap = "system"', 'bootstrap = "broker"'), False),
        (('[labels.clerk]\nste = ["books"]', '[labels.clerk]\nfrom = "red"\nste = ["books"]'),
         False),
    ],
)  # fmt: skip
def test_only_what_surely_gives_nothing_counts_as_taking_away(
    change: tuple[str, str], takes: bool
) -> None:
    """Types and labels that go, walls that get a history; anything else is taken to give."""
    old, new = POLICY, POLICY.replace(*change) if change[0] else POLICY
    assert (old != new) is bool(change[0])
    one, two = (make_policy([Source("p", text.encode())]).stack for text in (old, new))
    assert opens_nothing(one, two) is takes


def test_booleans_that_switch_rules_off_take_away() -> None:
    """Xen's own: locking takes the toolstack's rights, unlocking gives them back."""
    xen = read_policy([policies.xen()])
    locked = changed(xen, NewBooleans({"prot_doms_locked": True}))
    ways = opens_nothing(xen.stack, locked.stack), opens_nothing(locked.stack, xen.stack)
    assert ways == (True, False)


def test_an_input_error_of_booleans_stays_one(setup: Setup) -> None:
    """Wrong usage is no failure of analysis."""
    change: Change = NewBooleans({"x": True})
    with pytest.raises(InputError, match="only a FLASK policy has booleans"):
        prove_change(setup, change, setup, "policy_setbool")


@pytest.mark.parametrize(
    ("never", "label"), [("clerk,red -> blue", "clerk,red"), ("re* -> x", "re*")]
)
def test_a_label_that_is_added_takes_over_no_assertion_in_force(
    never: str, label: str, tmp_path: Path
) -> None:
    """The assertion would be of that label alone. The control adds another."""
    policy = POLICY + "[labels.x]\nste = []\n"
    asserted = f'[[assert]]\nnever = "{never}"\nexcept = ["broker", "system"]\n'
    path = Path(write_system(tmp_path, PLAIN_SYSTEM, policy + asserted))
    setup = load_setup(path)
    with pytest.raises(PolicyError, match=r"can be read as|stands for others"):
        load(setup, f'{policy}[labels."{label}"]\nste = []\n')
    assert load(setup, f"{policy}[labels.other]\nste = []\n").assertions == 1


GROUPED = (
    policies.XEN_CLASSES + "attribute side; attribute gate;\n"
    "type a_t; type b_t, side; type c_t, gate; type d_t;\n"
    "role r; role r types { a_t b_t c_t d_t };\n"
    "allow a_t { c_t d_t }:grant { map_write }; allow c_t b_t:grant { map_write };\n"
    "user u roles r;\nsid kernel u:r:a_t\nsid security u:r:a_t\n"
)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (("type d_t;", "type d_t, side;"), False),
        (("type c_t, gate;", "type c_t;"), False),
        (("{ c_t d_t }", "d_t"), True),
    ],
)
def test_an_assertion_of_an_attribute_that_means_other_types_is_proven_anew(
    change: tuple[str, str], same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No rule gives anything, but another type is asserted of, or one is trusted no more. The
    control: rules that go."""
    contents = [
        compile_conf(text, tmp_path / str(number), "selinux", 33).read_bytes()
        for number, text in enumerate((GROUPED, GROUPED.replace(*change)))
    ]
    written = assertions_of(b"", b'[[assert]]\nnever = "a_t -> side"\nexcept = ["gate"]\n', "p")
    policy = make_policy([Source("p", contents[0], assertions=written)])
    assert policy_violations(policy) == []
    path = Path(write_system(tmp_path, PLAIN_SYSTEM, POLICY))
    setup = msgspec.structs.replace(load_setup(path), policy=policy)
    new = NewPolicy("n", contents[1])
    assert opens_nothing(policy.stack, changed(policy, new).stack)
    monkeypatch.setattr(proving, "violations", fail)
    if same:
        assert prove_change(setup, new, setup, "policy_load").warnings
    else:
        with pytest.raises(AnalysisFailed):
            prove_change(setup, new, setup, "policy_load")
