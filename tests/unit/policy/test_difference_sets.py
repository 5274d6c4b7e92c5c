"""What decides beside the rules: sets of constraints, names of things, defaults, the order of
levels. A change of any of them is shown, and is taken to open something."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.policy.difference import Change, differences
from skerry.policy.opening import opens_nothing
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.stack import Stack
from tests.support.policies import XEN_CLASSES, compile_conf
from tests.unit.flow.sample import loaded

TYPES = [f"t{number}_t" for number in range(20)]
MEMBER = "typeattribute t1_t trusted;\n"
SET = "{ " + " ".join([*TYPES[1::2], "t0_t", "t10_t", "t12_t"]) + " }"
"""More names than an explanation lists; as the compiler numbers them, `t12_t` is the last."""
TEXT = f"""{XEN_CLASSES}attribute trusted;
attribute every;
{"".join(f"type {name}, every;" for name in TYPES)}
typealias t3_t alias old_t;
{MEMBER}role r; role r types every;
allow every every:grant {{ map_read map_write }};
allow every every:event {{ create bind send }};
user u roles r;
constrain grant {{ map_read }} (t1 == trusted or t2 == t0_t);
constrain grant {{ map_write }} (t1 == {SET});
sid kernel u:r:t0_t
sid security u:r:t0_t
"""


def made(tmp_path: Path, name: str, text: str, *flags: str, mls: bool = False) -> FlaskModule:
    """Compile and load a policy."""
    return loaded(compile_conf(text, tmp_path / name, "selinux", 33, *flags, mls=mls))


def found(old: FlaskModule, new: FlaskModule) -> list[Change]:
    """Return the difference."""
    return list(differences(old, new))


@pytest.mark.parametrize(
    ("before", "after", "kinds"),
    [
        (MEMBER, MEMBER + "typeattribute t2_t trusted;\n", {"constraint"}),
        (SET, SET.replace("t12_t", "t14_t"), {"constraint"}),
        ("t3_t alias old_t", "t4_t alias old_t", {"alias"}),
        ("attribute trusted", "default_role domain target;\nattribute trusted", {"default"}),
        ("class event { create bind send }", "class event { create bind send reset }",
         {"permission"}),
    ],
)  # fmt: skip
def test_what_decides_beside_the_rules_is_compared(
    before: str, after: str, kinds: set[str], tmp_path: Path
) -> None:
    """Each is shown and opens something; the control: the same policy again does neither."""
    assert before in TEXT
    old, new = made(tmp_path, "old", TEXT), made(tmp_path, "new", TEXT.replace(before, after))
    changes = found(old, new)
    assert {change.kind for change in changes} == kinds
    assert len({change.text for change in changes}) == len(changes)
    assert not opens_nothing(Stack([old]), Stack([new]))
    same = made(tmp_path, "same", "# the same\n" + TEXT)
    assert found(old, same) == []
    assert opens_nothing(Stack([old]), Stack([same]))


def test_a_set_that_differs_is_written_out(tmp_path: Path) -> None:
    """Where the statements read the same: an attribute, and more names than an explanation has."""
    more = TEXT.replace(MEMBER, MEMBER + "typeattribute t2_t trusted;\n")
    changes = found(made(tmp_path, "old", TEXT), made(tmp_path, "new", more))
    assert [(change.effect, change.text.partition("where ")[2]) for change in changes] == [
        ("removed", "t1 == { t1_t }, t2 == { t0_t }"),
        ("added", "t1 == { t1_t t2_t }, t2 == { t0_t }"),
    ]


def test_a_type_that_goes_changes_no_constraint(tmp_path: Path) -> None:
    """It was in an attribute, a set and an alias: it only takes away, and an eviction needs that.

    The control brings it back.
    """
    text = TEXT.replace(MEMBER, MEMBER + "typeattribute t13_t trusted;\n")
    less = text.replace("typeattribute t13_t trusted;\n", "").replace("type t13_t, every;", "")
    old, new = made(tmp_path, "old", text), made(tmp_path, "new", less.replace(" t13_t", ""))
    assert {change.kind for change in found(old, new)} == {"type", "allow", "role types"}
    assert opens_nothing(Stack([old]), Stack([new]))
    assert not opens_nothing(Stack([new]), Stack([old]))


def test_a_permission_that_goes_is_let_pass_where_what_is_unknown_is_allowed(
    tmp_path: Path,
) -> None:
    """No rule gives it any more, and everybody has it."""
    less = TEXT.replace("send }", "}")
    old, new = (
        made(tmp_path, name, text, "-U", "allow") for name, text in (("old", TEXT), ("new", less))
    )
    assert not opens_nothing(Stack([old]), Stack([new]))


def test_the_order_of_levels_counts(tmp_path: Path) -> None:
    """`l1 dom l2` reads the same, and says the reverse."""
    levels = "sensitivity s0; sensitivity s1;\ndominance { s0 s1 }\ncategory c0; category c1;\n"
    levels += "level s0:c0,c1; level s1:c0,c1;\nmlsconstrain grant { map_read } (l1 dom l2);\n"
    text = (
        XEN_CLASSES + levels + "type a_t; role r; role r types a_t;\n"
        "allow a_t a_t:grant { map_read };\nuser u roles r level s0 range s0;\n"
        "sid kernel u:r:a_t:s0\nsid security u:r:a_t:s0\n"
    )
    old = made(tmp_path, "old", text, mls=True)
    for change in (
        text.replace("{ s0 s1 }", "{ s1 s0 }"),
        text.replace("category c0; category c1;", "category c1; category c0;"),
        text.replace("level s1:c0,c1", "level s1:c0"),
    ):
        assert change != text
        new = made(tmp_path, "new", change, mls=True)
        assert {one.kind for one in found(old, new)} == {"level"}
        assert not opens_nothing(Stack([old]), Stack([new]))
    assert found(old, made(tmp_path, "same", text, mls=True)) == []
