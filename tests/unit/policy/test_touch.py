"""What a node's wall remembers of its exchanges, whatever becomes of the manager's answers."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from skerry.errors import Denied
from skerry.policy import messages
from skerry.policy.client import RemoteManager
from tests.support.remote import lied_to, until
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
