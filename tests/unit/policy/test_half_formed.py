"""Verdicts that are of the right form and do not hold together: none is believed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from skerry.errors import UnknownLabel
from skerry.label import Label
from skerry.policy.engine import Engine
from skerry.policy.messages import Exchanged, Hooked, Question, Started
from skerry.policy.source import Policy, make_policy
from skerry.policy.wellformed import well_formed
from skerry.xsm.explain import explain
from skerry.xsm.hooks import HOOKS
from skerry.xsm.request import Verdict
from tests.unit.policy.banks import ACM, BANK_A, BANK_B, BANKS, DUMMY, XEN, labels_of

APART = Hooked("channel_two_way", {"source": BANK_A, "sink": BANK_B})
TOGETHER = Hooked("channel_two_way", {"source": BANK_A, "sink": BANK_A})
WALL = Exchanged((BANK_A, BANK_B))
START = Started(BANK_A, (BANK_A,))


def true(question: Question, policy: Policy = BANKS) -> Verdict:
    """Return the honest answer of generation 1."""
    edition = Engine(policy.stack, {}).in_force
    match question:
        case Hooked():
            return edition.hook_verdict(question.hook, question.parties)
        case Started():
            return edition.start_verdict(question.label, question.running)
        case Exchanged():
            return edition.bind_verdict(*question.labels)


def _decision(index: int = -1, **fields: Any) -> Callable[[Verdict], Verdict]:
    def change(verdict: Verdict) -> Verdict:
        decisions = list(verdict.decisions)
        decisions[index] = replace(decisions[index], **fields)
        return replace(verdict, decisions=tuple(decisions))

    return change


def _request(**fields: Any) -> Callable[[Verdict], Verdict]:
    """Change the request of the last question, whose sides are both the parties' own."""
    return lambda v: _decision(request=replace(v.decisions[-1].request, **fields))(v)


def _answers(**fields: Any) -> Callable[[Verdict], Verdict]:
    def change(verdict: Verdict) -> Verdict:
        if verdict.admission:
            return replace(verdict, admission=(replace(verdict.admission[0], **fields),))
        answers = (replace(verdict.decisions[-1].answers[0], **fields),)
        return _decision(answers=answers)(verdict)

    return change


@pytest.mark.parametrize("question", [APART, TOGETHER, WALL, START])
@pytest.mark.parametrize(
    "change",
    [
        lambda v: replace(v, generation=2),
        lambda v: replace(v, hook="domain_pause"),
        lambda v: replace(v, allowed=not v.allowed),
        lambda v: replace(v, allowed=False, admission=(), decisions=()),
        lambda v: replace(v, admission=true(WALL).admission, decisions=true(APART).decisions),
        _answers(contexts=("one",)),
        _answers(contexts=("one", "two", "three")),
    ],
)
def test_what_does_not_hold_together_is_no_verdict(
    question: Question, change: Callable[[Verdict], Verdict]
) -> None:
    """Allowed or denied, of a hook or of a wall; the control is the verdict unchanged."""
    assert well_formed(question, true(question), 1)
    assert not well_formed(question, change(true(question)), 1)


@pytest.mark.parametrize("question", [APART, TOGETHER])
@pytest.mark.parametrize(
    "change",
    [
        _decision(answers=()),
        _decision(allowed=False, answers=()),
        _decision(generation=2),
        lambda v: _decision(allowed=not v.decisions[-1].allowed)(v),
        lambda v: replace(v, decisions=v.decisions[:-1]),
        lambda v: replace(v, decisions=v.decisions[::-1]),
        _request(subject=Label((("acm", "broker"),))),
        _request(target=Label((("acm", "broker"),))),
        _request(tclass="event"),
        _request(permissions=()),
    ],
)
def test_every_decision_answers_the_question_that_the_hook_asks(
    question: Question, change: Callable[[Verdict], Verdict]
) -> None:
    """Somebody answered each, and it is about these parties; the control as above."""
    assert well_formed(question, true(question), 1)
    assert not well_formed(question, change(true(question)), 1)


def test_a_denial_of_nobody_is_none() -> None:
    """Neither a decision nor a wall is refused without somebody's answer to explain it."""
    verdict = true(APART)
    mute = tuple(replace(each, allowed=False, answers=()) for each in verdict.decisions)
    assert not well_formed(APART, replace(verdict, decisions=mute), 1)
    assert not well_formed(WALL, Verdict("admit_bind", False, (), (), 1), 1)
    explanation = explain(replace(true(TOGETHER), allowed=False))
    assert (explanation.allowed, explanation.code) == (False, "NOT-DECIDED")
    assert explain(true(TOGETHER)).allowed  # the control


@pytest.mark.parametrize("sources", [[ACM], [XEN], [DUMMY], [ACM, XEN]])
def test_every_true_verdict_holds_together(sources: list[Any]) -> None:
    """Of every hook, between all labels, one that nobody knows among them."""
    policy = make_policy(sources)
    labels, seen = labels_of(policy), set[bool]()
    for hook in HOOKS.values():
        roles = sorted({side for ask in hook.asks for side in (ask.subject, ask.target)})
        roles = [role for role in roles if "->" not in role]
        for one, other in itertools.product(labels, repeat=2):
            question = Hooked(hook.name, dict.fromkeys(roles, one) | {roles[-1]: other})
            with contextlib.suppress(UnknownLabel):  # of what one makes toward nobody
                verdict = true(question, policy)
                assert well_formed(question, verdict, 1)
                seen.add(verdict.allowed)
    assert seen == {True, False}
