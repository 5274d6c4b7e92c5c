"""ACM's answers to single questions: sharing, authorization, privilege."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import UnknownLabel
from skerry.policy.load import parse_acm
from skerry.xsm.acm.model import AcmPolicy, VmLabel
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.classes import CLASSES
from tests.unit.policy.samples import CLASSICAL, DEFAULT, TOML, policies

RIVALS = AcmModule(parse_acm(CLASSICAL.encode(), "rivals.xml"))
BANKS = AcmModule(parse_acm(TOML.encode(), "banks.toml"))


def test_labels_with_a_common_type_share() -> None:
    """Two domains may share if their type sets intersect, and the reason names both sets."""
    answer = BANKS.decide("bank-a", "broker", "share", ("share",))
    assert answer.allowed
    assert answer.code == "STE-SHARED-TYPE"
    assert answer.granted == ("share",)
    assert "{bank-a}" in answer.reason
    assert "{bank-a, bank-b}" in answer.reason


def test_labels_without_a_common_type_do_not_share() -> None:
    """Disjoint type sets are refused with the rule's file and line."""
    answer = BANKS.decide("bank-a", "bank-b", "grant", ("map_read", "map_write"))
    assert not answer.allowed
    assert (answer.code, answer.granted) == ("STE-NO-SHARED-TYPE", ())
    assert (answer.rule.file, answer.rule.line) == ("banks.toml", 20)
    assert "{bank-a}" in answer.reason
    assert "{bank-b}" in answer.reason


def test_a_domain_uses_a_resource_of_a_type_it_has() -> None:
    """`resource use` looks its target up among the resource labels."""
    assert BANKS.decide("broker", "ledger-a", "resource", ("use",)).allowed
    assert not BANKS.decide("bank-b", "ledger-a", "resource", ("use",)).allowed
    assert BANKS.decide("bank-b", "bank-a", "resource", ("use",)).code == "LABEL-UNKNOWN"


def test_share_takes_a_domain_label_before_a_resource_label_of_the_same_name() -> None:
    """A bare name is the domain's; `resource:` forces the resource label; both are asked."""
    assert RIVALS.decide("Storage", "Cola", "share", ("share",)).allowed
    answer = RIVALS.decide("Soda", "resource:Cola", "share", ("share",))
    assert answer.code == "STE-NO-SHARED-TYPE"
    assert "resource label Cola" in answer.reason
    assert RIVALS.decide("Soda", "disk(hda1)", "share", ("share",)).allowed
    assert RIVALS.decide("Soda", "resource:Soda", "share", ("share",)).code == "LABEL-UNKNOWN"


def test_creating_needs_all_types_of_the_new_domain() -> None:
    """sHype's authorization: the new domain's types are a subset of the creator's."""
    assert BANKS.decide("dom0", "broker", "domain", ("create",)).allowed
    assert BANKS.decide("broker", "bank-a", "domain", ("create",)).allowed
    answer = BANKS.decide("bank-a", "broker", "domain", ("create", "pause"))
    assert (answer.allowed, answer.code) == (False, "STE-NOT-SUBSET")
    assert answer.granted == ("pause",)
    none = BANKS.decide("bank-a", "bank-b", "domain", ("create", "pause"))
    assert (none.allowed, none.granted) == (False, ())


def test_a_mixed_question_of_the_resource_class_is_answered_part_by_part() -> None:
    """`add` has a domain as target and `use` a resource: what one name grants is listed."""
    answer = RIVALS.decide("Storage", "Cola", "resource", ("add", "use"))
    assert (answer.allowed, answer.granted) == (True, ("add", "use"))
    answer = BANKS.decide("broker", "ledger-a", "resource", ("add", "use"))
    assert (answer.allowed, answer.granted, answer.code) == (False, ("use",), "LABEL-UNKNOWN")


def test_only_the_bootstrap_label_rules_the_policy() -> None:
    """The target `security` is the policy itself: dom0's alone."""
    assert BANKS.decide("dom0", "security", "security", ("load_policy",)).allowed
    answer = BANKS.decide("broker", "security", "security", ("load_policy",))
    assert (answer.allowed, answer.code) == (False, "NOT-PRIVILEGED")
    assert answer.rule.line == 4
    assert not BANKS.decide("dom0", "broker", "security", ("load_policy",)).allowed


