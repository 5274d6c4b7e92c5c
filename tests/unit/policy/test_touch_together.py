"""What exchanges at the same time let each side have touched; the manager is here or a process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from skerry.policy.history import MemoryHistory
from skerry.policy.manager import PolicyManager
from skerry.policy.source import Source, make_policy
from skerry.xsm.explain import Refused
from skerry.xsm.stack import History
from tests.support.remote import managed
from tests.support.sharing import POLICY

SOURCES = make_policy([Source("policy.toml", POLICY.encode())])
ALICE, BOB, AUDITOR, COURIER = (
    SOURCES.stack.label(name, "domain") for name in ("alice", "bob", "auditor", "courier")
)


class Gated(MemoryHistory):
    """A disk that writes once the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def save(self, history: History) -> None:
        """Wait for the gate, then keep."""
        await self.gate.wait()
        await super().save(history)


@contextlib.asynccontextmanager
async def either(kind: str, store: MemoryHistory) -> AsyncIterator[PolicyManager]:
    """Give a manager in this process or behind a socket."""
    if kind == "local":
        yield PolicyManager(SOURCES.stack, store)
    else:
        async with managed(SOURCES, store) as (manager, _):
            yield manager  # type: ignore[misc] # what is asked of it here is the same


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_what_one_side_learns_while_an_exchange_is_written_down_the_other_has_touched_too(
    kind: str,
) -> None:
    """Else a channel that goes live and is cut meanwhile would lead round the wall.

    The control: before, the courier may still deal with the other side.
    """

    async def run() -> None:
        store = Gated()
        async with either(kind, store) as manager:
            holding = asyncio.ensure_future(manager.touch(BOB))
            await asyncio.sleep(0.1)
            slow = asyncio.ensure_future(manager.touch(AUDITOR, COURIER))
            await asyncio.sleep(0.1)
            assert (await manager.admit_bind(COURIER, BOB)).allowed
            other = asyncio.ensure_future(manager.touch(ALICE, AUDITOR))
            await asyncio.sleep(0.1)
            store.gate.set()
            await slow
            assert not (await manager.admit_bind(COURIER, BOB)).allowed
            await asyncio.gather(holding, other)

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_many_touch_as_one_or_not_at_all(kind: str) -> None:
    """All get what any has touched; where that is two sides, nobody gets anything."""

    async def run() -> None:
        async with either(kind, MemoryHistory()) as manager:
            with pytest.raises(Refused, match=r"alice \{bank-a\} and bob \{bank-b\}"):
                await manager.touch(AUDITOR, COURIER, ALICE, BOB)
            assert (await manager.admit_bind(AUDITOR, BOB)).allowed
            await manager.touch(AUDITOR, COURIER, ALICE)
            for each in (AUDITOR, COURIER):
                assert not (await manager.admit_bind(each, BOB)).allowed

    asyncio.run(run())
