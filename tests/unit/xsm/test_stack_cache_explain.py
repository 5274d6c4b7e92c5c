"""Stacked modules, the access vector cache and explanations."""

from __future__ import annotations

import json
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import Denied, PolicyError, StaleGeneration, UnknownLabel
from skerry.label import Label, make_label
from skerry.policy.load import parse_acm
from skerry.xsm.acm.model import AcmPolicy
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.cache import Avc
from skerry.xsm.dummy import DummyModule
from skerry.xsm.explain import Refused, explain, explain_decision, explain_error, refuse
from skerry.xsm.module import Standing
from skerry.xsm.request import Answer, Request, Verdict
from skerry.xsm.stack import Stack
from tests.unit.policy.samples import TOML, policies

BANKS = AcmModule(parse_acm(TOML.encode(), "banks.toml"))
ONE = Stack([BANKS])
TWO = Stack([BANKS, DummyModule()])


class Broken(DummyModule):
    """A module whose every answer is a crash."""

    def decide(
        self, subject: str, target: str, tclass: str, permissions: Collection[str]
    ) -> Answer:
        """Crash."""
        raise RuntimeError("out of order")

    def admit(self, label: str, standing: Standing) -> Answer:
        """Crash."""
        raise MemoryError

    def transition(self, subject: str, target: str, tclass: str) -> str:
        """Crash."""
        raise KeyError(subject)


def _request(one: str, other: str, stack: Stack = ONE, tclass: str = "share") -> Request:
    asked = {"share": ("share",), "grant": ("map_read",), "domain": ("create",)}[tclass]
    return Request(make_label(one, stack.names), make_label(other, stack.names), tclass, asked)


def test_a_stack_allows_only_what_every_module_allows() -> None:
    """ACM allows the creation, the dummy module reserves it to dom0, so it is denied."""
    assert TWO.decide(_request("dom0", "broker", TWO, "domain"), 1).allowed
    decision = TWO.decide(_request("broker", "bank-a", TWO, "domain"), 1)
    assert [answer.allowed for answer in decision.answers] == [True, False]
    assert not decision.allowed
    assert ONE.decide(_request("broker", "bank-a", ONE, "domain"), 1).allowed


def test_a_module_that_crashes_denies() -> None:
    """An exception in a module is a denial by name; with a sound module the same is allowed."""
    broken = Stack([BANKS, Broken()])
    decision = broken.decide(_request("bank-a", "broker", broken), 1)
    assert not decision.allowed
    assert decision.answers[1].code == "MODULE-FAILED"
    admission = broken.admit(make_label("bank-a", broken.names), [])
    assert [answer.allowed for answer in admission] == [True, False]
    label = make_label("bank-a", broken.names)
    with pytest.raises(Denied, match="KeyError"):
        broken.transition(label, label, "event")
    assert TWO.decide(_request("bank-a", "broker", TWO), 1).allowed
    assert TWO.transition(label, label, "event") == label


def test_a_label_without_a_part_for_a_module_is_denied() -> None:
    """A label made for one module asks nothing of another."""
    decision = TWO.decide(_request("bank-a", "broker", ONE), 1)
    assert [answer.code for answer in decision.answers] == ["STE-SHARED-TYPE", "LABEL-UNKNOWN"]


def test_a_stack_needs_different_modules() -> None:
    """None, or two of one kind, is an error: a label could not name its parts."""
    for modules in ([], [BANKS, BANKS]):
        with pytest.raises(PolicyError):
            Stack(modules)


def test_a_stack_makes_only_labels_that_its_modules_define() -> None:
    """`Stack.label` checks against each policy; the operator's label is the bootstrap label."""
    assert str(ONE.label("broker", "domain")) == "broker"
    with pytest.raises(UnknownLabel):
        ONE.label("ledger-a", "domain")
    assert ONE.label("ledger-a", "resource") == Label((("acm", "resource:ledger-a"),))
    assert str(TWO.operator_label()) == "dom0"


@given(policies(), st.data())
def test_a_cache_answers_as_no_cache_would(policy: AcmPolicy, data: st.DataObject) -> None:
    """Whatever is asked in whatever order, under changing generations and a tiny cache."""
    stacks = [Stack([AcmModule(policy)]), ONE]
    cache, generation, now = Avc(max_entries=3), 1, 0
    names = st.sampled_from([*(label.name for label in policy.labels), "bank-a", "broker"])
    for _ in range(data.draw(st.integers(0, 20))):
        if data.draw(st.integers(0, 5)) == 0:
            generation, now = generation + 1, 1 - now
        tclass = data.draw(st.sampled_from(["share", "grant", "domain"]))
        request = _request(data.draw(names), data.draw(names), ONE, tclass)
        found = cache.get(request, generation)
        made = stacks[now].decide(request, generation)
        assert found is None or found == made
        cache.put(made)
        assert cache.get(request, generation) == made
        assert len(cache) <= 3


