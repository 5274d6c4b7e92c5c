"""The policy manager in a process of its own: the same answers, and denials when it fails."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import DeciderUnavailable, Denied, StaleGeneration
from skerry.label import MAX_LABEL, Label
from skerry.policy import client as client_module
from skerry.policy import link as link_module
from skerry.policy import messages
from skerry.policy import verdicts as verdicts_module
from skerry.policy.client import RemoteManager
from skerry.policy.history import FileHistory, MemoryHistory, grown, merged
from skerry.policy.manager import PolicyManager
from skerry.policy.messages import Answer, Answered, Ask, Failure, Order, Touch
from skerry.policy.source import NewBooleans, Policy, Source, changed, make_policy
from skerry.xsm.explain import Refused
from skerry.xsm.hooks import HOOKS
from skerry.xsm.request import Answer as Said
from skerry.xsm.request import Decision, Request, Rule, Verdict
from skerry.xsm.stack import History
from tests.support.remote import Host, framed, kinds, lied_to, managed, until
from tests.unit.policy.samples import TOML

DATA = Path(__file__).parents[1] / "policydb/data"
ACM = Source("banks.toml", TOML.encode())
XEN = Source("xen.30", (DATA / "xen.30").read_bytes())
DUMMY = Source("dummy", b"")
BANKS = make_policy([ACM])
WIDER = make_policy(
    [
        Source(
            "w.toml", TOML.replace('[labels.bank-a]\nste = ["bank-a"]', "[labels.bank-a]").encode()
        )
    ]
)
TEXTS = {
    "acm": ("dom0", "bank-a", "bank-b", "broker", "nobody"),
    "flask": (
        "system_u:system_r:dom0_t",
        "user_1:vm_r:guest_t",
        "user_2:vm_r:guest_t",
        "user_1:vm_r:child_t",
        "user_1:vm_r:nobody_t",
    ),
    "dummy": ("dom0", "a", "b", "c", "d"),
}


def label(name: str) -> Label:
    """Return an ACM label."""
    return Label((("acm", name),))


BROKER, BANK_A, BANK_B = label("broker"), label("bank-a"), label("bank-b")
TALK = {"source": BROKER, "sink": BANK_A}
PAUSE = {"operator": label("dom0"), "domain": BROKER}


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scene, which must not hang."""

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scene()

    asyncio.run(bounded())


def labels_of(policy: Policy) -> list[Label]:
    """Return labels for a stack, one that it does not know among them."""
    names = sorted(policy.stack.names)
    return [
        Label(tuple((name, TEXTS[name][n]) for name in names)) for n in range(len(TEXTS["acm"]))
    ]


async def told(asked: Coroutine[Any, Any, Verdict]) -> Verdict | tuple[str, str, str]:
    """Return a verdict, or what the denial says."""
    try:
        return await asked
    except Denied as error:
        return error.code, error.message, error.fix


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
def test_what_a_history_gained_is_what_is_missing_from_the_one_before(
    before: History, more: History
) -> None:
    """The entries that changed, merged into the old history, give the new one."""
    after = merged(before, more)
    assert merged(before, grown(after, before)) == after
    assert merged(after, more) is after
    assert grown(before, before) == {}


def test_a_dead_manager_denies_at_once_and_cached_allows_stand() -> None:
    """After a kill no question waits; what was decided is still answered; the next one is back."""

    async def scene() -> None:
        async with managed(BANKS) as (manager, host):
            allowed = await manager.decide("domain_pause", PAUSE)
            assert allowed.allowed
            host.processes[-1].kill()
            began = time.monotonic()
            with pytest.raises(DeciderUnavailable):
                await manager.decide("domain_unpause", PAUSE)
            with pytest.raises(DeciderUnavailable):
                await manager.touch(BROKER, BANK_A)
            with pytest.raises(DeciderUnavailable):
                manager.candidate(WIDER.stack, WIDER.sources)
            assert time.monotonic() - began < 0.5
            assert manager.state == "lost"
            assert await manager.decide("domain_pause", PAUSE) is allowed
            await until(lambda: manager.state == "running")
            assert (await manager.decide("domain_unpause", PAUSE)).allowed
            assert host.events() == ["manager-lost", "manager-back"]

    run(scene)


