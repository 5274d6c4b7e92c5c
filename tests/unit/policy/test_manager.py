"""The policy manager: generations, failures as denials, and the standing history."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

import pytest

from skerry.errors import DeciderUnavailable, Denied, PolicyError
from skerry.label import Label
from skerry.policy.history import FileHistory, MemoryHistory
from skerry.policy.load import parse_acm
from skerry.policy.manager import PolicyManager
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.dummy import DummyModule
from skerry.xsm.hooks import HOOKS
from skerry.xsm.request import Answer
from skerry.xsm.stack import History, Stack
from tests.unit.policy.samples import TOML

BANKS = Stack([AcmModule(parse_acm(TOML.encode(), "banks.toml"))])


def _label(name: str) -> Label:
    return Label((("acm", name),))


SECURITY = _label("security")
PARTIES = {
    "operator": _label("dom0"),
    "domain": _label("broker"),
    "new": _label("bank-a"),
    "source": _label("bank-a"),
    "sink": _label("broker"),
    "security": SECURITY,
}


class FullDisk(MemoryHistory):
    """A store that can't be written."""

    async def save(self, history: History) -> None:
        """Fail."""
        raise OSError("no space left on device")


class SlowDisk(MemoryHistory):
    """A store whose writes take a while."""

    async def save(self, history: History) -> None:
        """Let everybody else run before the history is kept."""
        for _ in range(5):
            await asyncio.sleep(0)
        await super().save(history)


def test_every_hook_is_decided_by_the_policy_in_force() -> None:
    """Between labels that share, every hook is allowed; toward a competitor, no channel is."""

    async def run() -> None:
        manager = PolicyManager(BANKS, MemoryHistory())
        disk = _label("resource:ledger-a")
        ledger = {**PARTIES, "sink": disk, "console": disk, "operator": _label("bank-a")}
        for hook in HOOKS:
            parties = ledger if hook.startswith(("resource_", "console_")) else PARTIES
            assert (await manager.decide(hook, parties)).allowed, hook
        rivals = {**PARTIES, "sink": _label("bank-b")}
        for hook in ("channel_two_way", "channel_one_way", "memory_read", "memory_both"):
            assert not (await manager.decide(hook, rivals)).allowed, hook
        assert not (await manager.admit(_label("bank-b"), (_label("bank-a"),))).allowed
        assert (await manager.admit(_label("bank-b"), (_label("broker"),))).allowed

    asyncio.run(run())


def test_a_load_raises_the_generation_and_forgets_cached_answers() -> None:
    """After a load, the same question is answered by the new policy under the new number."""
    wider = TOML.replace('[labels.bank-a]\nste = ["bank-a"]', '[labels.bank-a]\nste = ["bank-b"]')

    async def run() -> None:
        manager = PolicyManager(BANKS, MemoryHistory())
        first = await manager.decide("channel_two_way", {**PARTIES, "sink": _label("bank-b")})
        digest = manager.digest
        assert manager.load(Stack([AcmModule(parse_acm(wider.encode(), "w"))])) == 2
        second = await manager.decide("channel_two_way", {**PARTIES, "sink": _label("bank-b")})
        assert (first.allowed, first.generation) == (False, 1)
        assert (second.allowed, second.generation) == (True, 2)
        assert manager.generation == 2
        assert manager.digest != digest

    asyncio.run(run())


def test_whatever_fails_is_a_denial() -> None:
    """An unknown hook, a missing party and a crashing module never become an allow."""

    class Broken(DummyModule):
        def decide(
            self, subject: str, target: str, tclass: str, permissions: Collection[str]
        ) -> Answer:
            raise RuntimeError

    async def run() -> None:
        manager = PolicyManager(BANKS, MemoryHistory())
        for hook, parties in (("no_such_hook", PARTIES), ("channel_two_way", {})):
            with pytest.raises(DeciderUnavailable):
                await manager.decide(hook, parties)
        dummy = Label((("dummy", "dom0"),))
        parties = dict.fromkeys(PARTIES, dummy)
        broken = PolicyManager(Stack([Broken()]), MemoryHistory())
        assert not (await broken.decide("domain_pause", parties)).allowed
        sound = PolicyManager(Stack([DummyModule()]), MemoryHistory())
        assert (await sound.decide("domain_pause", parties)).allowed

    asyncio.run(run())


