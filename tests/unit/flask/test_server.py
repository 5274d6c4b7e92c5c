"""The security server on small policies, compiled by the policy language's own compilers."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry.xsm.flask.model import XALLOW, Flavour
from skerry.xsm.flask.module import FlaskModule
from tests.support.policies import Target
from tests.unit.flask.small import ask, conf

USERS = "user one_u roles { run_r look_r }; user two_u roles run_r;"
ROLES = "role run_r; role look_r;"
ROLE_TYPES = "role run_r types { app_t tool_t data_t }; role look_r types { app_t tool_t };"
TYPES = "attribute domain; type app_t, domain; type tool_t, domain; type data_t;"


def body(rules: str) -> str:
    """Return a body with types, roles and users around some rules."""
    return f"{TYPES} bool wide false; bool tall true; {ROLES} {ROLE_TYPES}\n{rules}\n{USERS}"


APP, TOOL, DATA = "one_u:run_r:app_t", "one_u:run_r:tool_t", "one_u:object_r:data_t"


def test_rules_of_types_and_of_attributes_add_up(tmp_path: Path) -> None:
    """A type has what its own rules and those of its attributes say, and nothing else."""
    asked = ask(
        tmp_path,
        conf(body("allow domain data_t:file read; allow app_t data_t:file write;")),
    )
    assert asked.names(APP, DATA, "file") == ("read", "write")
    assert asked.names(TOOL, DATA, "file") == ("read",)
    assert asked.names(DATA, DATA, "file") == ()
    assert asked.names(APP, TOOL, "file") == ()


def test_auditing_rules_are_vectors_of_their_own(tmp_path: Path) -> None:
    """`auditallow` grants nothing, and `dontaudit` refuses nothing."""
    rules = "auditallow app_t data_t:file read; dontaudit domain data_t:file { write ioctl };"
    asked = ask(tmp_path, conf(body(rules + "allow app_t data_t:file ioctl;")))
    assert asked.vectors(APP, DATA, "file") == (("ioctl",), ("read",), ("ioctl", "write"))


@pytest.mark.parametrize(
    ("wide", "tall", "names"),
    [
        (True, True, ("read",)),
        (True, False, ("write",)),
        (False, True, ("write",)),
        (False, False, ("write",)),
    ],
)
def test_a_conditional_has_one_of_its_branches(
    tmp_path: Path, wide: bool, tall: bool, names: tuple[str, ...]
) -> None:
    """The expression over booleans says which."""
    rules = (
        "if (wide && tall) { allow app_t data_t:file read; }"
        " else { allow app_t data_t:file write; }"
    )
    asked = ask(tmp_path, conf(body(rules)), booleans={"wide": wide, "tall": tall})
    assert asked.names(APP, DATA, "file") == names


def test_booleans_begin_as_the_file_has_them(tmp_path: Path) -> None:
    """A boolean that nobody set has the policy's own value."""
    rules = (
        "if (tall) { allow app_t data_t:file read; } if (wide) { allow app_t data_t:file write; }"
    )
    assert ask(tmp_path, conf(body(rules))).names(APP, DATA, "file") == ("read",)


def test_a_constraint_takes_away_its_permissions_alone(tmp_path: Path) -> None:
    """Where it is false, what it names is refused; the rest of the class stays."""
    rules = "allow app_t domain:file { read write };"
    limits = "constrain file write (u1 == u2 and t1 != tool_t);"
    asked = ask(tmp_path, conf(body(rules) + limits))
    assert asked.names(APP, "one_u:run_r:tool_t", "file") == ("read", "write")
    assert asked.names(APP, "two_u:run_r:tool_t", "file") == ("read",)


def test_a_level_constraint_compares_levels(tmp_path: Path) -> None:
    """No write down: the source's low level must be dominated by the target's."""
    users = "user one_u roles run_r level s0 range s0 - s1:c0.c3;"
    text = f"{TYPES} role run_r; role run_r types app_t; allow app_t data_t:file {{ read write }};"
    asked = ask(tmp_path, conf(text + users, mls=True))
    levels = {"s0": ("read", "write"), "s1": ("read", "write"), "s0:c2": ("read",)}
    for level, names in levels.items():
        target = "one_u:object_r:data_t:" + ("s0" if level == "s0:c2" else level)
        source = "one_u:run_r:app_t:" + (level if level == "s0:c2" else "s0")
        assert asked.names(source, target, "file") == names


@pytest.mark.parametrize(
    ("target", "kept"), [("selinux", ("signal",)), ("xen", ("dyntransition", "signal"))]
)
def test_a_role_changes_only_where_a_role_allow_says_so(
    tmp_path: Path, target: Target, kept: tuple[str, ...]
) -> None:
    """SELinux guards `transition` and `dyntransition`, Xen the domain's `transition`."""
    actor = "process" if target == "selinux" else "domain"
    rules = f"allow domain domain:{actor} *; allow run_r look_r;"
    version = 33 if target == "selinux" else 30
    asked = ask(tmp_path, conf(body(rules), target=target), target=target, version=version)
    every = ("dyntransition", "signal", "transition")
    assert asked.names(APP, "one_u:look_r:app_t", actor) == every
    assert asked.names("one_u:look_r:app_t", APP, actor) == kept
    assert asked.names(APP, TOOL, actor) == every


