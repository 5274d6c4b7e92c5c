"""Xen's default FLASK policy, unmodified: what each of our operations gets from it."""

from __future__ import annotations

import pytest

from skerry.label import Label
from skerry.policy.source import load_stack
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.hooks import HOOKS, expand
from skerry.xsm.stack import Stack
from tests.support import policies

OPERATIONS = tuple(
    name for name in HOOKS if name.startswith("domain_") and name != "domain_relabel"
)
CHANNELS = ("channel_two_way", "channel_one_way", "memory_read", "memory_both")

DOM_U = "system_u:system_r:domU_t"
ISOLATED = "system_u:system_r:isolated_domU_t"
BUILDING = "system_u:system_r:nomigrate_t_building"
NOMIGRATE = "system_u:system_r:nomigrate_t"
PROTECTED = "system_u:system_r:prot_domU_t"
USER_1 = "user_1:vm_r:domU_t"
USER_2 = "user_2:vm_r:domU_t"


@pytest.fixture(scope="module", params=[24, 30])
def stack(request: pytest.FixtureRequest) -> Stack:
    """Xen's default policy in either of the versions that Xen reads."""
    return load_stack([policies.xen(request.param)])


def refusals(stack: Stack, hook: str, **labels: str) -> list[str]:
    """Return the reason of each question of a hook that the policy refuses."""
    parties = {role: Label((("flask", text),)) for role, text in labels.items()}
    parties.setdefault("operator", stack.operator_label())
    requests = expand(HOOKS[hook], parties, stack.transition)
    answers = [answer for r in requests for answer in stack.decide(r, 0).answers]
    return [answer.reason for answer in answers if not answer.allowed]


@pytest.mark.parametrize("label", [DOM_U, ISOLATED, USER_1])
@pytest.mark.parametrize("hook", OPERATIONS)
def test_domain_0_may_do_all_that_an_operator_does(stack: Stack, hook: str, label: str) -> None:
    """Start, pause, resume, run a command, use the console: nothing has to be added to Xen's."""
    assert refusals(stack, hook, domain=label) == []


@pytest.mark.parametrize("hook", ["policy_load", "policy_setbool"])
def test_domain_0_may_change_the_policy_and_no_other_domain(stack: Stack, hook: str) -> None:
    """The target is the policy itself; the operator's label decides."""
    assert refusals(stack, hook, security="security") == []
    assert refusals(stack, hook, security="security", operator=DOM_U) != []


@pytest.mark.parametrize("hook", CHANNELS)
@pytest.mark.parametrize(
    ("one", "other", "may"),
    [
        (DOM_U, DOM_U, True),
        (DOM_U, USER_1, True),
        (USER_1, USER_1, True),
        (USER_1, USER_2, False),
        (DOM_U, PROTECTED, True),
        (DOM_U, ISOLATED, False),
        (ISOLATED, DOM_U, False),
        (ISOLATED, ISOLATED, False),
        (DOM_U, NOMIGRATE, False),
    ],
)
def test_who_may_have_a_channel(stack: Stack, hook: str, one: str, other: str, may: bool) -> None:
    """Ordinary domains of one user, or with the system's; an isolated one with nobody."""
    assert (refusals(stack, hook, source=one, sink=other) == []) is may


def test_a_domain_is_built_under_one_label_and_runs_under_another(stack: Stack) -> None:
    """`nomigrate_t` can't be created, its building label can't run; the relabel joins them."""
    assert refusals(stack, "domain_create", domain=NOMIGRATE) != []
    assert refusals(stack, "domain_create", domain=BUILDING) == []
    assert refusals(stack, "domain_unpause", domain=BUILDING) != []
    assert refusals(stack, "domain_relabel", domain=BUILDING, new=NOMIGRATE) == []
    assert refusals(stack, "domain_unpause", domain=NOMIGRATE) == []
    assert refusals(stack, "domain_relabel", domain=DOM_U, new=ISOLATED) != []


def test_a_boolean_locks_protected_domains(stack: Stack) -> None:
    """They may be created until `prot_doms_locked` is set; Xen's policy never unpauses them."""
    (flask,) = stack.modules
    assert isinstance(flask, FlaskModule)
    locked = Stack([flask.with_booleans({"prot_doms_locked": True})])
    assert refusals(stack, "domain_create", domain=PROTECTED) == []
    assert refusals(locked, "domain_create", domain=PROTECTED) != []
    assert refusals(locked, "domain_create", domain=DOM_U) == []
    assert refusals(stack, "domain_unpause", domain=PROTECTED) != []