def test_history_outlives_the_manager(tmp_path: Path) -> None:
    """What was touched is in the file when `touch` returns, and counts in the next manager."""

    async def run() -> None:
        store = FileHistory(tmp_path / "history")
        manager = PolicyManager(BANKS, store)
        await manager.touch(_label("broker"), _label("bank-a"))
        again = PolicyManager(BANKS, FileHistory(tmp_path / "history"))
        verdict = await again.admit_bind(_label("broker"), _label("bank-b"))
        assert not verdict.allowed
        assert verdict.admission[0].code == "CW-HISTORY-CONFLICT"
        assert (await again.admit_bind(_label("broker"), _label("bank-a"))).allowed

    asyncio.run(run())


def test_a_history_begins_with_the_wall_that_keeps_it() -> None:
    """What was exchanged under a policy without it is not counted; under one with it, it is."""
    text = TOML.replace("history = true\n", "")
    assert text != TOML
    without = Stack([AcmModule(parse_acm(text.encode(), "banks.toml"))])

    async def allowed(first: Stack) -> bool:
        manager = PolicyManager(first, MemoryHistory())
        await manager.touch(_label("broker"), _label("bank-a"))
        manager.load(BANKS)
        return (await manager.admit_bind(_label("broker"), _label("bank-b"))).allowed

    assert asyncio.run(allowed(without))
    assert not asyncio.run(allowed(BANKS))


def test_two_exchanges_decided_at_once_cannot_both_pass_the_wall() -> None:
    """Both were admitted before either was remembered; the second one's touch is refused."""

    async def run() -> None:
        store = SlowDisk()
        manager = PolicyManager(BANKS, store)
        for bank in ("bank-a", "bank-b"):
            assert (await manager.admit_bind(_label("broker"), _label(bank))).allowed
        results = await asyncio.gather(
            manager.touch(_label("broker"), _label("bank-a")),
            manager.touch(_label("broker"), _label("bank-b")),
            return_exceptions=True,
        )
        assert results[0] is None
        assert isinstance(results[1], Denied)
        assert results[1].code == "CW-HISTORY-CONFLICT"
        assert store.kept["acm"]["broker"] == {"bank-a"}

    asyncio.run(run())


def test_a_history_that_cannot_be_saved_refuses_and_still_counts() -> None:
    """A full disk denies the exchange, also the next one that rests on the same memory."""

    async def run() -> None:
        manager = PolicyManager(BANKS, FullDisk())
        for _ in range(2):
            with pytest.raises(DeciderUnavailable, match="no space"):
                await manager.touch(_label("broker"), _label("bank-a"))
        assert not (await manager.admit_bind(_label("broker"), _label("bank-b"))).allowed
        await PolicyManager(BANKS, MemoryHistory()).touch(_label("broker"), _label("bank-a"))

    asyncio.run(run())


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "long", "folder"])
def test_a_damaged_history_is_a_policy_error(tmp_path: Path, damage: str) -> None:
    """A wall is never opened by a broken file; the unbroken file is read."""
    path = tmp_path / "history"
    asyncio.run(FileHistory(path).save({"acm": {"broker": frozenset({"bank-a"})}}))
    assert FileHistory(path).load() == {"acm": {"broker": {"bank-a"}}}
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        broken = {
            "cut": content[:-3],
            "changed": content.replace(b"bank-a", b"bank-b"),
            "empty": b"",
            "long": content + b" " * 5_000_000,
        }
        path.write_bytes(broken[damage])
    with pytest.raises(PolicyError):
        PolicyManager(BANKS, FileHistory(path))


def test_who_stops_waiting_for_a_save_does_not_let_another_overtake_it() -> None:
    """A cancelled touch goes on being written; the next waits for it, so none is lost."""

    async def run() -> None:
        store = GatedDisk()
        manager = PolicyManager(BANKS, store)
        first = asyncio.create_task(manager.touch(_label("broker"), _label("bank-a")))
        await asyncio.sleep(0.01)
        first.cancel()
        second = asyncio.create_task(manager.touch(_label("bank-b"), _label("bank-b")))
        await asyncio.sleep(0.01)
        assert store.writing == 1
        store.gate.set()
        await second
        assert store.kept["acm"].keys() >= {"broker", "bank-b"}

    asyncio.run(run())


class GatedDisk(MemoryHistory):
    """Writes in the background until the gate opens, as a thread does, cancelled or not."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.writing = 0

    async def save(self, history: History) -> None:
        """Wait for the gate, then keep."""
        self.writing += 1
        await self.gate.wait()
        self.writing -= 1
        await super().save(history)