def test_a_restarted_manager_has_policy_generation_and_history() -> None:
    """A wall that was closed, and a policy that was loaded, hold in the next process too."""

    async def scene() -> None:
        async with managed(BANKS) as (manager, host):
            await manager.touch(BROKER, BANK_A)
            candidate = manager.candidate(WIDER.stack, WIDER.sources)
            await candidate.foresee([])
            assert manager.install(candidate) == 2
            host.processes[-1].kill()
            await until(lambda: host.events() == ["manager-lost", "manager-back"])
            assert manager.generation == 2
            verdict = await manager.decide("channel_two_way", TALK)
            assert (verdict.generation, verdict.allowed) == (2, False)  # under BANKS they may
            wall = await manager.admit_bind(BROKER, BANK_B)
            assert wall.admission[0].code == "CW-HISTORY-CONFLICT"

    run(scene)


def test_a_frozen_manager_denies_and_its_late_answers_bind_nothing() -> None:
    """The first question waits its time, the next none; thawed it answers again."""

    async def scene() -> None:
        async with managed(BANKS, answer_s=0.3) as (manager, host):
            await manager.decide("domain_pause", PAUSE)
            os.kill(host.pid, signal.SIGSTOP)
            with pytest.raises(DeciderUnavailable, match="in time"):
                await manager.decide("channel_two_way", TALK)
            assert manager.state == "frozen"
            began = time.monotonic()
            for _ in range(50):
                with pytest.raises(DeciderUnavailable, match="does not answer"):
                    await manager.decide("channel_two_way", TALK)
            assert time.monotonic() - began < 0.2
            assert (await manager.decide("domain_pause", PAUSE)).allowed
            os.kill(host.pid, signal.SIGCONT)
            await until(lambda: manager.state == "running")
            assert len(manager._verdicts) == 1  # the late answer is not among them
            assert (await manager.decide("channel_two_way", TALK)).allowed
            assert host.events() == ["manager-lost", "manager-back"]
            assert len(host.processes) == 1

    run(scene)


