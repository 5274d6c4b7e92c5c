"""Why Flask allowed or denied: each reason, its rule and the values that made it so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from skerry.policy.load import load_policy
from skerry.xsm.flask.model import Constraint, Term
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.flask.reason import MAX_EXPRESSION_TEXT
from skerry.xsm.request import Answer
from tests.support import policies

SIDS = ("xenboot", "xen", "dom0", "domio", "domxen", "unlabeled", "security")

XEN = """
class domain
class event
class grant
class hvm
class mmu
{sids}
class domain {{ create transition pause }}
class event {{ bind send }}
class grant {{ map_read map_write copy }}
class hvm {{ dm }}
class mmu {{ adjust }}
attribute guests;
attribute nobody_has;
type dom0_t;
type a_t, guests;
type b_t, guests;
type child_t;
typebounds a_t child_t;
bool may_share false;
bool locked true;
bool third false;
role dom0_r;
role vm_r;
role other_r;
role dom0_r types dom0_t;
role vm_r types {{ a_t b_t child_t }};
role other_r types {{ a_t b_t }};
allow dom0_r vm_r;
allow dom0_t guests:domain create;
allow dom0_t a_t:domain pause;
allow guests guests:event send;
allow {{ guests dom0_t }} guests:domain transition;
allow a_t b_t:grant {{ copy map_read }};
allow b_t a_t:grant copy;
allow child_t child_t:event {{ bind send }};
allow a_t child_t:event send;
allow child_t a_t:event send;
allow {{ a_t child_t }} a_t:hvm dm;
allow a_t a_t:event bind;
if (may_share) {{ allow guests a_t:grant map_write; }} else {{ allow b_t b_t:grant map_write; }}
if ((may_share or third) and !locked) {{ allow a_t a_t:mmu adjust; }}
user system_u roles {{ dom0_r vm_r other_r }};
user one_u roles {{ vm_r other_r }};
user two_u roles {{ vm_r other_r }};
constrain grant copy ( u1 == u2 or t1 == a_t and not (r2 == other_r) );
constrain hvm dm ( t1 != a_t );
constrain event send ( t2 != nobody_has );
{contexts}
"""

DOM0 = "system_u:dom0_r:dom0_t"
A, B = "one_u:vm_r:a_t", "one_u:vm_r:b_t"
CHILD = "one_u:vm_r:child_t"


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> FlaskModule:
    """Compile the small policy for Xen."""
    source = XEN.format(
        sids="\n".join(f"sid {name}" for name in SIDS),
        contexts="\n".join(f"sid {name} {DOM0}" for name in SIDS),
    )
    folder = tmp_path_factory.mktemp("policy")
    found = load_policy(policies.compile_conf(source, folder / "xen", "xen", 30, mls=False))
    assert isinstance(found, FlaskModule)
    return found


def why(
    module: FlaskModule,
    one: str,
    two: str,
    asked: str,
    booleans: Mapping[str, bool] | None = None,
) -> Answer:
    """Ask `class permission...`, with some booleans set."""
    tclass, *permissions = asked.split()
    return module.with_booleans(booleans or {}).decide(one, two, tclass, permissions)


def test_an_allow_names_the_rule_by_its_attribute(module: FlaskModule) -> None:
    """As the policy has it: the attribute where one gave it, the type where the type did."""
    answer = why(module, DOM0, B, "domain create")
    assert (answer.code, answer.rule.text) == (
        "TE-ALLOWED",
        "allow dom0_t guests:domain { create };",
    )
    assert why(module, DOM0, A, "domain pause").rule.text == "allow dom0_t a_t:domain { pause };"
    assert answer.rule.file.endswith("/xen")


def test_an_allow_that_needs_two_rules_names_both(module: FlaskModule) -> None:
    """One rule for each permission at most, and no rule twice."""
    answer = why(module, DOM0, A, "domain create pause")
    assert answer.allowed
    assert set(answer.rule.text.rstrip(";").split("; ")) == {
        "allow dom0_t a_t:domain { pause }",
        "allow dom0_t guests:domain { create }",
    }


def test_a_conditional_rule_is_shown_with_its_condition(module: FlaskModule) -> None:
    """While the boolean is set it allows; while not, the denial names it."""
    allowed = why(module, A, A, "grant map_write", {"may_share": True})
    assert allowed.rule.text == "if (may_share) { allow guests a_t:grant { map_write }; }"
    denied = why(module, A, A, "grant map_write")
    assert (denied.allowed, denied.code) == (False, "TE-NO-RULE")
    assert denied.reason == ("a rule allows a_t a_t:grant map_write, but not while may_share = 0")
    assert denied.rule.text == "if (may_share) { allow guests a_t:grant { map_write }; }"


def test_the_other_branch_is_shown_as_the_negated_condition(module: FlaskModule) -> None:
    """What stands under `else` holds while the condition is false."""
    allowed = why(module, B, B, "grant map_write")
    assert allowed.rule.text == "if (!may_share) { allow b_t b_t:grant { map_write }; }"
    denied = why(module, B, B, "grant map_write", {"may_share": True})
    assert denied.rule.text == "if (!may_share) { allow b_t b_t:grant { map_write }; }"
    assert "not while may_share = 1" in denied.reason


def test_a_condition_is_written_with_the_brackets_it_needs(module: FlaskModule) -> None:
    """And each boolean in it with its value."""
    denied = why(module, A, A, "mmu adjust", {"third": True})
    assert denied.rule.text.startswith("if ((may_share || third) && !locked) {")
    assert denied.reason.endswith("not while may_share = 0, third = 1, locked = 1")
    allowed = why(module, A, A, "mmu adjust", {"third": True, "locked": False})
    assert allowed.allowed
    assert allowed.rule.text == denied.rule.text


def test_a_denial_without_a_rule_names_those_that_come_nearest(module: FlaskModule) -> None:
    """Those of the same source first; where there is none at all, it says that."""
    denied = why(module, A, A, "grant map_read")
    assert denied.reason == "no rule allows a_t a_t:grant map_read"
    assert denied.rule.text == "nearest: allow a_t b_t:grant { map_read };"
    other = why(module, B, A, "grant map_read")
    assert other.rule.text == "no rule comes near"
    none = why(module, DOM0, DOM0, "grant map_write")
    assert none.rule.text == "no rule comes near"


def test_what_was_granted_of_a_partial_refusal_is_told(module: FlaskModule) -> None:
    """The reason is that of the permission that was lost."""
    denied = why(module, DOM0, B, "domain create pause")
    assert (denied.allowed, denied.granted) == (False, ("create",))
    assert denied.reason == "no rule allows dom0_t b_t:domain pause"


def test_a_constraint_is_shown_in_infix_form_with_its_values(module: FlaskModule) -> None:
    """The expression as the policy language writes it, and what each side stood for."""
    two = "two_u:other_r:b_t"
    denied = why(module, A, two, "grant copy")
    assert (denied.allowed, denied.code) == (False, "CONSTRAINT-FALSE")
    assert denied.rule.text == (
        "constrain grant { copy } (u1 == u2 or t1 == a_t and not r2 == other_r);"
    )
    assert denied.reason == (
        "a constraint on grant copy is false: u1 = one_u, u2 = two_u, t1 = a_t, r2 = other_r"
    )
    assert why(module, A, B, "grant copy").allowed
    assert why(module, A, "two_u:vm_r:b_t", "grant copy").allowed


def test_an_endless_constraint_is_cut_off_in_a_reason(module: FlaskModule) -> None:
    """A hostile policy can make no reason that fills a record, nor one that takes minutes."""
    policy = module.policy
    grant = module.classes["grant"]
    same, other = Term("pair", "u1", "==", "u2"), Term("pair", "r1", "==", "r2")
    terms = [
        same,
        *[term for _ in range(100_000) for term in (other, same, Term("and"), Term("or"))],
    ]
    long = msgspec.structs.replace(
        grant, constraints=(Constraint(grant.vector(frozenset({"copy"})), tuple(terms)),)
    )
    classes = {**policy.classes, grant.value: long}
    endless = FlaskModule(msgspec.structs.replace(policy, classes=classes))
    denied = why(endless, A, "two_u:vm_r:b_t", "grant copy")
    assert (denied.allowed, denied.code) == (False, "CONSTRAINT-FALSE")
    assert denied.rule.text.startswith("constrain grant { copy } (u1 == u2 or r1 == r2 and u1 ==")
    assert denied.rule.text.endswith(" ...);")
    assert len(denied.rule.text) < MAX_EXPRESSION_TEXT + 100
    assert why(endless, A, B, "grant copy").allowed


def test_roles_are_named_where_they_may_not_change(module: FlaskModule) -> None:
    """Only a role allow lets a domain take another role; the same role needs none."""
    denied = why(module, A, "one_u:other_r:b_t", "domain transition")
    assert (denied.allowed, denied.code) == (False, "ROLE-NOT-ALLOWED")
    assert denied.reason == "the role vm_r may not change to other_r"
    assert denied.rule.text == "no rule: allow vm_r other_r;"
    assert why(module, A, B, "domain transition").allowed
    assert why(module, DOM0, A, "domain transition").allowed


def test_bounds_are_named_where_the_parent_may_not(module: FlaskModule) -> None:
    """What the bounding type lacks its child does not have, though a rule gives it."""
    denied = why(module, CHILD, A, "hvm dm")
    assert (denied.allowed, denied.code) == (False, "TYPE-BOUNDS")
    assert denied.reason == "the bounds of child_t do not have hvm dm"
    assert denied.rule.text == "typebounds a_t child_t;"
    assert why(module, CHILD, A, "event send").allowed


def test_a_context_that_the_policy_does_not_allow_says_what_is_wrong(module: FlaskModule) -> None:
    """The part that is wrong by name; nothing is guessed."""
    for context, words in (
        ("one_u:vm_r", "is written user:role:type"),
        ("one_u:vm_r:a_t:s0", "is written user:role:type"),
        ("nobody_u:vm_r:a_t", "no user 'nobody_u'"),
        ("one_u:no_r:a_t", "no role 'no_r'"),
        ("one_u:vm_r:guests", "no type 'guests'"),
        ("one_u:vm_r:dom0_t", "the role vm_r may not have the type dom0_t"),
        ("one_u:dom0_r:dom0_t", "the user one_u may not have the role dom0_r"),
    ):
        for sides in ((context, A), (A, context)):
            answer = why(module, *sides, "grant copy")
            assert (answer.allowed, answer.code) == (False, "LABEL-UNKNOWN")
            assert words in answer.reason


def test_what_xen_does_not_know_is_denied_and_says_so(module: FlaskModule) -> None:
    """A class and a permission that the policy lacks."""
    for asked, code in (("argo send", "CLASS-UNKNOWN"), ("grant query", "PERMISSION-UNKNOWN")):
        answer = why(module, A, A, asked)
        assert (answer.allowed, answer.code) == (False, code)
        assert answer.reason.endswith("Xen denies what its policy does not know")
        assert answer.rule.text == "handle_unknown = deny"


SELINUX = """
(handleunknown {unknown})
(mls true)
(class process (transition dyntransition signal))
(class file (read write))
(classorder (process file))
(sid kernel) (sid security) (sid unlabeled) (sidorder (kernel security unlabeled))
(sensitivity s0) (sensitivity s1) (sensitivityorder (s0 s1))
(category c0) (category c1) (category c2) (categoryorder (c0 c1 c2))
(sensitivitycategory s0 (range c0 c2)) (sensitivitycategory s1 (range c0 c2))
(user u) (role r)
(type a_t) (type b_t) (type loose_t) (type secret_t)
(typeattribute files) (typeattributeset files (b_t secret_t))
(userrole u r)
(roletype r a_t) (roletype r b_t) (roletype r loose_t) (roletype r secret_t)
(userlevel u (s0)) (userrange u ((s0) (s1 (range c0 c2))))
(sidcontext kernel (u r a_t ((s0) (s0))))
(sidcontext security (u r a_t ((s0) (s0))))
(sidcontext unlabeled (u r a_t ((s0) (s0))))
(typepermissive loose_t)
(allow a_t files (file (read write)))
(mlsconstrain (file (read)) (dom h1 l2))
(mlsconstrain (file (write)) (or (eq l1 l2) (eq t2 secret_t)))
"""


def selinux(folder: Path, unknown: str = "deny") -> FlaskModule:
    """Compile the small policy for SELinux."""
    path = policies.compile_cil(SELINUX.format(unknown=unknown), folder / unknown, "selinux", 33)
    found = load_policy(path)
    assert isinstance(found, FlaskModule)
    return found


def test_levels_are_shown_in_an_mls_constraint(tmp_path: Path) -> None:
    """Sensitivity and categories of each side that the expression names."""
    module = selinux(tmp_path)
    denied = why(module, "u:r:a_t:s0-s0:c0", "u:object_r:b_t:s0:c0,c2", "file read")
    assert (denied.allowed, denied.code) == (False, "CONSTRAINT-FALSE")
    assert denied.rule.text == "mlsconstrain file { read } (h1 dom l2);"
    assert denied.reason.endswith("false: h1 = s0:c0, l2 = s0:c0,c2")
    write = why(module, "u:r:a_t:s0", "u:object_r:b_t:s1", "file write")
    assert write.rule.text == "mlsconstrain file { write } (l1 == l2 or t2 == secret_t);"
    assert write.reason.endswith("l1 = s0, l2 = s1, t2 = b_t")
    assert why(module, "u:r:a_t:s0-s0:c0.c2", "u:object_r:b_t:s0:c0,c2", "file read").allowed


def test_a_permissive_source_says_what_would_have_been_refused(tmp_path: Path) -> None:
    """Allowed, by name, with the reason it would not be otherwise."""
    answer = why(selinux(tmp_path), "u:r:loose_t:s0", "u:object_r:b_t:s0", "file read")
    assert (answer.allowed, answer.code) == (True, "TYPE-PERMISSIVE")
    assert answer.reason == (
        "loose_t is permissive; otherwise: no rule allows loose_t b_t:file read"
    )


@pytest.mark.parametrize(("unknown", "allowed"), [("deny", False), ("allow", True)])
def test_what_selinux_does_not_know_is_as_the_policy_says(
    tmp_path: Path, unknown: str, allowed: bool
) -> None:
    """For a class, and for a permission beside known ones; the answer quotes the policy."""
    module = selinux(tmp_path, unknown)
    for asked in ("grant map_read", "file read frobnicate"):
        answer = why(module, "u:r:a_t:s0", "u:object_r:b_t:s0", asked)
        assert answer.allowed is allowed
        assert answer.rule.text == f"handle_unknown = {unknown}"
    known = why(module, "u:r:a_t:s0", "u:object_r:b_t:s0", "process signal frobnicate")
    assert not known.allowed


def test_a_level_that_a_context_cannot_have_says_what_is_wrong(tmp_path: Path) -> None:
    """Unknown parts, ranges that run backwards, a high level below the low one."""
    module = selinux(tmp_path)
    for level, words in (
        ("s9", "no sensitivity 's9'"),
        ("s0:c9", "no category 'c9'"),
        ("s0:c2.c0", "runs backwards"),
        ("s1-s0", "does not dominate"),
        ("s0:c0-s1:c1", "does not dominate"),
        ("", "no sensitivity ''"),
        ("s0:", "no category ''"),
    ):
        answer = why(module, f"u:r:a_t:{level}", "u:object_r:b_t:s0", "file read")
        assert (answer.allowed, answer.code) == (False, "LABEL-UNKNOWN"), level
        assert words in answer.reason
    missing = why(module, "u:r:a_t", "u:object_r:b_t:s0", "file read")
    assert "is written user:role:type:level" in missing.reason


def xen_default(one: str, two: str, asked: str, **booleans: bool) -> Answer:
    """Ask Xen's own default policy."""
    module = load_policy(policies.xen())
    assert isinstance(module, FlaskModule)
    return why(module, f"system_u:system_r:{one}", f"system_u:system_r:{two}", asked, booleans)


