"""A change of policy as the node makes it: what is written down first, and one at a time."""

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
from skerry.policy.history import HistoryStore, MemoryHistory
from skerry.policy.manager import PolicyManager
from skerry.policy.source import NewPolicy
from skerry.xsm.stack import History
from tests.support.monitor import ToyAudit
from tests.unit.policy.banks import BANK_A, BROKER, label, run
from tests.unit.policy.samples import TOML

AGENT = TOML.replace("[labels.broker]", '[labels.agent]\nfrom = "broker"')

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


def test_only_a_load_has_the_place_of_what_is_loaded_and_one_at_a_time(tmp_path: Path) -> None:
    """Two loads at once both come into force, one after the other; a dry run is only tried."""

    async def scene() -> None:
        store = MemoryHistory()
        half = node(tmp_path, store, Noting(store))
        manager = cast(PolicyManager, half.monitor.mediator.decider)
        proposed: list[tuple[int, bool]] = []
        candidate = manager.candidate

        def spy(*args: Any, loading: bool = False) -> object:
            proposed.append((manager.generation, loading))
            return candidate(*args, loading=loading)

        manager.candidate = spy  # type: ignore[method-assign, assignment]
        version = TOML.replace('version = "1.0"', 'version = "1.1"')
        assert version != TOML

        async def load(text: str, dry_run: bool = False) -> None:
            change = NewPolicy("p.toml", text.encode())
            await half.load("policy_load", label("dom0"), change, what="p", dry_run=dry_run)

        await load(version, dry_run=True)
        await asyncio.gather(load(version), load(TOML + "\n"))
        assert proposed == [(1, False), (1, True), (2, True)]
        assert manager.generation == 3

    run(scene)