def test_kills_under_load_end_every_question_and_lose_no_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question is answered or denied; each exchange that was let through is on disk."""
    monkeypatch.setattr(client_module, "LAST_PAUSE_S", 0.05)
    path = tmp_path / "history"

    async def scene() -> None:
        done: list[Label] = []

        async def exchange(manager: RemoteManager, bank: Label) -> bool:
            try:
                await manager.decide("channel_two_way", {"source": BROKER, "sink": bank})
                await manager.touch(BROKER, bank)
            except DeciderUnavailable:
                return False
            except Refused:
                return True
            done.append(bank)
            return True

        async with managed(BANKS, FileHistory(path)) as (manager, host):
            for round_ in range(6):
                banks = [BANK_A, BANK_B][:: (-1) ** (round_ % 2)] * 30
                asked = [asyncio.ensure_future(exchange(manager, bank)) for bank in banks]
                await asyncio.sleep(0.0005 * round_)
                host.processes[-1].kill()
                await asyncio.gather(*asked)
                # After each kill, what was let through so far is in the file.
                kept = FileHistory(path).load().get("acm", {}).get("broker", frozenset())
                assert {bank.of("acm") for bank in done} <= kept
                back = ["manager-lost", "manager-back"] * (round_ + 1)
                await until(lambda expected=back: host.events() == expected)  # type: ignore[misc]
            assert await exchange(manager, BANK_A)
            assert await exchange(manager, BANK_B)
        assert len(set(done)) == 1  # never both sides of the wall

    run(scene)


def test_a_policy_comes_into_force_at_once_on_both_sides() -> None:
    """The next question is under the new one, and what the old one said is not kept."""

    async def scene() -> None:
        async with managed(BANKS) as (manager, _):
            first = await manager.decide("channel_two_way", TALK)
            candidate = manager.candidate(WIDER.stack, WIDER.sources)
            other = manager.candidate(BANKS.stack, BANKS.sources)
            await candidate.foresee([])
            await other.foresee([])
            unheard = asyncio.ensure_future(manager.decide("memory_both", TALK))
            await asyncio.sleep(0)
            manager.install(candidate)
            second = await manager.decide("channel_two_way", TALK)
            assert (first.allowed, first.generation) == (True, 1)
            assert (second.allowed, second.generation) == (False, 2)
            assert (await unheard).generation == 1
            assert (await manager.decide("memory_both", TALK)).generation == 2
            with pytest.raises(StaleGeneration):
                manager.install(other)

    run(scene)


def test_a_boolean_changes_the_policy_in_the_process() -> None:
    """A change of booleans sends no policy again, and a lost manager gets both."""
    policy = make_policy([XEN])
    set_ = changed(policy, NewBooleans({"guests_may_share": False}))
    dom0, guest = (Label((("flask", TEXTS["flask"][n]),)) for n in (0, 1))
    talk = {"source": dom0, "sink": guest}

    async def scene() -> None:
        before = PolicyManager(policy.stack, MemoryHistory())
        after = PolicyManager(set_.stack, MemoryHistory(), generation=2)
        async with managed(policy) as (manager, host):
            first = await manager.decide("memory_both", talk)
            assert first == await before.decide("memory_both", talk)
            candidate = manager.candidate(set_.stack, set_.sources)
            await candidate.foresee([("channel_two_way", dom0, guest)])
            manager.install(candidate)
            second = await manager.decide("memory_both", talk)
            assert second == await after.decide("memory_both", talk)
            assert second.decisions[-1].answers != first.decisions[-1].answers
            host.processes[-1].kill()
            await until(lambda: host.events() == ["manager-lost", "manager-back"])
            assert await manager.decide("memory_read", talk) == await after.decide(
                "memory_read", talk
            )

    run(scene)


def test_what_was_foreseen_is_answered_without_a_turn_of_the_loop() -> None:
    """Then nobody comes in between, even while the manager is dead; a grown history asks anew."""

    async def scene() -> None:
        async with managed(BANKS) as (manager, host):
            candidate = manager.candidate(WIDER.stack, WIDER.sources)
            await candidate.foresee({("channel_two_way", BROKER, BANK_A)})
            local = PolicyManager(WIDER.stack, MemoryHistory(), generation=2)
            host.processes[-1].kill()
            await until(lambda: manager.state == "lost")
            for asked, true in (
                (candidate.decide("channel_two_way", TALK), local.decide("channel_two_way", TALK)),
                (candidate.admit_bind(BROKER, BANK_A), local.admit_bind(BROKER, BANK_A)),
            ):
                with pytest.raises(StopIteration) as ended:
                    asked.send(None)
                assert ended.value.value == await true
            with pytest.raises(DeciderUnavailable):
                await candidate.admit_bind(BROKER, BANK_B)
            await until(lambda: manager.state == "running")
            with pytest.raises(DeciderUnavailable, match="restarted"):
                manager.install(candidate)

    run(scene)


def test_a_grown_history_makes_a_candidate_ask_again() -> None:
    """What was said of a wall before an exchange is not believed after it."""

    async def scene() -> None:
        async with managed(BANKS) as (manager, _):
            candidate = manager.candidate(WIDER.stack, WIDER.sources)
            await candidate.foresee({("channel_two_way", BROKER, BANK_B)})
            assert (await candidate.admit_bind(BROKER, BANK_B)).allowed
            await manager.touch(BROKER, BANK_A)
            assert not (await candidate.admit_bind(BROKER, BANK_B)).allowed

    run(scene)


def test_foreseen_questions_are_asked_together() -> None:
    """A hundred channels, two questions each, need thirteen orders; to foresee them again, none."""
    pairs = {
        ("channel_two_way", label(f"n{a}"), label(f"n{b}")) for a in range(10) for b in range(10)
    }

    async def scene() -> None:
        async with lied_to(BANKS, lambda _, true: messages.packed(true)) as (manager, liar, _):
            candidate = manager.candidate(WIDER.stack, WIDER.sources)
            await candidate.foresee(pairs)
            assert kinds(liar.orders) == ["Begin", "Propose", *["Ask"] * 13]
            asked = len(liar.orders)
            await candidate.foresee(pairs)
            assert len(liar.orders) == asked

    run(scene)


def test_as_much_as_there_is_to_judge_is_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """More channels than verdicts are kept otherwise are still asked about once."""
    monkeypatch.setattr(verdicts_module.Verdicts.__init__, "__defaults__", (2,))
    pairs = {("channel_two_way", label("x"), label(f"n{n}")) for n in range(9)}

    async def scene() -> None:
        async with lied_to(BANKS, lambda _, true: messages.packed(true)) as (manager, liar, _):
            candidate = manager.candidate(WIDER.stack, WIDER.sources)
            await candidate.foresee(pairs)
            asked = len(liar.orders)
            for hook, source, sink in pairs:
                await candidate.decide(hook, {"source": source, "sink": sink})
            assert len(liar.orders) == asked

    run(scene)


def _wrong(change: Callable[[Verdict], Verdict]) -> Callable[[Order, Answer], bytes]:
    def says(order: Order, true: Answer) -> bytes:
        assert isinstance(true.what, Answered)
        (((verdict, failure),),) = (true.what.answers,)
        assert verdict is not None
        return messages.packed(Answer(true.number, Answered(((change(verdict), failure),))))

    return says


def _replaced(**fields: object) -> Callable[[Verdict], Verdict]:
    import msgspec

    return lambda verdict: msgspec.structs.replace(verdict, **fields)


@pytest.mark.parametrize(
    "says",
    [
        lambda order, true: framed(b"\xc1 no message"),
        lambda order, true: framed(b"\x92\x01" * 5000),
        lambda order, true: b"\xff\xff\xff\xff",
        lambda order, true: b"\0\0\0\0",
        lambda order, true: messages.packed(Answer(order.number + 1, true.what)),
        lambda order, true: messages.packed(Answer(0, true.what)),
        lambda order, true: messages.packed(Answer(order.number, Answered(()))),
        lambda order, true: messages.packed(Answer(order.number, Answered(((None, None),)))),
        lambda order, true: messages.packed(Answer(order.number, messages.Made(1, "x"))),
        _wrong(_replaced(generation=2)),
        _wrong(_replaced(hook="domain_pause")),
        _wrong(_replaced(allowed=False)),
        _wrong(_replaced(decisions=())),
        _wrong(lambda verdict: _replaced(decisions=verdict.decisions[:-1])(verdict)),
    ],
)
def test_garbage_from_a_manager_is_a_denial_and_ends_it(
    says: Callable[[Order, Answer], bytes],
) -> None:
    """Nothing is believed that is not an answer to what was asked; another one is started."""

    async def scene() -> None:
        async with lied_to(BANKS, says) as (manager, liar, notes):
            with pytest.raises(DeciderUnavailable):
                await manager.decide("channel_two_way", TALK)
            assert (manager.state, notes) == ("lost", ["manager-lost"])
            liar.says = lambda _, true: messages.packed(true)
            await until(lambda: manager.state == "running")
            assert (await manager.decide("channel_two_way", TALK)).allowed  # the control

    run(scene)


def test_a_manager_that_did_not_take_the_policy_is_replaced() -> None:
    """Its answer to an install is looked at; the next manager begins with the policy in force."""

    def says(order: Order, true: Answer) -> bytes:
        if isinstance(order.what, messages.Install):
            return messages.packed(Answer(order.number, Failure("DENIED", "no", "")))
        return messages.packed(true)

    async def scene() -> None:
        async with lied_to(BANKS, says) as (manager, _, notes):
            candidate = manager.candidate(WIDER.stack, WIDER.sources)
            await candidate.foresee([])
            manager.install(candidate)
            await until(lambda: notes == ["manager-lost", "manager-back"])
            assert (await manager.decide("channel_two_way", TALK)).generation == 2

    run(scene)


def test_a_manager_that_makes_another_policy_does_not_begin() -> None:
    """Its digest must be that of the stack in this process."""
    other = Policy(BANKS.sources, WIDER.stack)

    async def scene() -> None:
        host = Host()
        manager = RemoteManager(host.start, other, MemoryHistory(), host.note)
        with pytest.raises(DeciderUnavailable, match="another policy"):
            await manager.begin()
        host.close()

    run(scene)


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One question more than may wait is denied at once."""
    monkeypatch.setattr(link_module, "MAX_WAITING", 3)

    async def scene() -> None:
        async with lied_to(BANKS, lambda order, true: None) as (manager, liar, _):
            waiting = [asyncio.ensure_future(manager.admit(BROKER, ())) for _ in range(3)]
            await until(lambda: len(liar.orders) == 4)
            with pytest.raises(DeciderUnavailable, match="3 questions wait"):
                await manager.admit(BROKER, ())
            for task in waiting:
                task.cancel()

    run(scene)


