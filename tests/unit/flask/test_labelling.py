"""What new objects are labelled, and which texts are labels, on small policies."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.errors import Denied, UnknownLabel
from skerry.xsm.flask.context import MAX_CONTEXT
from skerry.xsm.flask.labelling import Kind
from tests.support.policies import Target
from tests.unit.flask.small import Asked, ask, conf

PLAIN = """
type app_t; type exec_t; type tool_t; type made_t; type named_t;
role run_r; role tool_r; role run_r types { app_t tool_t made_t }; role tool_r types tool_t;
"""
USERS = "user one_u roles { run_r tool_r }; user two_u roles run_r;"
APP, EXEC = "one_u:run_r:app_t", "two_u:object_r:exec_t"


def plain(tmp_path: Path, rules: str, *, head: str = "", target: Target = "selinux") -> Asked:
    """Compile a policy without levels around some rules."""
    version = 33 if target == "selinux" else 30
    text = conf(PLAIN + rules + USERS, head=head, target=target)
    return ask(tmp_path, text, target=target, version=version)


@pytest.mark.parametrize(
    ("tclass", "kind", "label"),
    [
        ("file", "transition", "one_u:object_r:exec_t"),
        ("file", "change", "one_u:object_r:exec_t"),
        ("file", "member", "two_u:object_r:exec_t"),
        ("process", "transition", "one_u:run_r:app_t"),
        # Linux alone: a socket acts for its maker.
        ("link_socket", "transition", "one_u:run_r:app_t"),
    ],
)
def test_without_a_rule_things_take_the_targets_type_and_actors_their_makers(
    tmp_path: Path, tclass: str, kind: Kind, label: str
) -> None:
    """The user is the maker's, but the target's for a member."""
    assert plain(tmp_path, "").label(APP, EXEC, tclass, kind) == label


def test_under_xen_a_socket_is_a_thing_like_any_other(tmp_path: Path) -> None:
    """The rule about sockets is Linux's."""
    asked = plain(tmp_path, "", target="xen")
    assert asked.label(APP, EXEC, "link_socket") == "one_u:object_r:exec_t"
    assert asked.label(APP, EXEC, "domain") == "one_u:run_r:app_t"


def test_each_kind_of_type_rule_answers_for_its_kind(tmp_path: Path) -> None:
    """transition, member and change rules do not answer for one another."""
    asked = plain(
        tmp_path,
        "type_transition app_t exec_t:file made_t; type_member app_t exec_t:file named_t;"
        " type_change app_t exec_t:file tool_t;",
    )
    assert asked.label(APP, EXEC, "file") == "one_u:object_r:made_t"
    assert asked.label(APP, EXEC, "file", "member") == "two_u:object_r:named_t"
    assert asked.label(APP, EXEC, "file", "change") == "one_u:object_r:tool_t"
    assert asked.label(APP, EXEC, "event") == "one_u:object_r:exec_t"


def test_a_name_counts_before_the_rule_without_one(tmp_path: Path) -> None:
    """A type transition by name holds for that name only."""
    asked = plain(
        tmp_path,
        "type_transition app_t exec_t:file made_t;"
        ' type_transition app_t exec_t:file named_t "log";',
    )
    assert asked.label(APP, EXEC, "file", name="log") == "one_u:object_r:named_t"
    assert asked.label(APP, EXEC, "file", name="other") == "one_u:object_r:made_t"
    assert asked.label(APP, EXEC, "file") == "one_u:object_r:made_t"


def test_a_role_transition_holds_for_its_class_and_role(tmp_path: Path) -> None:
    """Executing gives the new role; what the type then may not have is denied."""
    rules = "role_transition run_r exec_t tool_r;"
    with_type = plain(tmp_path, rules + "type_transition app_t exec_t:process tool_t;")
    assert with_type.label(APP, EXEC, "process") == "one_u:tool_r:tool_t"
    assert with_type.label(APP, EXEC, "process", "change") == "one_u:run_r:app_t"
    with pytest.raises(Denied, match=r"one_u:tool_r:app_t.*may not have the type app_t") as caught:
        plain(tmp_path, rules).label(APP, EXEC, "process")
    assert caught.value.code == "LABEL-INVALID"
    with pytest.raises(Denied, match="user two_u may not have the role tool_r"):
        with_type.label("two_u:run_r:app_t", EXEC, "process")


