"""What a node's wall remembers of its exchanges, whatever becomes of the manager's answers."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from skerry.errors import DeciderUnavailable, Denied
from skerry.policy import messages
from skerry.policy.client import RemoteManager
from skerry.policy.history import FileHistory, MemoryHistory
from skerry.policy.messages import MAX_TOUCHED, Answer, Order, Touched
from tests.support.remote import lied_to, managed, until
from tests.unit.policy.banks import BANK_A, BANK_B, BANKS, BROKER, run


async def _replaced(manager: RemoteManager) -> None:
    """Have the manager's process end, and wait for the next one."""
    manager.link.end("killed")
    await until(lambda: manager.state == "running")


@pytest.mark.parametrize("unheard", ["late", "cancelled"])
def test_an_exchange_whose_first_answer_nobody_heard_is_remembered(unheard: str) -> None:
    """The manager counted it already when it is asked again; the wall stands all the same.

    The control: before, and in a node that exchanged nothing, the wall's other side is open.
    """

    async def scene() -> None:
        honest = lied_to(BANKS, lambda _, true: messages.packed(true), answer_s=0.2)
        async with honest as (manager, liar, _):
            await _replaced(manager)
            assert (await manager.admit_bind(BROKER, BANK_B)).allowed
            liar.speaks.clear()
            first = asyncio.ensure_future(manager.touch(BROKER, BANK_A))
            if unheard == "cancelled":
                await asyncio.sleep(0.05)
                first.cancel()
            with contextlib.suppress(asyncio.CancelledError, Denied):
                await first
            liar.speaks.set()
            await until(lambda: manager.state == "running")
            assert manager.history == {}
            await manager.touch(BROKER, BANK_A)
            await _replaced(manager)
            wall = await manager.admit_bind(BROKER, BANK_B)
            assert [answer.code for answer in wall.admission] == ["CW-HISTORY-CONFLICT"]

    run(scene)


_MANY = frozenset(f"{number:0>12}" for number in range(MAX_TOUCHED))


@pytest.mark.parametrize(
    "told",
    [
        {"flask": frozenset({"bank-a"})},
        {"flask": frozenset[str]()},
        {"acm": frozenset({"bank-a", "no-type"})},
        {"acm": _MANY},
    ],
)
def test_a_history_grows_by_nothing_but_types_of_the_policys_walls(
    told: dict[str, frozenset[str]], tmp_path: Path
) -> None:
    """A manager that tells anything else is ended; the next one is not led astray by it.

    The control: the true entries, from that next one, come into the file.
    """

    def says(order: Order, true: Answer) -> bytes:
        if isinstance(true.what, Touched):
            true = Answer(true.number, Touched(true.what.verdict, told))
        return messages.packed(true)

    async def scene() -> None:
        store = FileHistory(tmp_path / "history")
        async with lied_to(BANKS, says, store=store) as (manager, liar, notes):
            with pytest.raises(DeciderUnavailable, match="wrong form"):
                await manager.touch(BROKER, BANK_A)
            assert (manager.history, store.load(), notes) == ({}, {}, ["manager-lost"])
            liar.says = lambda _, true: messages.packed(true)
            await until(lambda: manager.state == "running")
            assert (await manager.admit_bind(BROKER, BANK_B)).allowed
            await manager.touch(BROKER, BANK_A)
            entry = frozenset({"bank-a"})
            assert store.load() == {"acm": {"broker": entry, "bank-a": entry}}

    run(scene)


def test_what_labels_touched_under_an_earlier_policy_may_be_told_again() -> None:
    """What they have in common is told whole, with types that the policy in force has no more."""

    async def scene() -> None:
        gone = frozenset({"gone"})
        old = MemoryHistory({"acm": {"broker": gone, "bank-a": gone}})
        async with managed(BANKS, old) as (manager, _):
            await manager.touch(BROKER, BANK_A)
            assert manager.history["acm"]["broker"] == {"gone", "bank-a"}

    run(scene)