def test_kept_verdicts_are_bounded_and_only_what_may_be_cached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The oldest makes room; a hook that is asked each time, and a wall, are asked each time."""
    monkeypatch.setattr(verdicts_module.Verdicts.__init__, "__defaults__", (2,))
    load = {"operator": label("dom0"), "security": label("security")}

    async def scene() -> None:
        async with lied_to(BANKS, lambda _, true: messages.packed(true)) as (manager, liar, _):
            for hook in ("domain_pause", "domain_unpause", "domain_destroy"):
                await manager.decide(hook, PAUSE)
            assert len(manager._verdicts) == 2
            asked = len(liar.orders)
            await manager.decide("domain_destroy", PAUSE)
            assert len(liar.orders) == asked
            await manager.decide("domain_pause", PAUSE)
            for _ in range(2):
                await manager.decide("policy_load", load)
                await manager.admit_bind(BROKER, BANK_A)
            assert len(liar.orders) == asked + 5

    run(scene)


def test_a_lost_manager_is_waited_for_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause doubles to its end, whatever keeps the next one from starting."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def quick(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async def scene() -> None:
        async with managed(BANKS) as (_, host):
            host.broken = True
            monkeypatch.setattr(asyncio, "sleep", quick)
            host.processes[-1].kill()
            for _ in range(1000):
                if len(pauses) >= 9:
                    break
                await sleep(0.01)
            monkeypatch.undo()
            host.broken = False

    run(scene)
    assert pauses[:9] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


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


def test_the_manager_answers_orders_in_a_wrong_state_with_denials() -> None:
    """Before it has a policy, and for candidates that it does not know."""
    from skerry.policy.service import Service

    service = Service()
    early = service.answer(Order(1, Touch(BROKER, BANK_A))).what
    assert isinstance(early, Failure)
    assert early.code == "DECIDER-UNAVAILABLE"
    service.answer(Order(2, messages.Begin(1, BANKS.sources, {})))
    for number in (3, 4, 5):
        service.answer(Order(number, messages.Propose(number, (messages.Offered("f", None, {}),))))
    late = service.answer(Order(6, Ask(3, ()))).what
    assert isinstance(late, Failure)
    assert late.code == "GENERATION-STALE"
    assert isinstance(service.answer(Order(7, Ask(5, ()))).what, Answered)


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