def test_a_policy_without_type_enforcement_does_not_ask_it() -> None:
    """No Simple Type Enforcement component: sharing is allowed and says so."""
    module = AcmModule(AcmPolicy("p", "1.0", "a", labels=(VmLabel("a"), VmLabel("b"))))
    assert module.decide("a", "b", "share", ("share",)).code == "STE-NOT-IN-POLICY"
    assert module.decide("a", "b", "share", ("share",)).allowed
    assert module.decide("a", "x", "share", ("share",)).code == "LABEL-UNKNOWN"


def test_a_label_without_types_shares_with_nobody_not_even_itself() -> None:
    """An empty type set intersects with nothing."""
    policy = parse_acm(TOML.encode(), "f")
    bare = AcmModule(
        AcmPolicy("p", "1.0", "a", policy.ste_types, labels=(VmLabel("a"), VmLabel("b")))
    )
    assert bare.decide("a", "a", "share", ("share",)).code == "STE-NO-SHARED-TYPE"
    assert BANKS.decide("bank-a", "bank-a", "share", ("share",)).allowed


def test_what_a_domain_makes_carries_its_own_label() -> None:
    """A channel end has its owner's label, so a domain with a type may use it."""
    assert BANKS.transition("bank-a", "broker", "event") == "bank-a"
    assert BANKS.decide("bank-a", "bank-a", "event", ("create",)).allowed


@pytest.mark.parametrize("label", ["__UNLABELED__", "__NULL_LABEL__", "__INACCESSIBLE__", "", "x"])
def test_reserved_and_unknown_labels_are_denied(label: str) -> None:
    """What has no label, or one that the policy does not define, shares with nobody."""
    for subject, target in ((label, "broker"), ("broker", label), (label, label)):
        answer = BANKS.decide(subject, target, "share", ("share",))
        assert (answer.allowed, answer.code) == (False, "LABEL-UNKNOWN")
    with pytest.raises(UnknownLabel):
        BANKS.check_label(label, "domain")
    with pytest.raises(UnknownLabel):
        BANKS.check_label(label, "resource")
    BANKS.check_label("broker", "domain")
    BANKS.check_label("resource:ledger-a", "resource")


def test_a_policy_may_declare_the_label_of_the_unlabelled() -> None:
    """xend's DEFAULT policy gives `__UNLABELED__` a type; then it is a label like others."""
    module = AcmModule(parse_acm(DEFAULT.encode(), "f"))
    assert module.decide("SystemManagement", "__UNLABELED__", "share", ("share",)).allowed


@pytest.mark.parametrize(
    ("tclass", "permissions"),
    [("evnet", ("bind",)), ("event", ("bnid",)), ("event", ()), ("share", ("share", "x"))],
)
def test_an_unknown_class_or_permission_is_denied(
    tclass: str, permissions: tuple[str, ...]
) -> None:
    """A misspelt question is refused even where everything is allowed."""
    assert not BANKS.decide("broker", "broker", tclass, permissions).allowed
    assert BANKS.decide("broker", "broker", "event", ("bind",)).allowed


@given(st.text(), st.text(), st.text(), st.lists(st.text()))
def test_no_question_raises(subject: str, target: str, tclass: str, asked: list[str]) -> None:
    """Any texts at all get an answer, and an unreadable one is a denial."""
    answer = BANKS.decide(subject, target, tclass, asked)
    assert not answer.allowed
    assert BANKS.decide("bank-a", target, "share", ("share",)).module == "acm"


@given(policies())
def test_sharing_is_symmetric_and_is_intersection(policy: AcmPolicy) -> None:
    """Who may share with whom does not depend on who asks, for any class that means sharing."""
    module = AcmModule(policy)
    for one in policy.labels:
        for other in policy.labels:
            expected = not policy.ste_types or bool(set(one.ste) & set(other.ste))
            for tclass in ("share", "event", "grant"):
                asked = tuple(CLASSES[tclass])
                there = module.decide(one.name, other.name, tclass, asked)
                back = module.decide(other.name, one.name, tclass, asked)
                assert there.allowed == back.allowed == expected
                assert (there.granted == tuple(sorted(asked))) == there.allowed
