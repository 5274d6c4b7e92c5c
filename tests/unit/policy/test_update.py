"""From the policy in force to the next one: what may take whose place, and what is carried over."""

from __future__ import annotations

import asyncio

import pytest

from skerry.errors import InputError, PolicyError, StaleGeneration, UnknownLabel
from skerry.label import Label
from skerry.policy.history import MemoryHistory
from skerry.policy.load import parse_acm
from skerry.policy.manager import PolicyManager
from skerry.policy.update import with_booleans, with_policy
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.dummy import DummyModule
from skerry.xsm.stack import Stack
from tests.unit.policy.samples import CLASSICAL, TOML

BANKS = Stack([AcmModule(parse_acm(TOML.encode(), "banks.toml"))])

FIRST = CLASSICAL.replace("<Version>1.1<", "<Version>1.0<").replace("Soda</Name>", "Fizz</Name>")
FIRST = FIRST.replace(' from="Fizz"', "")


def _label(name: str) -> Label:
    return Label((("acm", name),))


def test_a_policy_takes_the_place_of_its_own_module_only() -> None:
    """The others of the stack stay; a module that is not in force is refused by name."""
    stack = Stack([*BANKS.modules, DummyModule()])
    new = with_policy(stack, TOML.replace('"1.0"', '"1.1"').encode(), "new.toml")
    assert new.names == stack.names
    assert new.modules[1] is stack.modules[1]
    assert new.digest != stack.digest
    with pytest.raises(PolicyError, match=r"new\.toml: .* module acm, but in force are"):
        with_policy(Stack([DummyModule()]), TOML.encode(), "new.toml")


def test_an_update_follows_the_policy_that_it_names() -> None:
    """Name and version must be those in force, and the new version higher, as in sHype."""
    start, end = FIRST.index("<FromPolicy>"), FIRST.index("</PolicyHeader>")
    first = FIRST[:start] + FIRST[end:]
    old = Stack([AcmModule(parse_acm(first.encode(), "f"))])
    assert with_policy(old, CLASSICAL.encode(), "f").names == ("acm",)
    with pytest.raises(PolicyError, match=r"updates example\.chwall_ste\.rivals 1\.0, but example"):
        with_policy(BANKS, CLASSICAL.encode(), "f")
    lower = CLASSICAL.replace("<Version>1.1<", "<Version>1.0<", 1)
    with pytest.raises(PolicyError, match=r"version 1\.0 does not follow 1\.0"):
        with_policy(old, lower.encode(), "f")


def test_a_renamed_label_is_carried_and_a_lost_one_is_not() -> None:
    """`from` names the label's old name; a name that exists stays itself."""
    new = Stack([AcmModule(parse_acm(CLASSICAL.encode(), "f"))])
    assert new.carry(_label("Fizz"), BANKS) == _label("Soda")
    assert new.carry(_label("Cola"), BANKS) == _label("Cola")
    with pytest.raises(UnknownLabel):
        new.carry(_label("Beer"), BANKS)
    with pytest.raises(UnknownLabel):
        new.carry(Label((("flask", "u:r:t"),)), BANKS)


def test_a_label_renamed_twice_keeps_what_it_touched() -> None:
    """Each load carries the history to the new name, also without an exchange in between."""
    second = TOML.replace("bank-a]", "bank-c]").replace(
        "[labels.bank-c]", '[labels.bank-c]\nfrom = "bank-a"'
    )
    third = TOML.replace("bank-a]", "bank-d]").replace(
        "[labels.bank-d]", '[labels.bank-d]\nfrom = "bank-c"'
    )
    touched = {"acm": {"bank-a": frozenset({"bank-a"}), "broker": frozenset({"bank-a"})}}

    async def run() -> None:
        store = MemoryHistory(touched)
        manager = PolicyManager(BANKS, store)
        for text in (second, third):
            manager.load(Stack([AcmModule(parse_acm(text.encode(), "f"))]))
        await manager.touch(_label("dom0"), _label("dom0"))
        assert store.kept["acm"]["bank-d"] == frozenset({"bank-a"})
        assert store.kept["acm"]["broker"] == frozenset({"bank-a"})

    asyncio.run(run())


def test_a_candidate_answers_without_being_in_force() -> None:
    """It has the next generation and its own cache; of two, the second to come is stale."""
    wider = TOML.replace('[labels.bank-a]\nste = ["bank-a"]', '[labels.bank-a]\nste = ["bank-b"]')
    parties = {"source": _label("bank-a"), "sink": _label("bank-b")}

    async def run() -> None:
        manager = PolicyManager(BANKS, MemoryHistory())
        new = Stack([AcmModule(parse_acm(wider.encode(), "w"))])
        first, second = manager.candidate(new), manager.candidate(BANKS)
        assert (await first.decide("channel_two_way", parties)).allowed
        assert not (await manager.decide("channel_two_way", parties)).allowed
        assert manager.install(first) == 2
        assert (await manager.decide("channel_two_way", parties)).allowed
        with pytest.raises(StaleGeneration):
            manager.install(second)
        assert (await manager.decide("channel_two_way", parties)).allowed

    asyncio.run(run())


def test_booleans_belong_to_a_flask_policy() -> None:
    """Without one, the error says what is in force."""
    with pytest.raises(InputError, match="only a FLASK policy has booleans; in force are: acm"):
        with_booleans(BANKS, {"x": True})


def test_two_labels_that_swap_their_names_are_each_carried_to_their_own() -> None:
    """A running domain keeps its types, not its label's name; loaded again, nothing moves."""
    swapped = CLASSICAL.replace("<Name>Cola</Name>", '<Name from="Soda">Cola</Name>', 1)
    swapped = swapped.replace('<Name from="Fizz">Soda</Name>', '<Name from="Cola">Soda</Name>')
    new = Stack([AcmModule(parse_acm(swapped.encode(), "f"))])
    assert new.carry(_label("Cola"), BANKS) == _label("Soda")
    assert new.carry(_label("Soda"), BANKS) == _label("Cola")
    assert new.carry(_label("Cola"), new) == _label("Cola")
    moved = Stack([AcmModule(parse_acm(swapped.replace(' from="Cola"', "").encode(), "f"))])
    with pytest.raises(UnknownLabel):
        moved.carry(_label("Cola"), BANKS)  # its name went to what was Soda
