"""The Chinese Wall: admission against Xen's own counter algorithm, and the history form."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from skerry.errors import UnknownLabel
from skerry.policy.load import parse_acm
from skerry.xsm.acm.model import AcmPolicy
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.module import Standing
from tests.unit.policy.samples import CLASSICAL, TOML, policies

RIVALS_CONFLICT_LINE = CLASSICAL[: CLASSICAL.index("<Conflict ")].count("\n") + 1
RIVALS = AcmModule(parse_acm(CLASSICAL.encode(), "rivals.xml"))
BANKS = AcmModule(parse_acm(TOML.encode(), "banks.toml"))
NO_WALL = AcmModule(
    parse_acm(
        b'[policy]\nname="p"\nversion="1.0"\nbootstrap="a"\n[labels.a]\n[labels.b]\n', "p.toml"
    )
)


class Counters:
    """Xen's algorithm as xsm.md tells it: per type, the running domains that conflict with it."""

    def __init__(self, policy: AcmPolicy) -> None:
        self.types = {label.name: set(label.cw) for label in policy.labels}
        self.sets = [set(conflict.types) for conflict in policy.conflicts]
        self.conflicting: Counter[str] = Counter()

    def create(self, label: str) -> bool:
        """Start a domain if no counter of its types stands."""
        own = self.types[label]
        if any(self.conflicting[name] for name in own):
            return False
        self.count(own, 1)
        return True

    def destroy(self, label: str) -> None:
        """Take a domain's counts back."""
        self.count(self.types[label], -1)

    def count(self, own: set[str], step: int) -> None:
        """Count every other type of each conflict set touched."""
        for conflict in self.sets:
            if conflict & own:
                for name in conflict - own:
                    self.conflicting[name] += step


def test_a_competitor_may_not_start_beside_the_other() -> None:
    """The refusal names the conflict set with file and line, and the running label."""
    answer = RIVALS.admit("Soda", Standing(("Storage", "Cola")))
    assert (answer.allowed, answer.code) == (False, "CW-CONFLICT")
    assert (answer.rule.file, answer.rule.line) == ("rivals.xml", RIVALS_CONFLICT_LINE)
    assert "RER" in answer.rule.text
    assert "running Cola {Cola}" in answer.reason
    assert "{Soda}" in answer.reason


def test_the_same_type_may_run_twice_and_a_stopped_rival_does_not_count() -> None:
    """Without the rival in the list of the running, the very same start is allowed."""
    assert RIVALS.admit("Soda", Standing(("Storage", "Soda"))).allowed
    assert RIVALS.admit("Soda", Standing(("Storage",))).code == "CW-NO-CONFLICT"
    assert RIVALS.admit("Storage", Standing(("Cola",))).allowed


def test_without_the_component_the_wall_is_not_asked() -> None:
    """A policy without Chinese Wall types admits all its labels, and only those."""
    assert NO_WALL.admit("a", Standing(("b",))).code == "CW-NOT-IN-POLICY"
    assert NO_WALL.admit_bind(("a", "b"), Standing()).allowed
    assert not NO_WALL.admit("x", Standing()).allowed


def test_unknown_labels_are_refused_wherever_they_stand() -> None:
    """A label that can't be judged, also one that runs, refuses the start."""
    assert RIVALS.admit("x", Standing()).code == "LABEL-UNKNOWN"
    assert RIVALS.admit("Cola", Standing(("x",))).code == "LABEL-UNKNOWN"
    assert RIVALS.admit_bind(("Cola", "x"), Standing()).code == "LABEL-UNKNOWN"
    with pytest.raises(UnknownLabel):
        RIVALS.touch(("Cola", "x"), Standing())


@given(policies(), st.data())
def test_admission_equals_xens_counters(policy: AcmPolicy, data: st.DataObject) -> None:
    """Over any sequence of starts and stops, the verdicts are those of Xen's counters."""
    plain = AcmModule(_without_history(policy))
    counters = Counters(policy)
    running: list[str] = []
    names = [label.name for label in policy.labels]
    for _ in range(data.draw(st.integers(0, 12))):
        stop = data.draw(st.booleans())
        if running and stop:
            stopped = running.pop(data.draw(st.integers(0, len(running) - 1)))
            counters.destroy(stopped)
            continue
        label = data.draw(st.sampled_from(names))
        allowed = plain.admit(label, Standing(tuple(running))).allowed
        assert allowed == counters.create(label)
        if allowed:
            running.append(label)


def _without_history(policy: AcmPolicy) -> AcmPolicy:
    return replace(policy, conflicts=tuple(replace(c, history=False) for c in policy.conflicts))


def test_a_broker_that_touched_one_bank_may_never_touch_the_other() -> None:
    """The history form: what was once touched counts after everything has stopped."""
    fresh = Standing()
    assert BANKS.admit_bind(("broker", "bank-a"), fresh).allowed
    assert BANKS.admit_bind(("broker", "bank-b"), fresh).allowed
    after = Standing((), BANKS.touch(("broker", "bank-a"), fresh))
    assert after.touched == {"broker": {"bank-a"}, "bank-a": {"bank-a"}}
    answer = BANKS.admit_bind(("broker", "bank-b"), after)
    assert (answer.allowed, answer.code) == (False, "CW-HISTORY-CONFLICT")
    assert answer.rule.line == 12
    assert BANKS.admit_bind(("broker", "bank-a"), after).allowed
    assert BANKS.touch(("broker", "bank-a"), after) == {}


def test_without_history_a_conflict_set_forgets() -> None:
    """The positive control: the same exchange in a set without history is allowed."""
    plain = AcmModule(_without_history(BANKS.policy))
    after = Standing((), {"broker": frozenset({"bank-a"})})
    assert plain.admit_bind(("broker", "bank-b"), after).allowed
    assert plain.touch(("broker", "bank-a"), after) == {}


def test_a_start_is_refused_if_history_holds_the_other_side() -> None:
    """A label whose own type conflicts with what it has touched may not start again."""
    touched = {"bank-b": frozenset({"bank-a"})}
    answer = BANKS.admit("bank-b", Standing((), touched))
    assert (answer.allowed, answer.code) == (False, "CW-HISTORY-CONFLICT")
    assert BANKS.admit("bank-b", Standing()).allowed


def test_a_renamed_label_inherits_its_history() -> None:
    """An update that renames a label does not wash it clean."""
    renamed = TOML.replace("[labels.broker]\n", '[labels.agent]\nfrom = "broker"\n')
    module = AcmModule(parse_acm(renamed.encode(), "f"))
    after = Standing((), {"broker": frozenset({"bank-a"})})
    assert not module.admit_bind(("agent", "bank-b"), after).allowed
    assert module.admit_bind(("agent", "bank-b"), Standing()).allowed


@given(policies(), st.data())
def test_no_sequence_of_admitted_exchanges_holds_two_types_of_a_history_set(
    policy: AcmPolicy, data: st.DataObject
) -> None:
    """Whatever is exchanged in whatever order, no label ever touches two sides of a wall."""
    module = AcmModule(policy)
    touched: dict[str, frozenset[str]] = {}
    names = st.sampled_from([label.name for label in policy.labels])
    for _ in range(data.draw(st.integers(0, 10))):
        one, other = data.draw(names), data.draw(names)
        standing = Standing((), dict(touched))
        if module.admit_bind((one, other), standing).allowed:
            touched |= module.touch((one, other), standing)
    for conflict in policy.conflicts:
        if conflict.history:
            assert all(len(types & set(conflict.types)) <= 1 for types in touched.values())
