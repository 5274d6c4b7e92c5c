"""Permissive types, auditallow and dontaudit: in answers, in the cache and in what is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.audit.record import fields_json
from skerry.errors import AuditUnavailable, Denied
from skerry.label import Label
from skerry.monitor.mediate import Mediator
from skerry.policy.history import MemoryHistory
from skerry.policy.manager import PolicyManager
from skerry.policy.policydb.read import read_policydb
from skerry.xsm.cache import Avc
from skerry.xsm.dummy import DummyModule
from skerry.xsm.flask import avc as avc_module
from skerry.xsm.flask.avc import MAX_AVC_CHARS, AvcMessages
from skerry.xsm.flask.model import ALLOW, AUDITALLOW, AUDITDENY, FULL_VECTOR, FlaskPolicy
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.hooks import HOOKS, expand
from skerry.xsm.request import Answer, Decision, Request, Verdict
from skerry.xsm.stack import Stack

DATA = Path(__file__).parents[1] / "policydb/data"
XEN = read_policydb((DATA / "xen.30").read_bytes(), "xen.30")
TYPES = ("dom0_t", "guest_t", "child_t", "guest_channel")
CONTEXTS = (
    "system_u:system_r:dom0_t",
    "user_1:vm_r:guest_t",
    "user_2:vm_r:guest_t",
    "user_1:vm_r:child_t",
    "user_1:object_r:guest_channel",
    "user_1:vm_r:nobody_t",
)
DOM0, GUEST, OTHER, CHILD = CONTEXTS[:4]
ASKED = (
    ("grant", ("map_read",)),
    ("grant", ("map_read", "map_write")),
    ("grant", ("copy", "query")),
    ("event", ("create", "send")),
    ("domain", ("pause",)),
    ("argo", ("send",)),
)


def value(name: str) -> int:
    """Return the number of a type."""
    return next(kind.value for kind in XEN.types.values() if kind.name == name)


def changed(
    rules: Mapping[int, list[tuple[str, str, str, str]]] | None = None,
    permissive: frozenset[str] = frozenset(),
) -> FlaskPolicy:
    """Return the small Xen policy with more rules by kind, and with permissive types."""
    more = []
    for kind, listed in (rules or {}).items():
        for one, two, tclass, permission in listed:
            known = XEN.class_named(tclass)
            assert known is not None
            vector = known.vector(frozenset({permission}))
            datum = FULL_VECTOR ^ vector if kind == AUDITDENY else vector
            more.append((value(one), value(two), known.value, kind, datum))
    bits = sum(1 << value(name) for name in permissive)
    return msgspec.structs.replace(XEN, rules=(*XEN.rules, *more), permissive=bits)


def label(context: str) -> Label:
    """Return a label with Flask's part."""
    return Label((("flask", context),))


def ask(policy: FlaskPolicy, one: str, two: str, tclass: str, *permissions: str) -> Answer:
    """Ask one question of a policy."""
    return FlaskModule(policy).decide(one, two, tclass, permissions)


def test_an_answer_names_what_the_policy_marks_of_what_was_asked() -> None:
    """auditallow and dontaudit, each only for what was asked; and both contexts."""
    marks = {
        AUDITALLOW: [("dom0_t", "guest_t", "domain", name) for name in ("pause", "destroy")],
        AUDITDENY: [("guest_t", "dom0_t", "grant", "map_write")],
    }
    policy = changed(marks)
    granted = ask(policy, DOM0, GUEST, "domain", "pause", "create")
    assert (granted.allowed, granted.auditallow, granted.dontaudit) == (True, ("pause",), ())
    refused = ask(policy, GUEST, DOM0, "grant", "map_read", "map_write")
    assert (refused.allowed, refused.auditallow, refused.dontaudit) == (False, (), ("map_write",))
    assert refused.contexts == (GUEST, DOM0)
    plain = ask(XEN, GUEST, DOM0, "grant", "map_read", "map_write")
    assert (plain.auditallow, plain.dontaudit, plain.contexts) == ((), (), (GUEST, DOM0))


def test_the_policy_itself_as_a_target_has_the_context_of_its_sid() -> None:
    """`security` is no context, so it is not written as one."""
    answer = ask(XEN, GUEST, "security", "security", "load_policy")
    assert answer.contexts == (GUEST, "system_u:system_r:security_t")


def test_what_a_policy_cannot_name_has_no_access_vector() -> None:
    """An unknown label, class or permission: SELinux's tools would stop at such a record."""
    for asked in (
        (GUEST, "user_1:vm_r:nobody_t", "grant", "copy"),
        (GUEST, DOM0, "argo", "send"),
        (GUEST, DOM0, "grant", "query"),
    ):
        answer = ask(XEN, *asked)
        assert (answer.allowed, answer.contexts) == (False, ())