def test_xens_default_policy_explains_itself() -> None:
    """An allow by attribute, one by boolean, no rule, and its constraint on grants."""
    console = xen_default("domU_t", "xen_t", "xen writeconsole")
    rule = "if (guest_writeconsole) { allow domain_type xen_t:xen { writeconsole }; }"
    assert (console.allowed, console.rule.text) == (True, rule)
    off = xen_default("domU_t", "xen_t", "xen writeconsole", guest_writeconsole=False)
    assert (off.allowed, off.rule.text) == (False, rule)
    assert off.reason.endswith("not while guest_writeconsole = 0")
    isolated = xen_default("domU_t", "isolated_domU_t", "grant map_read")
    assert isolated.reason == "no rule allows domU_t isolated_domU_t:grant map_read"
    # Several come as near; which of them are shown hangs on the compiler's numbers.
    nearest, *others = isolated.rule.text.removeprefix("nearest: ").split("; ")
    assert len(others) == 1
    for shown in (nearest, others[0]):
        found = re.fullmatch(r"allow domU_t (\w+):grant \{ map_read \};?", shown)
        assert found, isolated.rule.text
        assert xen_default("domU_t", found[1], "grant map_read").allowed
    module = load_policy(policies.xen())
    users = module.decide("user_1:vm_r:domU_t", "user_2:vm_r:domU_t", "grant", ("map_read",))
    assert users.reason.endswith("false: u1 = user_1, u2 = user_2")
    assert "(u1 == system_u or u2 == system_u or u1 == u2);" in users.rule.text
