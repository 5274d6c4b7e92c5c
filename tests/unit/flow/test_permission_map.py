"""The permission maps: complete for the policies at hand, in accord with SETools', and strict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from skerry.errors import InputError
from skerry.flow.flask import check_map
from skerry.flow.permission_map import Flow, read_map, shipped_map
from tests.support import policies
from tests.support import setools_oracle as setools
from tests.support.policies import compile_conf
from tests.unit.flow.sample import loaded

OPPOSITE = {
    ("db_database", "install_module"): "a module goes into the database",
    ("db_database", "load_module"): "as above",
    ("db_language", "execute"): "a handler's code becomes part of the caller",
    ("db_schema", "relabelfrom"): "what has the old label is moved, as everywhere else",
    ("db_schema", "relabelto"): "as above",
    ("db_sequence", "setattr"): "setting an attribute writes it",
    ("db_view", "expand"): "the view's definition is read",
    ("x_application_data", "copy"): "copying puts data into the selection",
    ("x_application_data", "paste"): "pasting takes it out",
    ("x_application_data", "paste_after_confirm"): "as above",
    ("x_device", "grab"): "who grabs a device reads all its events",
    ("x_keyboard", "getfocus"): "asking who has the focus reads",
    ("x_keyboard", "grab"): "as x_device",
    ("x_pointer", "getfocus"): "as above",
    ("x_pointer", "grab"): "as x_device",
    ("perf_event", "open"): "opening sets an event up; reading is `read`",
}
"""Permissions to which the two maps give opposite directions, and why ours is what it is."""


@pytest.mark.parametrize("path", [policies.xen, policies.xen_mls, policies.selinux])
def test_the_shipped_map_has_every_permission_of_the_real_policies(
    path: Callable[[], Path],
) -> None:
    """Xen's policy and Debian's: every permission of every class is mapped, granted or not."""
    policy = loaded(path()).policy
    chosen = shipped_map(policy.flavour)
    lacking = {
        tclass.name: tclass.names(chosen.masks(tclass).unknown)
        for tclass in policy.classes.values()
        if chosen.masks(tclass).unknown
    }
    assert lacking == {}


def test_xens_thirteen_classes_are_mapped_and_nothing_else() -> None:
    """The map names what Xen's policy declares: no class and no permission more."""
    policy = loaded(policies.xen()).policy
    declared = {c.name: set(c.permissions) - {""} for c in policy.classes.values()}
    assert len(declared) == 13
    assert {name: set(flows) for name, flows in shipped_map("xen").classes.items()} == declared


def test_directions_agree_with_setools_but_for_those_with_a_reason() -> None:
    """Of all that both maps let flow, only the listed permissions flow in opposite directions."""
    ours = shipped_map("selinux").classes
    theirs = read_map(setools.own_map().read_bytes(), "perm_map").classes
    assert set(theirs) <= set(ours)
    opposite = set()
    compared = 0
    for tclass, permissions in theirs.items():
        assert set(permissions) <= set(ours[tclass])
        for name, flow in permissions.items():
            ways = {flow.direction, ours[tclass][name].direction}
            compared += not ways & {"none"}
            if ways == {"r", "w"}:
                opposite.add((tclass, name))
    assert compared > 1_000
    assert opposite == set(OPPOSITE)


def test_content_weighs_most_in_both_maps() -> None:
    """Reading and writing files, memory and messages has weight 10."""
    selinux, xen = shipped_map("selinux").classes, shipped_map("xen").classes
    for tclass, name, direction in (
        ("file", "read", "r"), ("file", "write", "w"), ("tcp_socket", "recvfrom", "r"),
        ("dbus", "send_msg", "w"), ("process", "ptrace", "b"),
    ):  # fmt: skip
        assert selinux[tclass][name] == Flow(direction, 10)  # type: ignore[arg-type]
    assert xen["grant"]["map_read"] == Flow("r", 10)
    assert xen["grant"]["map_write"] == Flow("w", 10)
    assert xen["argo"]["send"] == Flow("w", 10)


@pytest.mark.parametrize("flavour", ["selinux", "xen"])
def test_a_map_survives_setools_form(flavour: str) -> None:
    """Written in SETools' form and read again, a map means the same."""
    known = shipped_map("xen" if flavour == "xen" else "selinux")
    again = read_map(known.setools().encode(), "again")
    assert again.digest == known.digest
    assert again.classes == known.classes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "without a class"),
        ("[class.file", "not a permission map"),
        ('[klass.file]\nr10 = "read"', "unknown table 'klass'"),
        ('[class.file]\nr11 = "read"', "has 'r11'"),
        ('[class.file]\nx10 = "read"', "has 'x10'"),
        ("[class.file]\nr10 = 3", "must be a text"),
        ('[class.file]\nr10 = "read"\nw10 = "read"', "'read' twice"),
        ('[class.file]\ncommon = "nothing"', "no table [common.nothing]"),
        ('[class.a]\nlike = "b"\n[class.b]\nlike = "a"', "is like itself"),
        ("[class.file]\nlike = 1", "must be a name"),
        ("1\nread r 10", "before the first class"),
        ("1\nclass file 1\nread q 10", "'q' is no direction"),
        ("1\nclass file 1\nread r 11", "a weight is"),
        ("1\nclass file 1\nread r 1 2", "a line is"),
        ("1\nclass", "without a name"),
    ],
)
def test_a_wrong_map_is_an_error_that_says_where(text: str, words: str) -> None:
    """Each mistake of either form is named with the file."""
    with pytest.raises(InputError) as caught:
        read_map(text.encode(), "mine")
    assert words in str(caught.value)
    assert str(caught.value).startswith("mine")


def test_what_setools_marks_unmapped_is_lacking() -> None:
    """`u` in SETools' form is no flow that is known: the permission is not in the map."""
    found = read_map(b"1\nclass file 2\nread u 1\nwrite w 10\n", "mine")
    assert found.classes == {"file": {"write": Flow("w", 10)}}


def test_a_map_too_long_or_not_text_is_refused() -> None:
    """A bound on the size, and bytes that are no UTF-8."""
    for content in (b"#" * (1 << 20) + b"#", b"\xff\xfe"):
        with pytest.raises(InputError):
            read_map(content, "mine")


@pytest.mark.parametrize(
    ("classes", "end"),
    [(13, "c012 { use }; give"), (100, "c099 { use }; give"),
     (101, "c099 { use }; and 1 more class; give"), (102, "; and 2 more classes; give")],
)  # fmt: skip
def test_classes_that_a_map_lacks_are_listed_whole(classes: int, end: str, tmp_path: Path) -> None:
    """Each with its permissions; only beyond a hundred the rest is counted."""
    names = [f"c{number:03}" for number in range(classes)]
    lines = [f"class {name}" for name in names] + ["sid kernel"]
    lines += [f"class {name} {{ use }}" for name in names] + ["type a_t; role r; role r types a_t;"]
    lines += [f"allow a_t a_t:{name} use;" for name in names]
    text = "\n".join([*lines, "user u roles r;", "sid kernel u:r:a_t"]) + "\n"
    policy = loaded(compile_conf(text, tmp_path / "policy", "selinux", 33)).policy
    with pytest.raises(InputError) as raised:
        check_map(policy, shipped_map("selinux"), policy.rules)
    assert end in str(raised.value)
    assert str(raised.value).count("{ use }") == min(classes, 100)