def test_an_event_channels_label_comes_from_its_owner(tmp_path: Path) -> None:
    """Xen's rule `type_transition OWNER PEER:event CHANNEL`."""
    asked = plain(tmp_path, "type_transition app_t tool_t:event made_t;", target="xen")
    assert asked.label(APP, "two_u:run_r:tool_t", "event") == "one_u:object_r:made_t"
    assert asked.label("two_u:run_r:tool_t", APP, "event") == "two_u:object_r:app_t"


def test_defaults_of_a_class_choose_the_side(tmp_path: Path) -> None:
    """default_user, default_role and default_type, as Linux reads them."""
    head = "default_user file target; default_role file source; default_type file source;"
    asked = plain(tmp_path, "", head=head)
    assert asked.label(APP, EXEC, "file") == "two_u:run_r:app_t"
    assert asked.label(APP, EXEC, "event") == "one_u:object_r:exec_t"


LEVELLED = """
type app_t; type exec_t; type other_t; role run_r; role run_r types app_t;
range_transition app_t exec_t:process s0:c1; range_transition app_t exec_t:file s1:c0 - s1:c0.c3;
user one_u roles run_r level s0 range s0 - s1:c0.c2;
user two_u roles run_r level s0:c1 range s0:c1 - s0:c1;
"""


def levelled(tmp_path: Path, head: str = "") -> Asked:
    """Compile a policy with levels."""
    return ask(tmp_path, conf(LEVELLED, mls=True, head=head))


def test_a_range_comes_from_a_rule_else_from_the_maker(tmp_path: Path) -> None:
    """Actors get the whole range, things the low level; a member the low level always."""
    asked = levelled(tmp_path)
    maker, made = "one_u:run_r:app_t:s0-s0:c1", "one_u:object_r:exec_t:s0"
    other = "one_u:object_r:other_t:s1"
    assert asked.label(maker, made, "process") == "one_u:run_r:app_t:s0:c1"
    assert asked.label(maker, made, "file") == "one_u:object_r:exec_t:s1:c0-s1:c0.c3"
    assert asked.label(maker, made, "process", "change") == maker
    assert asked.label(maker, other, "process") == maker
    assert asked.label(maker, other, "file") == "one_u:object_r:other_t:s0"
    assert asked.label(maker, other, "process", "member") == "one_u:run_r:app_t:s0"


@pytest.mark.parametrize(
    ("default", "level"),
    [
        ("source low", "s0"),
        ("source high", "s0:c1"),
        ("source low-high", "s0-s0:c1"),
        ("target low", "s0:c2"),
        ("target high", "s1:c1,c2"),
        ("target low-high", "s0:c2-s1:c1,c2"),
        ("glblub", "s0-s0:c1"),
    ],
)
def test_a_default_range_chooses_levels(tmp_path: Path, default: str, level: str) -> None:
    """All that Linux knows; `glblub` is what both ranges have in common."""
    asked = levelled(tmp_path, f"default_range file {default};")
    source, target = "one_u:run_r:app_t:s0-s0:c1", "one_u:object_r:other_t:s0:c2-s1:c1,c2"
    assert asked.label(source, target, "file") == f"one_u:object_r:other_t:{level}"
    # A rule counts before the default.
    ruled = asked.label(source, "one_u:object_r:exec_t:s0", "file")
    assert ruled == "one_u:object_r:exec_t:s1:c0-s1:c0.c3"