def test_a_permissive_source_is_let_pass_and_not_said_to_be_granted() -> None:
    """Allowed, with what the rules grant apart from what they do not; its target is not."""
    policy = changed({}, frozenset({"guest_t"}))
    answer = ask(policy, GUEST, OTHER, "grant", "copy", "map_read")
    assert (answer.allowed, answer.permissive, answer.code) == (True, True, "TYPE-PERMISSIVE")
    assert answer.granted == ()
    assert not ask(XEN, GUEST, OTHER, "grant", "copy", "map_read").allowed
    reverse = ask(policy, CHILD, GUEST, "grant", "map_read")
    assert (reverse.allowed, reverse.permissive) == (False, False)


PERMISSIONS = {
    "grant": ["map_read", "map_write", "copy"],
    "event": ["create", "send"],
    "domain": ["pause"],
}
rule_names = st.sampled_from(sorted(PERMISSIONS)).flatmap(
    lambda tclass: st.tuples(
        st.sampled_from(TYPES),
        st.sampled_from(TYPES),
        st.just(tclass),
        st.sampled_from(PERMISSIONS[tclass]),
    )
)
policies = st.builds(
    changed,
    st.fixed_dictionaries(
        {kind: st.lists(rule_names, max_size=8) for kind in (ALLOW, AUDITALLOW, AUDITDENY)}
    ),
    st.frozensets(st.sampled_from(TYPES)),
)
questions = st.builds(
    lambda one, two, asked: Request(label(one), label(two), *asked),
    st.sampled_from(CONTEXTS),
    st.sampled_from(CONTEXTS),
    st.sampled_from(ASKED),
)


@given(
    st.lists(policies, min_size=1, max_size=3),
    st.lists(questions | st.sampled_from(["load", "boolean"]), max_size=30),
    st.integers(1, 4),
)
def test_the_cache_answers_as_the_policy_would(
    found: list[FlaskPolicy], steps: list[Request | str], size: int
) -> None:
    """Under any rules, permissive types, loads and booleans, each answer is whole and fresh."""
    manager = PolicyManager(Stack([FlaskModule(found[0])]), MemoryHistory())
    manager._engine.in_force.cache = Avc(size)
    module, loads = FlaskModule(found[0]), 0
    for step in steps:
        if isinstance(step, Request):
            fresh = Stack([module]).decide(step, manager.generation)
            for _ in range(2):
                assert manager.decide_request(step) == fresh
        else:
            loads += 1
            if step == "load":
                module = FlaskModule(found[loads % len(found)])
            else:
                was = module.booleans()["guests_may_share"]
                module = module.with_booleans({"guests_may_share": not was})
            assert manager.load(Stack([module])) == loads + 1


def test_a_load_and_a_boolean_empty_the_cache() -> None:
    """The same question gets the new policy's answer at once; the control: before, the old."""
    request = Request(label(GUEST), label(GUEST), "grant", ("map_read",))
    module = FlaskModule(XEN)
    manager = PolicyManager(Stack([module]), MemoryHistory())
    assert [manager.decide_request(request).allowed for _ in range(2)] == [True, True]
    manager.load(Stack([module.with_booleans({"guests_may_share": False})]))
    assert not manager.decide_request(request).allowed
    permissive = FlaskModule(changed({}, frozenset({"guest_t"})), {"guests_may_share": False})
    manager.load(Stack([permissive]))
    assert manager.decide_request(request).answers[0].code == "TYPE-PERMISSIVE"


def verdict(policy: FlaskPolicy, hook: str, generation: int = 1, **parties: str) -> Verdict:
    """Return what a policy says to a hook."""
    stack = Stack([FlaskModule(policy)])
    sides = {role: label(context) for role, context in parties.items()}
    requests = expand(HOOKS[hook], sides, stack.transition)
    decisions = tuple(stack.decide(request, generation) for request in requests)
    allowed = all(decision.allowed for decision in decisions)
    return Verdict(hook, allowed, decisions, (), generation)


def audited(messages: AvcMessages, verdict: Verdict) -> list[tuple[str, str, Any]]:
    """Return source, target and permissions of what would be audited."""
    entries = [entry for entry in messages.of(verdict) if not isinstance(entry, int)]
    return [(str(e["subject"]), str(e["target"]), e["permissions"]) for e in entries]


def test_a_permissive_refusal_comes_once_a_generation_and_by_permission() -> None:
    """As Xen adds what was let pass to its cached entry: only what is new is reported."""
    policy = changed({}, frozenset({"guest_t"}))
    one_way = verdict(policy, "channel_one_way", source=GUEST, sink=OTHER)
    both = verdict(policy, "channel_two_way", source=GUEST, sink=OTHER)
    assert one_way.allowed
    assert both.allowed
    messages = AvcMessages()
    assert audited(messages, one_way) == [("sink", "source", ["map_read"])]
    assert audited(messages, one_way) == []
    assert audited(messages, both) == [
        ("source", "sink", ["map_read", "map_write"]),
        ("sink", "source", ["map_write"]),
    ]
    assert audited(messages, both) == []
    again = verdict(policy, "channel_one_way", 2, source=GUEST, sink=OTHER)
    assert audited(messages, again) == [("sink", "source", ["map_read"])]


