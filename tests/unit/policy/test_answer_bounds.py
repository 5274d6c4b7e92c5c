"""What a manager's answer may take of the node: counted before there is room made for it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import msgspec
import pytest

from skerry.errors import WireError
from skerry.label import MAX_FEW, Label
from skerry.policy import messages, verdicts
from skerry.policy.messages import (
    MAX_CODE,
    MAX_MODULES,
    MAX_QUESTIONS,
    MAX_TOUCHED,
    MAX_WORDS,
    Answer,
    Answered,
    Begin,
    Failure,
    Made,
    Order,
    Touched,
)
from skerry.policy.service import Service
from skerry.policy.source import Source
from skerry.policy.verdicts import Verdicts
from skerry.xsm.hooks import HOOKS
from skerry.xsm.request import Answer as Said
from skerry.xsm.request import Decision, Request, Verdict
from tests.support.remote import kinds, lied_to
from tests.unit.policy.banks import BANK_A, BANKS, BROKER, NARROWER, PAUSE, run
from tests.unit.policy.test_half_formed import APART, true

SAID = Said("acm", True, "YES", "so")
WALL = Verdict("admit_bind", True, (), (SAID,), 1)
MakeAnswer = Callable[[int], Failure | Made | Answered | Touched]


def _of(verdict: Verdict) -> Answered:
    return Answered(((verdict, None),))


def _decided(label: Label, *permissions: str) -> Answered:
    decision = Decision(Request(label, label, "event", permissions), True, (SAID,), 1)
    return _of(Verdict("domain_pause", True, (decision,), (), 1))


def _words(number: int) -> tuple[str, ...]:
    return tuple(str(each) for each in range(number))


@pytest.mark.parametrize(
    ("made", "most"),
    [
        (lambda n: Answered(((None, None),) * n), MAX_QUESTIONS),
        (lambda n: _of(Verdict("admit_bind", True, (), (SAID,) * n, 1)), MAX_FEW),
        (lambda n: _of(Verdict("", True, true(APART).decisions[:1] * n, (), 1)), MAX_FEW),
        (lambda n: _decided(Label((("", ""),) * n)), MAX_FEW),
        (lambda n: _decided(BROKER, *_words(n)), MAX_FEW),
        *(
            (
                lambda n, field=field: _of(
                    msgspec.structs.replace(
                        WALL, admission=(msgspec.structs.replace(SAID, **{field: _words(n)}),)
                    )
                ),
                MAX_FEW,
            )
            for field in ("granted", "auditallow", "dontaudit", "contexts")
        ),
        (lambda n: Touched(WALL, dict.fromkeys(_words(n), frozenset[str]())), MAX_MODULES),
        (lambda n: Touched(WALL, {"acm": frozenset(_words(n))}), MAX_TOUCHED),
        (lambda n: Failure("x" * n, "", ""), MAX_CODE),
        (lambda n: Failure("", "x" * n, ""), MAX_WORDS),
        (lambda n: Failure("", "", "x" * n), MAX_WORDS),
        (lambda n: Made(1, "x" * n), MAX_CODE),
    ],
)
def test_an_answer_that_lists_too_much_is_none_and_takes_no_room(
    made: MakeAnswer, most: int
) -> None:
    """One more than there may be of anything is refused; a hundred thousand cost nothing.

    The control: as many as there may be are read.
    """
    whole = Answer(1, made(most))
    assert messages.answer(msgspec.msgpack.encode(whole)) == whole
    with pytest.raises(WireError):
        messages.answer(msgspec.msgpack.encode(Answer(1, made(most + 1))))
    if most >= MAX_CODE:
        return
    body = msgspec.msgpack.encode(Answer(1, made(100_000)))
    tracemalloc.start()
    with pytest.raises(WireError):
        messages.answer(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_every_hook_fits() -> None:
    """What may be listed is enough for what is asked."""
    for hook in HOOKS.values():
        assert len(hook.asks) <= MAX_FEW
        assert all(len(ask.permissions) <= MAX_FEW for ask in hook.asks)


def test_a_long_verdict_is_believed_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for each time, of the policy in force and of a candidate, also of its wall."""
    asked = {"source": BROKER, "sink": BANK_A}

    async def orders(most: int) -> list[str]:
        monkeypatch.setattr(verdicts, "MAX_KEPT", most)
        async with lied_to(BANKS, lambda _, true: messages.packed(true)) as (manager, liar, _):
            candidate = manager.candidate(NARROWER.stack, NARROWER.sources)
            await candidate.foresee([])
            for _ in range(2):
                assert (await manager.decide("domain_pause", PAUSE)).allowed
                assert not (await candidate.decide("channel_two_way", asked)).allowed
                assert (await candidate.admit_bind(BROKER, BANK_A)).allowed
            return kinds(liar.orders)[2:]

    async def scene() -> None:
        assert await orders(verdicts.MAX_KEPT) == ["Ask"] * 3  # the control
        assert await orders(100) == ["Ask"] * 6

    run(scene)


def test_as_many_verdicts_as_may_be_are_kept_up_to_their_longest() -> None:
    """The bound holds in bytes as they are sent; one byte over it is not kept."""
    kept = Verdicts()
    verdict = Verdict("domain_pause", True, (), (msgspec.structs.replace(SAID, reason=""),), 1)
    room = verdicts.MAX_KEPT - len(msgspec.msgpack.encode(verdict)) - 2  # a longer head
    for more, expected in ((0, 1), (1, 1)):
        said = msgspec.structs.replace(SAID, reason="x" * (room + more))
        kept.put((more,), msgspec.structs.replace(verdict, admission=(said,)))
        assert len(kept) == expected


def test_a_manager_cuts_its_own_words_to_what_is_read() -> None:
    """A policy with a thousand mistakes fails in one readable answer."""
    wrong = Source("wrong.toml", "".join(f"key{n} = 1\n" for n in range(1000)).encode())
    failed = Service().answer(Order(1, Begin(1, (wrong,), {})))
    assert isinstance(failed.what, Failure)
    assert (failed.what.code, len(failed.what.message)) == ("POLICY-INVALID", MAX_WORDS)
    assert messages.answer(msgspec.msgpack.encode(failed)) == failed
