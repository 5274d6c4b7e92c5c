"""What a manager says is shown to people: as words, and never as something a terminal obeys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from skerry.control.failure import failed
from skerry.errors import DeciderUnavailable, Denied
from skerry.label import Label
from skerry.policy import messages
from skerry.policy.messages import Answer, Answered, Ask, Exchanged, Failure, Order, Touch, Touched
from skerry.policy.replies import denial
from skerry.policy.wellformed import MAX_TEXT
from skerry.xsm.explain import explain
from skerry.xsm.request import Answer as Said
from skerry.xsm.request import Rule, Verdict
from tests.support.remote import lied_to, until
from tests.unit.policy.banks import BANK_A, BANK_B, BANKS, run
from tests.unit.policy.test_half_formed import APART, _decision, true

HOSTILE = "\x1b]0;owned\x07 allowed\n\u202eno"
SHOWN = r"\x1b]0;owned\x07 allowed\n\u202eno"

Says = Callable[[Order, Answer], bytes]


def _is_shown(error: Denied) -> bool:
    """Say whether everything that a client is told of an error can be shown."""
    told = failed(error)
    explanation = str(told.explanation)
    lines = [told.message, told.fix, told.code, explanation, *told.text.split("\n")]
    return all(line.isprintable() for line in lines)


@pytest.mark.parametrize("code", ["DENIED", "DECIDER-UNAVAILABLE", HOSTILE])
def test_a_failure_is_told_in_words(code: str) -> None:
    """Whatever its code; the control is a failure in plain words, which is told as it is."""
    error = denial(Failure(code, HOSTILE, HOSTILE))
    assert (error.message, error.fix) == (SHOWN, SHOWN)
    assert _is_shown(error)
    plain = denial(Failure("CW-CONFLICT", "it's “so”", "é"))
    assert (plain.code, plain.message, plain.fix) == ("CW-CONFLICT", "it's “so”", "é")


def _everywhere(**fields: Any) -> Callable[[Verdict], Verdict]:
    """Change every answer of a verdict."""

    def changed(answers: tuple[Said, ...]) -> tuple[Said, ...]:
        return tuple(replace(answer, **fields) for answer in answers)

    def change(verdict: Verdict) -> Verdict:
        decisions = [replace(each, answers=changed(each.answers)) for each in verdict.decisions]
        return replace(verdict, decisions=tuple(decisions), admission=changed(verdict.admission))

    return change


def _says(change: Callable[[Verdict], Verdict]) -> Says:
    def says(order: Order, true: Answer) -> bytes:
        what = true.what
        if isinstance(order.what, Touch):
            assert isinstance(what, Touched)
            what = replace(what, verdict=change(what.verdict))
        elif isinstance(order.what, Ask):
            assert isinstance(what, Answered)
            verdict = what.answers[0][0]
            assert verdict is not None
            what = Answered(((change(verdict), None),))
        return messages.packed(Answer(true.number, what))

    return says


@pytest.mark.parametrize("field", ["reason", "rule"])
def test_a_verdict_is_explained_in_words(field: str) -> None:
    """A hook's, a wall's, and one that was closed meanwhile; also if it is very long."""
    long = HOSTILE + "x" * MAX_TEXT
    value: Any = Rule(long, long, 7) if field == "rule" else long
    change = _everywhere(**{field: value})

    async def scene() -> None:
        async with lied_to(BANKS, lambda _, true: messages.packed(true)) as (manager, liar, notes):
            await manager.touch(BANK_A, BANK_A)
            liar.says = _says(change)
            for verdict in (
                await manager.decide(APART.hook, APART.parties),
                await manager.admit_bind(BANK_A, BANK_B),
            ):
                explanation = explain(verdict)
                assert not explanation.allowed
                words = explanation.text()
                assert SHOWN in words
                assert all(line.isprintable() for line in words.split("\n"))
                assert len(words) < 4 * MAX_TEXT
            with pytest.raises(Denied) as caught:
                await manager.touch(BANK_A, BANK_B)
            assert _is_shown(caught.value)
            assert notes == []

    run(scene)


@pytest.mark.parametrize(
    "change",
    [
        _everywhere(module=HOSTILE),
        _everywhere(code=HOSTILE),
        _everywhere(code="X" * 65),
        _everywhere(granted=(HOSTILE,)),
        _everywhere(contexts=(HOSTILE, HOSTILE)),
        lambda v: _decision(
            0, request=replace(v.decisions[0].request, target=Label((("acm", HOSTILE),)))
        )(v),
    ],
)
def test_a_name_that_is_none_ends_the_manager(change: Callable[[Verdict], Verdict]) -> None:
    """Modules, codes, permissions, contexts and labels are names, or the answer has no form."""
    assert change(true(APART)) != true(APART)

    async def scene() -> None:
        async with lied_to(BANKS, _says(change)) as (manager, liar, notes):
            with pytest.raises(DeciderUnavailable, match="wrong form"):
                await manager.decide(APART.hook, APART.parties)
            assert notes == ["manager-lost"]
            liar.says = lambda _, true: messages.packed(true)
            await until(lambda: manager.state == "running")
            assert not (await manager.decide(APART.hook, APART.parties)).allowed  # the control

    run(scene)


def test_the_changes_above_are_of_denials() -> None:
    """So their explanations are what people see."""
    assert not true(APART).allowed
    assert not true(Exchanged((BANK_A, BANK_B))).allowed
