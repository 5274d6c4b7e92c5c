"""A policy manager that says anything: nothing is believed but answers, and all is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from skerry.errors import DeciderUnavailable
from skerry.policy import link as link_module
from skerry.policy import messages
from skerry.policy import verdicts as verdicts_module
from skerry.policy.client import RemoteManager
from skerry.policy.history import MemoryHistory
from skerry.policy.messages import Answer, Answered, Ask, Failure, Order, Touch
from skerry.policy.source import Policy
from skerry.xsm.request import Verdict
from tests.support.remote import Host, Liar, framed, lied_to, managed, until
from tests.unit.policy.banks import (
    BANK_A,
    BANKS,
    BROKER,
    NARROWER,
    PAUSE,
    TALK,
    label,
    run,
)


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


_LIES: list[Callable[[Order, Answer], bytes]] = [
    lambda order, true: framed(b"\xc1 no message"),
    lambda order, true: framed(b"\x92\x01" * 5000),
    lambda order, true: b"\xff\xff\xff\xff",
    lambda order, true: b"\0\0\0\0",
    lambda order, true: messages.packed(Answer(order.number + 1, true.what)),
    lambda order, true: messages.packed(Answer(0, true.what)),
    lambda order, true: messages.packed(Answer(order.number, Answered(()))),
    lambda order, true: messages.packed(Answer(order.number, Answered(((None, None),)))),
    lambda order, true: messages.packed(Answer(order.number, messages.Made(1, "x"))),
]


@pytest.mark.parametrize(
    "says",
    [
        *_LIES,
        lambda order, true: messages.packed(Answer(1, true.what)),
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


@pytest.mark.parametrize(
    "says",
    [
        *_LIES,
        lambda order, true: 2 * messages.packed(true),
        lambda order, true: messages.packed(true) + b"\0\0\0\0",
    ],
)
def test_a_manager_that_begins_with_a_lie_does_not_begin_and_is_replaced(
    says: Callable[[Order, Answer], bytes],
) -> None:
    """Also where the lie follows the true answer in one piece; a fresh node is refused."""

    async def scene() -> None:
        liar, notes = Liar(says, begins=True), list[str]()

        def note(event: str, _: Mapping[str, object]) -> None:
            notes.append(event)

        manager = RemoteManager(liar.start, BANKS, MemoryHistory(), note)
        with pytest.raises(DeciderUnavailable):
            await manager.begin()
        await manager.resume()
        assert (manager.state, notes) == ("lost", ["manager-lost"])
        liar.says = lambda _, true: messages.packed(true)
        await until(lambda: manager.state == "running")
        assert (await manager.decide("channel_two_way", TALK)).allowed  # the control
        assert notes == ["manager-lost", "manager-back"]
        await manager.close()
        await liar.close()

    run(scene)


def test_a_manager_that_did_not_take_the_policy_is_replaced() -> None:
    """Its answer to an install is looked at; the next manager begins with the policy in force."""

    def says(order: Order, true: Answer) -> bytes:
        if isinstance(order.what, messages.Install):
            return messages.packed(Answer(order.number, Failure("DENIED", "no", "")))
        return messages.packed(true)

    async def scene() -> None:
        async with lied_to(BANKS, says) as (manager, _, notes):
            candidate = manager.candidate(NARROWER.stack, NARROWER.sources)
            await candidate.foresee([])
            manager.install(candidate)
            await until(lambda: notes == ["manager-lost", "manager-back"])
            assert (await manager.decide("channel_two_way", TALK)).generation == 2

    run(scene)


def test_a_manager_that_makes_another_policy_does_not_begin() -> None:
    """Its digest must be that of the stack in this process."""
    other = Policy(BANKS.sources, NARROWER.stack)

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


def test_the_manager_answers_orders_in_a_wrong_state_with_denials() -> None:
    """Before it has a policy, and for candidates that it does not know."""
    from skerry.policy.service import Service

    service = Service()
    early = service.answer(Order(1, Touch((BROKER, BANK_A)))).what
    assert isinstance(early, Failure)
    assert early.code == "DECIDER-UNAVAILABLE"
    service.answer(Order(2, messages.Begin(1, BANKS.sources, {})))
    offered = (messages.Offered("f", None, {}),)
    for number in (3, 4, 5):
        service.answer(Order(number, messages.Propose(number, offered, loading=False)))
    late = service.answer(Order(6, Ask(3, ()))).what
    assert isinstance(late, Failure)
    assert late.code == "GENERATION-STALE"
    assert isinstance(service.answer(Order(7, Ask(5, ()))).what, Answered)


def test_what_is_being_loaded_is_not_forgotten_for_what_is_only_tried() -> None:
    """Dry runs and plans take places from each other; a load takes that of the load before it."""
    from skerry.policy.service import Service

    service = Service()
    service.answer(Order(1, messages.Begin(1, BANKS.sources, {})))
    offered = (messages.Offered("f", None, {}),)

    def propose(number: int, loading: bool) -> None:
        service.answer(Order(number, messages.Propose(number, offered, loading)))

    def is_held(number: int) -> bool:
        return isinstance(service.answer(Order(99, Ask(number, ()))).what, Answered)

    propose(2, loading=True)
    for number in range(3, 9):
        propose(number, loading=False)
    assert [number for number in range(2, 9) if is_held(number)] == [2, 7, 8]
    propose(9, loading=True)
    assert [number for number in range(2, 10) if is_held(number)] == [7, 8, 9]


def test_a_manager_that_floods_is_ended_by_its_second_answer() -> None:
    """An order is answered once, so what it says beyond that costs the node one message.

    The control: a manager that answers once is asked again and again.
    """

    async def scene(times: int, denied: bool) -> None:
        def says(order: Order, true: Answer) -> bytes:
            return messages.packed(true) * times

        async with lied_to(BANKS, says) as (manager, _, notes):
            assert (await manager.decide("domain_pause", PAUSE)).allowed
            if denied:
                await until(lambda: "manager-lost" in notes)
            else:
                assert (await manager.decide("channel_two_way", TALK)).allowed
                assert notes == []

    run(lambda: scene(1000, True))
    run(lambda: scene(1, False))