def test_a_cache_finds_nothing_of_another_generation() -> None:
    """A change of generation empties it, and a late answer of the old one is not kept."""
    cache, request = Avc(), _request("bank-a", "broker")
    old = ONE.decide(request, 1)
    cache.put(old)
    assert cache.get(request, 1) is old
    cache.flush(2)
    assert cache.get(request, 1) is None
    cache.put(old)
    assert cache.get(request, 1) is None
    assert cache.get(request, 2) is None


def test_a_failure_is_not_cached() -> None:
    """A module's crash denies once; an answer is kept."""
    broken, cache = Stack([Broken()]), Avc()
    request = _request("a", "b", broken)
    cache.put(broken.decide(request, 1))
    assert cache.get(request, 1) is None
    sound = Stack([DummyModule()])
    cache.put(sound.decide(request, 1))
    assert cache.get(request, 1) is not None


def test_an_explanation_says_what_why_by_which_rule_and_for_whom() -> None:
    """The text for people holds every part that law 8 asks for."""
    decision = ONE.decide(_request("bank-a", "bank-b", ONE, "grant"), 7)
    verdict = Verdict("channel_two_way", False, (decision,), (), 7)
    text = explain(verdict, record=42).text()
    for part in (
        "denied: a two-way stream",
        "have no type in common [STE-NO-SHARED-TYPE]",
        "banks.toml:20",
        "bank-a -> bank-b",
        "grant { map_read }",
        "generation: 7",
        "record:     42",
    ):
        assert part in text


def test_the_first_question_that_failed_decides_the_explanation() -> None:
    """Allowed questions before it, and refused ones after it, are not what is told."""
    asked = [("bank-a", "broker"), ("bank-a", "bank-b"), ("bank-b", "bank-a")]
    decisions = tuple(ONE.decide(_request(*pair), 1) for pair in asked)
    explanation = explain(Verdict("h", False, decisions, (), 1))
    assert (explanation.subject, explanation.target) == ("bank-a", "bank-b")
    allowed = explain(Verdict("h", True, decisions[:1], (), 1))
    assert (allowed.allowed, allowed.code) == (True, "STE-SHARED-TYPE")


def test_a_refused_admission_is_explained_with_its_label() -> None:
    """The Chinese Wall has no request; the label that wants to start is named."""
    label = make_label("bank-b", ONE.names)
    answers = ONE.admit(label, [make_label("bank-a", ONE.names)])
    explanation = explain(Verdict("domain_create", False, (), answers, 3), subject=label)
    assert (explanation.code, explanation.line) == ("CW-CONFLICT", 12)
    assert explanation.subject == "bank-b"
    assert not explain(Verdict("h", False, (), (), 3)).allowed


def test_a_stack_lists_every_modules_answer() -> None:
    """With several modules, text and object show what each one said."""
    decision = TWO.decide(_request("broker", "bank-a", TWO, "domain"), 1)
    explanation = explain_decision(decision)
    assert explanation.module == "dummy"
    assert "acm: allows" in explanation.text()
    assert "dummy: denies" in explanation.text()
    shown = json.loads(json.dumps(explanation.as_dict()))
    assert [answer["module"] for answer in shown["answers"]] == ["acm", "dummy"]
    assert shown["class"] == "domain"


def test_a_guest_learns_no_labels_unless_it_may_see_the_target() -> None:
    """Without that right: the code, a fixed sentence, the record's number."""
    explanation = explain_decision(ONE.decide(_request("bank-a", "bank-b"), 1), record=5)
    hidden = explanation.for_guest(may_see_target=False)
    assert hidden.keys() == {"code", "sentence", "record"}
    assert "bank" not in json.dumps(hidden)
    shown = json.dumps(explanation.for_guest(may_see_target=True))
    assert "bank-b" in shown
    assert "banks.toml:20" in shown


def test_a_raised_denial_is_explained() -> None:
    """A refusal carries its explanation; any other denial is told in its own words."""
    decision = ONE.decide(_request("bank-a", "bank-b"), 1)
    error = refuse(Verdict("h", False, (decision,), (), 1), record=9)
    assert isinstance(error, Refused)
    assert (error.code, error.exit_code, error.record) == ("STE-NO-SHARED-TYPE", 3, 9)
    assert explain_error(error) == error.explanation
    stale = explain_error(StaleGeneration("the policy changed"), hook="channel_two_way")
    assert (stale.allowed, stale.code) == (False, "GENERATION-STALE")
    assert "the policy changed" in stale.text()


def test_a_label_that_reads_back_as_another_is_refused() -> None:
    """Audit and tables show labels in one line, so two labels never have the same text."""
    names = ("acm", "dummy")
    sound = make_label({"acm": "a", "dummy": "u:r:t:s0:c1,c2"}, names)
    assert make_label(str(sound), names) == sound
    assert make_label("a,b", names) == make_label({"acm": "a,b", "dummy": "a,b"}, names)
    for value in ({"acm": "a,dummy=x", "dummy": "y"}, "acm=a,dummy=b,acm=c"):
        with pytest.raises(UnknownLabel):
            make_label(value, names)
    with pytest.raises(UnknownLabel):
        make_label({"acm": "acm=a"}, ("acm",))
