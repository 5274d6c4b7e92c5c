"""The policy manager in a process of its own gives the answers that it gives in process."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.label import MAX_LABEL, Label
from skerry.policy import messages
from skerry.policy.history import MemoryHistory, common, entries_of, merged
from skerry.policy.manager import PolicyManager
from skerry.policy.messages import Answer, Answered, Failure
from skerry.policy.source import Source, make_policy
from skerry.xsm.explain import Refused
from skerry.xsm.hooks import HOOKS
from skerry.xsm.request import Answer as Said
from skerry.xsm.request import Decision, Request, Rule, Verdict
from skerry.xsm.stack import History
from tests.support.remote import managed
from tests.unit.policy.banks import (
    ACM,
    BANK_A,
    BANK_B,
    BANKS,
    BROKER,
    DUMMY,
    XEN,
    labels_of,
    run,
    told,
)


@pytest.mark.parametrize(
    "sources",
    [[ACM], [XEN], [DUMMY], [ACM, XEN], [XEN, ACM, DUMMY]],
    ids=lambda sources: "+".join(source.file for source in sources),
)
def test_every_answer_is_the_one_that_is_given_in_process(sources: list[Source]) -> None:
    """Over every hook and pair of labels: verdicts, rules, access vectors, walls and failures."""
    policy = make_policy(sources)

    async def scene() -> None:
        local = PolicyManager(policy.stack, MemoryHistory())
        allowed = 0
        async with managed(policy) as (remote, _):
            for one, other in itertools.product(labels_of(policy), repeat=2):
                for hook, entry in HOOKS.items():
                    roles = {r for q in entry.asks for r in (q.subject, q.target) if "-" not in r}
                    order = sorted(roles)
                    parties = {role: (one, other)[n % 2] for n, role in enumerate(order)}
                    for _ in range(2):  # decided, then perhaps from the cache
                        found = await told(remote.decide(hook, parties))
                        assert found == await told(local.decide(hook, parties))
                    allowed += isinstance(found, Verdict) and found.allowed
                wall = remote.admit(one, (other, other)), local.admit(one, (other, other))
                assert await told(wall[0]) == await told(wall[1])
                exchange = remote.admit_bind(one, other), local.admit_bind(one, other)
                assert await told(exchange[0]) == await told(exchange[1])
        assert allowed

    run(scene)


NAMES = st.text(max_size=8)
WORDS = st.lists(NAMES, max_size=3).map(tuple)
LABELS = st.lists(st.tuples(NAMES, NAMES), max_size=2).map(lambda parts: Label(tuple(parts)))
ANSWERS = st.builds(
    Said,
    NAMES,
    st.booleans(),
    NAMES,
    NAMES,
    st.builds(Rule, NAMES, NAMES, st.integers(0, 1 << 40)),
    WORDS,
    WORDS,
    WORDS,
    st.booleans(),
    WORDS,
)
REQUESTS = st.builds(Request, LABELS, LABELS, NAMES, WORDS)
SOME = st.lists(ANSWERS, max_size=2).map(tuple)
DECISIONS = st.builds(Decision, REQUESTS, st.booleans(), SOME, st.integers(0, 1 << 40))
VERDICTS = st.builds(
    Verdict,
    NAMES,
    st.booleans(),
    st.lists(DECISIONS, max_size=2).map(tuple),
    SOME,
    st.integers(0, 1 << 40),
)


@given(VERDICTS, st.builds(Failure, NAMES, NAMES, NAMES))
def test_no_part_of_an_answer_is_lost_on_the_way(verdict: Verdict, failure: Failure) -> None:
    """Whatever a verdict holds, it holds at the other end."""
    sent = Answer(7, Answered(((verdict, None), (None, failure))))
    untrusted = bytearray(messages.packed(sent))
    body = messages.take(untrusted, messages.MAX_ANSWER)
    assert body is not None
    assert messages.answer(body) == sent
    assert untrusted == b""


HISTORIES = st.dictionaries(
    st.sampled_from("ab"),
    st.dictionaries(st.sampled_from("xyz"), st.frozensets(st.sampled_from("123")), min_size=1),
)


@given(HISTORIES, HISTORIES)
def test_histories_merge_into_what_either_holds(before: History, more: History) -> None:
    """Nothing is lost; where nothing is new it is the same history."""
    after = merged(before, more)
    assert merged(after, more) is after
    for module, text in {(m, t) for one in (before, more) for m in one for t in one[m]}:
        both = (one.get(module, {}).get(text, frozenset()) for one in (before, more))
        assert after[module][text] == frozenset().union(*both)


@given(HISTORIES)
def test_what_labels_have_all_touched_is_told_whole_and_nothing_else(history: History) -> None:
    """By each module that all have a part for; as entries it adds nothing to what they have."""
    labels = Label((("a", "x"),)), Label((("a", "y"), ("b", "z")))
    told = common(history, labels)
    known = history.get("a", {})
    both = known.get("x", frozenset()) & known.get("y", frozenset())
    assert told == ({"a": both} if both else {})
    assert merged(history, entries_of(told, labels)) is history


def test_a_refused_touch_explains_itself() -> None:
    """The wall's own words come through the process."""

    async def scene() -> None:
        async with managed(BANKS) as (manager, _):
            await manager.touch(BROKER, BANK_A)
            local = PolicyManager(BANKS.stack, MemoryHistory())
            await local.touch(BROKER, BANK_A)
            with pytest.raises(Refused) as far:
                await manager.touch(BROKER, BANK_B)
            with pytest.raises(Refused) as near:
                await local.touch(BROKER, BANK_B)
            assert far.value.explanation == near.value.explanation

    run(scene)


def test_the_longest_answers_to_one_order_fit() -> None:
    """The longest labels of three modules, in the widest characters, on all sides."""
    text = "\U0001f512" * MAX_LABEL
    whole = Label(tuple((module, text) for module in ("acm", "dummy", "flask")))
    said = Said(
        "flask", False, "CODE", text * 2, granted=("permission",) * 40, contexts=(text,) * 2
    )
    request = Request(whole, whole, "event", ("bind",) * 4)
    decision = Decision(request, False, (said,) * 3, 1)
    verdict = Verdict("channel_two_way", False, (decision,) * 8, (), 1)
    answers = ((verdict, None),) * messages.MAX_QUESTIONS
    assert messages.packed(Answer(1, Answered(answers)))