BOUNDED = """(mls false) (handleunknown deny)
(class process (signal)) (class file (read write)) (classorder (process file))
(sid kernel) (sidorder (kernel)) (sensitivity s0) (sensitivityorder (s0))
(category c0) (categoryorder (c0)) (sensitivitycategory s0 (c0))
(type parent_t) (type child_t) (type over_t) (type under_t) (type free_t)
(typebounds parent_t child_t) (typebounds over_t under_t)
(role object_r) (roletype object_r parent_t) (roletype object_r child_t)
(roletype object_r over_t) (roletype object_r under_t) (roletype object_r free_t)
(user one_u) (userrole one_u object_r) (userlevel one_u (s0)) (userrange one_u ((s0) (s0)))
(sidcontext kernel (one_u object_r free_t ((s0) (s0))))
(allow child_t under_t (file (read write)))
(allow free_t under_t (file (read write)))
(allow child_t free_t (file (read write)))
"""


@pytest.mark.parametrize(
    ("rules", "source", "target", "linux", "xen"),
    [
        ("", "child_t", "free_t", (), ()),
        ("(allow parent_t free_t (file (read)))", "child_t", "free_t", ("read",), ("read",)),
        # A bounded target alone: Linux asks nothing, Xen asks with the target's bound.
        ("", "free_t", "under_t", ("read", "write"), ()),
        ("(allow free_t over_t (file (read)))", "free_t", "under_t", ("read", "write"), ("read",)),
        # Both bounded: either rule comes down to what the two bounds may do, since Xen's other
        # checks are bounded themselves.
        ("(allow parent_t over_t (file (read)))", "child_t", "under_t", ("read",), ("read",)),
        ("(allow parent_t under_t (file (read write)))", "child_t", "under_t", (), ()),
        ("(allow child_t over_t (file (read write)))", "child_t", "under_t", (), ()),
    ],
)
def test_bounds_of_both_flavours(
    tmp_path: Path,
    rules: str,
    source: str,
    target: str,
    linux: tuple[str, ...],
    xen: tuple[str, ...],
) -> None:
    """The same policy under Linux's rule and under Xen's older one, case by case."""
    expected: dict[Flavour, tuple[str, ...]] = {"selinux": linux, "xen": xen}
    for flavour, names in expected.items():
        asked = ask(tmp_path, BOUNDED + rules, flavour=flavour)
        one, two = f"one_u:object_r:{source}", f"one_u:object_r:{target}"
        assert asked.names(one, two, "file") == names, flavour


def test_permissive_types_are_found_by_their_value(tmp_path: Path) -> None:
    """The file's bitmap is indexed by the value itself, not by the value less one."""
    asked = ask(tmp_path, conf(body("permissive tool_t;")))
    kinds = [kind for kind in asked.policy.types.values() if not kind.attribute]
    assert len(kinds) == 4
    assert [k.name for k in kinds if asked.server.permissive(k.value)] == ["tool_t"]


@pytest.mark.parametrize(
    ("target", "unknown", "allowed"),
    [
        *(("selinux", "allow", True), ("selinux", "deny", False), ("selinux", "reject", False)),
        ("xen", "allow", False),
    ],
)
def test_what_the_policy_does_not_know(
    tmp_path: Path, target: Target, unknown: str, allowed: bool
) -> None:
    """SELinux does as the policy says, Xen refuses; what is known is decided as ever."""
    version = 33 if target == "selinux" else 30
    text = conf(body("allow app_t data_t:file read;"), target=target)
    asked = ask(tmp_path, text, target=target, version=version, flags=("-U", unknown))
    module = FlaskModule(asked.policy)
    assert module.decide(APP, DATA, "teapot", ["brew"]).allowed is allowed
    assert module.decide(APP, DATA, "file", ["brew"]).allowed is allowed
    assert module.decide(APP, DATA, "file", ["read", "brew"]).allowed is allowed
    assert module.decide(APP, DATA, "file", ["read"]).allowed
    assert not module.decide(APP, DATA, "file", ["write"]).allowed
    assert not module.decide(APP, DATA, "file", ["write", "brew"]).allowed


def test_extended_permissions_are_read_and_leave_the_vectors_alone(tmp_path: Path) -> None:
    """Numbers of one high byte are listed, whole high bytes are ranges of drivers."""
    rules = "allow app_t data_t:file ioctl; allowxperm app_t data_t:file ioctl"
    asked = ask(tmp_path, conf(body(f"{rules} {{ 0x8910-0x8912 0x8927 0x1100-0x12ff }};")))
    assert asked.names(APP, DATA, "file") == ("ioctl",)
    assert {rule.kind for rule in asked.policy.extended} == {XALLOW}
    listed = {rule.form: rule for rule in asked.policy.extended}
    assert listed[1].driver == 0x89
    assert _numbers(listed[1].numbers) == [0x10, 0x11, 0x12, 0x27]
    assert _numbers(listed[2].numbers) == [0x11, 0x12]
    sides = {(rule.source, rule.target) for rule in asked.policy.extended}
    assert sides == {(asked.value("app_t"), asked.value("data_t"))}


def _numbers(bits: int) -> list[int]:
    return [number for number in range(256) if bits >> number & 1]
