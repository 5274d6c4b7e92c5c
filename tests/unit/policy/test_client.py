"""A policy manager in a process of its own that dies, freezes, or is given another policy."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from skerry.errors import DeciderUnavailable, StaleGeneration
from skerry.label import Label
from skerry.policy import client as client_module
from skerry.policy import messages
from skerry.policy import verdicts as verdicts_module
from skerry.policy.client import RemoteManager
from skerry.policy.history import FileHistory, MemoryHistory
from skerry.policy.manager import PolicyManager
from skerry.policy.source import NewBooleans, changed, make_policy
from skerry.xsm.explain import Refused
from tests.support.remote import Host, kinds, lied_to, managed, until
from tests.unit.policy.banks import (
    BANK_A,
    BANK_B,
    BANKS,
    BROKER,
    NARROWER,
    PAUSE,
    TALK,
    TEXTS,
    XEN,
    label,
    run,
)


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
                manager.candidate(NARROWER.stack, NARROWER.sources)
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
            candidate = manager.candidate(NARROWER.stack, NARROWER.sources)
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


def test_a_manager_that_can_not_be_started_is_tried_again_where_a_node_goes_on() -> None:
    """Whatever keeps it from starting; where a node begins, that is an error (control)."""

    async def scene() -> None:
        host = Host()
        host.broken = True
        manager = RemoteManager(host.start, BANKS, MemoryHistory(), host.note)
        with pytest.raises(OSError, match="no process"):
            await manager.begin()
        await manager.resume()
        assert (manager.state, host.events()) == ("lost", ["manager-lost"])
        assert "no process can be made" in str(host.notes[0][1]["why"])
        host.broken = False
        await until(lambda: manager.state == "running")
        assert (await manager.decide("channel_two_way", TALK)).allowed
        await manager.close()
        host.close()

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
            candidate = manager.candidate(NARROWER.stack, NARROWER.sources)
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
            candidate = manager.candidate(NARROWER.stack, NARROWER.sources)
            await candidate.foresee({("channel_two_way", BROKER, BANK_A)})
            local = PolicyManager(NARROWER.stack, MemoryHistory(), generation=2)
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
            candidate = manager.candidate(NARROWER.stack, NARROWER.sources)
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
            candidate = manager.candidate(NARROWER.stack, NARROWER.sources)
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
            candidate = manager.candidate(NARROWER.stack, NARROWER.sources)
            await candidate.foresee(pairs)
            asked = len(liar.orders)
            for hook, source, sink in pairs:
                await candidate.decide(hook, {"source": source, "sink": sink})
            assert len(liar.orders) == asked

    run(scene)