def test_ranges_without_a_common_level_have_no_default(tmp_path: Path) -> None:
    """`glblub` of disjoint ranges is a denial."""
    asked = levelled(tmp_path, "default_range file glblub;")
    with pytest.raises(Denied, match="no level in common"):
        asked.label("one_u:run_r:app_t:s0", "one_u:object_r:other_t:s1", "file")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("one_u:run_r:app_t:s0", "one_u:run_r:app_t:s0"),
        ("one_u:run_r:app_t:public-s0", "one_u:run_r:app_t:s0"),
        ("one_u:run_r:app_t:s0:c2,c0,red", "one_u:run_r:app_t:s0:c0.c2"),
        ("one_u:run_r:app_t:s0-s1:c0,c1", "one_u:run_r:app_t:s0-s1:c0,c1"),
        ("one_u:object_r:exec_t:s1:c0.c3", "one_u:object_r:exec_t:s1:c0.c3"),
    ],
)
def test_a_context_is_written_in_one_way(tmp_path: Path, text: str, written: str) -> None:
    """Aliases, order and runs of categories do not matter when it is read."""
    contexts = levelled(tmp_path).contexts
    assert contexts.text(contexts.parse(text)) == written
    assert contexts.parse(written) == contexts.parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("one_u:run_r:app_t", "written user:role:type:level"),
        ("", "written user:role:type:level"),
        ("no_u:run_r:app_t:s0", "no user 'no_u'"),
        ("one_u:no_r:app_t:s0", "no role 'no_r'"),
        ("one_u:run_r:no_t:s0", "no type 'no_t'"),
        ("one_u:run_r:app_t:s7", "no sensitivity 's7'"),
        ("one_u:run_r:app_t:s0:c9", "no category 'c9'"),
        ("one_u:run_r:app_t:s0:", "no category ''"),
        ("one_u:run_r:app_t:s0-", "no sensitivity ''"),
        ("one_u:run_r:app_t:s0:c2.c0", "runs backwards"),
        ("one_u:run_r:app_t:s0:c3", "does not go with its sensitivity"),
        ("one_u:run_r:app_t:s1-s0", "does not dominate"),
        ("one_u:run_r:app_t:s0:c0-s1", "does not dominate"),
        ("one_u:run_r:app_t:s0-s1:c3", "may not have that range"),
        ("two_u:run_r:app_t:s0", "may not have that range"),
        ("one_u:run_r:exec_t:s0", "role run_r may not have the type exec_t"),
        ("one_u:run_r:app_t:s0\n", "no sensitivity 's0\\\\n'"),
        ("one_u:run_r:app_t:s0 ", "no sensitivity 's0 '"),
        ("x" * (MAX_CONTEXT + 1), "longer than"),
    ],
)
def test_what_is_no_context_is_said(tmp_path: Path, text: str, why: str) -> None:
    """Each is one error with its reason."""
    with pytest.raises(UnknownLabel, match=why):
        levelled(tmp_path).contexts.parse(text)


def test_a_context_without_levels_has_three_parts(tmp_path: Path) -> None:
    """A policy without MLS takes no level."""
    contexts = plain(tmp_path, "").contexts
    assert contexts.text(contexts.parse(APP)) == APP
    with pytest.raises(UnknownLabel, match=r"written user:role:type$"):
        contexts.parse(APP + ":s0")


def test_a_thing_may_change_its_label_only_as_validatetrans_says(tmp_path: Path) -> None:
    """All of a class's rules must hold; a class without any lets everything pass."""
    rules = "validatetrans file (u1 == u2 or t3 == tool_t); validatetrans file (t2 != named_t);"
    asked = ask(tmp_path, conf(PLAIN + USERS + rules))
    names = ("one_u:object_r:exec_t", "two_u:object_r:exec_t", "one_u:object_r:named_t")
    old, other, named = map(asked.contexts.parse, names)
    app, tool = asked.contexts.parse(APP), asked.contexts.parse("one_u:run_r:tool_t")
    tclass, free = (asked.policy.class_named(name) for name in ("file", "event"))
    assert tclass
    assert free
    ask_change = asked.server.valid_transition
    assert ask_change(old, old, app, tclass.value)
    assert not ask_change(old, other, app, tclass.value)
    assert ask_change(old, other, tool, tclass.value)
    assert not ask_change(old, named, tool, tclass.value)
    assert ask_change(old, named, app, free.value)
