"""What a label touched is on disk under its new name before a policy that renames it counts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from skerry.policy.history import FileHistory, MemoryHistory
from skerry.policy.manager import PolicyManager
from skerry.policy.source import Policy, Source, make_policy
from skerry.xsm.stack import History
from tests.support.remote import managed
from tests.unit.policy.banks import BANK_A, BANK_B, BANKS, BROKER, label, run
from tests.unit.policy.samples import TOML


def renamed(text: str, old: str, new: str) -> str:
    """Return a policy in which a label has another name."""
    return text.replace(f"[labels.{old}]", f'[labels.{new}]\nfrom = "{old}"')


AGENT = renamed(TOML, "broker", "agent")
AGENT2 = renamed(AGENT.replace('from = "broker"\n', ""), "agent", "agent2")


def policy(text: str) -> Policy:
    """Return a policy."""
    return make_policy([Source("p.toml", text.encode())])


@pytest.mark.parametrize("remembered", [True, False])
def test_a_wall_of_a_label_renamed_twice_holds_after_a_kill(
    remembered: bool, tmp_path: Path
) -> None:
    """The next manager reads it from the file; without `remember` it would be open (control)."""
    agent2, store = label("agent2"), FileHistory(tmp_path / "history")

    async def far() -> None:
        async with managed(BANKS, store) as (manager, _):
            await manager.touch(BROKER, BANK_A)
            for text in (AGENT, AGENT2):
                next_ = policy(text)
                candidate = manager.candidate(next_.stack, next_.sources)
                await candidate.foresee([])
                if remembered:
                    await manager.remember(candidate)
                manager.install(candidate)
        async with managed(policy(AGENT2), store) as (manager, _):
            assert (await manager.admit_bind(agent2, BANK_B)).allowed is not remembered
            assert (await manager.admit_bind(agent2, BANK_A)).allowed

    run(far)


def test_in_process_what_is_remembered_meanwhile_is_not_left_out() -> None:
    """An exchange while the carried history is being saved is carried and saved too."""

    class Busy(MemoryHistory):
        manager: PolicyManager

        async def save(self, history: History) -> None:
            if not self.kept:
                self.kept = history
                await asyncio.sleep(0)
                self.manager._engine.touch(BROKER, BANK_A)
            self.kept = history

    async def scene() -> None:
        store = Busy()
        manager = store.manager = PolicyManager(BANKS.stack, store)
        manager._engine.touch(BANK_A, BANK_A)
        await manager.remember(manager.candidate(policy(AGENT).stack))
        assert store.kept["acm"]["agent"] == {"bank-a"}

    run(scene)