def test_an_enforced_refusal_comes_every_time() -> None:
    """The control: without the permissive type nothing is forgotten."""
    messages = AvcMessages()
    refused = verdict(XEN, "channel_one_way", source=GUEST, sink=OTHER)
    for _ in range(3):
        assert audited(messages, refused) == [("sink", "source", ["map_read"])]


def test_a_refusal_hides_what_was_granted_beside_it() -> None:
    """As in the kernel: a question that was refused in part reports its refusals alone."""
    marks = {AUDITALLOW: [("dom0_t", "guest_t", "grant", "map_read")]}
    policy = changed(marks)
    request = Request(label(DOM0), label(GUEST), "grant", ("copy", "map_read"))
    decision = Stack([FlaskModule(policy)]).decide(request, 1)
    (entry,) = AvcMessages().of(Verdict("domain_pause", False, (decision,), (), 1))
    assert isinstance(entry, dict)
    assert (entry["refused"], entry["permissions"]) == (True, ["copy"])


def test_another_module_s_refusal_has_no_access_vector() -> None:
    """Where Flask allows and its neighbour refuses, Flask has nothing to report."""
    stack = Stack([FlaskModule(XEN), DummyModule()])
    operator = Label((("dummy", "guest"), ("flask", DOM0)))
    domain = Label((("dummy", "guest"), ("flask", GUEST)))
    decision = stack.decide(Request(operator, domain, "domain", ("pause",)), 1)
    assert [answer.allowed for answer in decision.answers] == [True, False]
    assert AvcMessages().of(Verdict("domain_pause", False, (decision,), (), 1)) == []
    both = stack.decide(Request(domain, operator, "domain", ("pause",)), 1)
    assert [answer.allowed for answer in both.answers] == [False, False]
    assert len(AvcMessages().of(Verdict("domain_pause", False, (both,), (), 1))) == 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit, all permissive refusals are recorded once more."""
    monkeypatch.setattr(avc_module, "MAX_HEARD", 0)
    policy = changed({}, frozenset({"guest_t"}))
    one_way = verdict(policy, "channel_one_way", source=GUEST, sink=OTHER)
    messages = AvcMessages()
    assert audited(messages, one_way) == audited(messages, one_way) != []


def test_the_access_vectors_of_the_largest_hook_fit_into_a_record() -> None:
    """With contexts as long as they get, some are counted instead, and the record is written."""
    long = "u:r:" + "t" * 4_000
    hook = max(HOOKS.values(), key=lambda hook: len(hook.asks))
    decisions = []
    for question in hook.asks:
        request = Request(label(GUEST), label(DOM0), question.tclass, question.permissions)
        answer = Answer("flask", False, "TE-NO-RULE", "no", contexts=(long, long))
        decisions.append(Decision(request, False, (answer,), 1))
    found = AvcMessages().of(Verdict(hook.name, False, tuple(decisions), (), 1))
    assert found[-1] == len(hook.asks) - (len(found) - 1)
    assert len(found) == MAX_AVC_CHARS // (2 * len(long)) + 1
    assert fields_json({"avc": found})


class Log:
    """An audit log in memory that can fail."""

    def __init__(self) -> None:
        self.records: list[tuple[str, Mapping[str, Any]]] = []
        self.broken = False

    async def append(self, event: str, fields: Mapping[str, object]) -> int:
        """Keep a record, or fail."""
        if self.broken:
            raise AuditUnavailable("the disk is full")
        self.records.append((event, fields))
        return len(self.records)

    def note(self, event: str, fields: Mapping[str, object]) -> None:
        """Forget it."""


def test_a_permissive_refusal_is_not_lost_when_nothing_was_recorded() -> None:
    """Judging without a record, and a record that failed, leave it to be told by the next one."""
    policy = changed({}, frozenset({"guest_t"}))

    async def main() -> None:
        log = Log()
        mediator = Mediator(PolicyManager(Stack([FlaskModule(policy)]), MemoryHistory()), log)
        parties = {"source": label(GUEST), "sink": label(OTHER)}
        for _ in range(2):
            assert (await mediator.judge("channel_one_way", parties)).allowed
        log.broken = True
        with pytest.raises(Denied):
            await mediator.permit("channel_one_way", lambda: parties, {})
        log.broken = False
        for _ in range(2):
            await mediator.permit("channel_one_way", lambda: parties, {})
        assert ["avc" in fields for _, fields in log.records] == [True, False]
        assert [event for event, _ in log.records] == ["allow", "allow"]

    asyncio.run(main())
