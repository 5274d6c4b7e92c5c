"""What a label touched is on disk under its new name before a policy that renames it counts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from skerry.errors import DeciderUnavailable
from skerry.label import Label
from skerry.monitor.domain import Domain
from skerry.monitor.monitor import Monitor
from skerry.node.changing import Changing
from skerry.node.kept import SetupKeeper
from skerry.node.setup import Setup, load_setup
from skerry.policy.history import FileHistory, HistoryStore, MemoryHistory
from skerry.policy.manager import PolicyManager
from skerry.policy.source import NewPolicy, Policy, Source, make_policy
from skerry.xsm.stack import History
from tests.support.monitor import ToyAudit
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


SYSTEM = 'name = "s"\npolicy = "p.toml"\n[domains.a]\nlabel = "broker"\nmachine = "simulator"\n'


class Noting:
    """Keeps of each setup what was on disk of the history when it was written down."""

    def __init__(self, store: MemoryHistory) -> None:
        self.store = store
        self.seen: list[Mapping[str, Any]] = []

    async def keep(self, setup: Setup, generation: int, labels: Mapping[Domain, Label]) -> None:
        """Take note."""
        self.seen.append(dict(self.store.kept.get("acm", {})))

    async def settle(self, *_: object) -> None:
        """Do nothing."""


def node(folder: Path, store: HistoryStore, keeper: object) -> Changing:
    """Return a node's half that changes, under the banks' policy."""
    (folder / "p.toml").write_text(TOML)
    (folder / "s.toml").write_text(SYSTEM)
    setup = load_setup(folder / "s.toml")
    manager = PolicyManager(setup.stack, store)
    monitor = Monitor(manager, ToyAudit(), {}, lambda: 0.0)
    return Changing(setup, monitor, lambda: 0.0, cast(SetupKeeper, keeper))


def test_a_load_saves_the_carried_history_before_the_setup(tmp_path: Path) -> None:
    """Whoever restarts with the new policy finds the wall; a dry run saves nothing."""

    async def scene() -> None:
        store = MemoryHistory()
        keeper = Noting(store)
        half = node(tmp_path, store, keeper)
        await half.monitor.mediator.decider.touch(BROKER, BANK_A)
        change = NewPolicy("p.toml", AGENT.encode())
        await half.load("policy_load", label("dom0"), change, what="p", dry_run=True)
        assert "agent" not in store.kept["acm"]
        await half.load("policy_load", label("dom0"), change, what="p")
        assert [seen["agent"] for seen in keeper.seen] == [{"bank-a"}]

    run(scene)


def test_a_load_whose_history_cannot_be_saved_does_not_come_into_force(tmp_path: Path) -> None:
    """It is denied, and the policy before stays."""

    class Full(MemoryHistory):
        async def save(self, history: History) -> None:
            if "agent" in history["acm"]:
                raise OSError("no space left on device")
            await super().save(history)

    async def scene() -> None:
        store = Full()
        half = node(tmp_path, store, Noting(store))
        await half.monitor.mediator.decider.touch(BROKER, BANK_A)
        change = NewPolicy("p.toml", AGENT.encode())
        with pytest.raises(DeciderUnavailable):
            await half.load("policy_load", label("dom0"), change, what="p")
        assert half.monitor.mediator.decider.generation == 1

    run(scene)
