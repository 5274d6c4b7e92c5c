"""Every rule of sHype's schema and every check beyond it refuses what breaks it, with its line."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import Denied, PolicyError
from skerry.policy.load import parse_acm
from skerry.policy.shype import read_shype
from skerry.policy.xmltree import MAX_DEPTH, MAX_ELEMENTS
from skerry.xsm.acm.check import MAX_CONFLICTS, MAX_LABELS, MAX_PROBLEMS
from tests.unit.policy.samples import CLASSICAL, DEFAULT

_RER = '      <Conflict name="RER">\n'
_LABEL = """\
      <VirtualMachineLabel>
        <Name>Cola</Name>
"""
_COLA_STE = "          <Type>Cola</Type>\n        </SimpleTypeEnforcementTypes>\n"
_RESOURCE = """\
        <Name>disk(hda1)</Name>
        <SimpleTypeEnforcementTypes>
          <Type>Soda</Type>
"""
_HEADER_END = "  </PolicyHeader>\n"

BAD = [
    # (what is replaced, by what, text of the line that is named, part of the message)
    ("http://www.ibm.com\"\n", "http://www.ibm.org\"\n", "<SecurityPolicy", "the root is"),
    ("<PolicyName>example.chwall_ste.rivals</PolicyName>\n    <PolicyUrl>", "<PolicyUrl>",
     "<PolicyHeader>", "lacks the element PolicyName"),
    ("    <Version>1.1</Version>\n", "", "<PolicyHeader>", "lacks the element Version"),
    ("<Version>1.1<", "<Version>1.1a<", "<Version>1.1a", "major.minor"),
    ("<Version>1.1<", "<Version>123456789.1<", "<Version>123456789", "major.minor"),
    ("      <Version>1.0<", "      <Version>x<", "<FromPolicy>", "major.minor"),
    ("      <Version>1.0</Version>\n", "", "<FromPolicy>", "FromPolicy lacks the element Version"),
    ("<Date>2007-04-16</Date>", "<PolicyUrl>again</PolicyUrl>", "again", "more than 1 PolicyUrl"),
    ("    <Date>2007-04-16</Date>\n    <Version>1.1</Version>\n",
     "    <Version>1.1</Version>\n    <Date>x</Date>\n", "<Date>x", "must come before Version"),
    (_HEADER_END, "    <Author>me</Author>\n" + _HEADER_END, "<Author>", "unknown element Author"),
    ("<Date>", "<Date format='iso'>", "<Date format", "unknown attribute format"),
    ("<Date>2007", "<Date><b/>2007", "<Date><b/>", "b in Date"),
    ("  <PolicyHeader>\n", "  <PolicyHeader>words\n", "words", "text in PolicyHeader"),
    ("<ChineseWall priority", "<ChineseWall prio", "<ChineseWall prio=", "unknown attribute prio"),
    ("PrimaryPolicyComponent", "Primary", "<ChineseWall ", "priority 'Primary' is not"),
    ("<SimpleTypeEnforcement>", '<SimpleTypeEnforcement priority="PrimaryPolicyComponent">',
     "<ChineseWall ", "both components"),
    (' name="RER"', "", "<Conflict>", "lacks the attribute name"),
    (' name="RER"', ' name=""', "<Conflict name", "name of a conflict set is empty"),
    (' name="RER"', ' name="RER" history="true"', "<Conflict ", "urn:skerry:acm:1"),
    (' name="RER"', ' name="RER" xmlns:s="urn:skerry:acm:1" s:history="yes"', "<Conflict ",
     "neither 'true' nor 'false'"),
    (_RER + "        <Type>Cola</Type>\n        <Type>Soda</Type>\n", _RER, "<Conflict ",
     "Conflict lacks the element Type"),
    (_RER, _RER + "        <Type>Tea</Type>\n", "<Conflict ",
     "uses the undeclared Chinese Wall type 'Tea'"),
    (' bootstrap="SystemManagement"', "", "<SubjectLabels>", "lacks the attribute bootstrap"),
    (' bootstrap="SystemManagement"', ' bootstrap="Root"', "<SubjectLabels",
     "bootstrap label 'Root' is not among"),
    (_LABEL, "      <VirtualMachineLabel>\n", "Label>\n        <SimpleTypeEnforcementTypes>",
     "VirtualMachineLabel lacks the element Name"),
    (_LABEL, _LABEL.replace("Cola", "a:b"), "Label>\n        <Name>a:b", "contains ':'"),
    (_LABEL, _LABEL.replace("Cola", "Storage"), None, "duplicate label 'Storage'"),
    (_LABEL, _LABEL.replace("Cola", "__NULL_LABEL__"), "Label>\n        <Name>__NULL", "reserved"),
    (_LABEL, _LABEL.replace("Cola", "__INACCESSIBLE__"), None, "reserved"),
    (_LABEL, _LABEL.replace("Cola", "x" * 2049), None, "longer than 2048"),
    (_LABEL, _LABEL.replace("<Name>", "<Name to='x'>"), "<Name to", "unknown attribute to"),
    (_LABEL + "        <SimpleTypeEnforcementTypes>\n" + _COLA_STE,
     _LABEL + "        <SimpleTypeEnforcementTypes>\n" + _COLA_STE.replace("Cola", "Tea"),
     "Label>\n        <Name>Cola", "uses the undeclared Simple Type Enforcement type 'Tea'"),
    ("          <Type>Storage</Type>\n", "          <Type>Tea</Type>\n", None,
     "label 'Storage' uses the undeclared Chinese Wall type 'Tea'"),
    ("          <Type>Storage</Type>\n",
     "          <Type>Cola</Type>\n          <Type>Soda</Type>\n", None,
     "label 'Storage' has 2 types of the conflict set 'RER'"),
    ("      <Type>SystemManagement</Type>\n      <Type>Cola</Type>\n      <Type>Soda</Type>\n"
     "    </SimpleType",
     "      <Type>Cola</Type>\n      <Type>SystemManagement</Type>\n      <Type>Cola</Type>\n"
     "      <Type>Soda</Type>\n    </SimpleType",
     None, "duplicate Simple Type Enforcement type 'Cola'"),
    ("      <Type>Storage</Type>\n    </Chinese",
     "      <Type>Storage</Type>\n      <Type>Soda</Type>\n    </Chinese", None,
     "duplicate Chinese Wall type 'Soda'"),
    ("      <Type>Storage</Type>\n    </Chinese", "      <Type/>\n    </Chinese", "<Type/>",
     "Chinese Wall type is empty"),
    (_RESOURCE, _RESOURCE + "          <Type>Cola</Type>\n", None, "more than 1 Type"),
    (_RESOURCE, _RESOURCE.replace("Soda", "Tea"), None, "resource label 'disk(hda1)' uses"),
    (_RESOURCE, _RESOURCE.replace("disk(hda1)", "Cola"), None, "duplicate resource label 'Cola'"),
    (_RESOURCE, _RESOURCE.replace("disk(hda1)", "phy:hda1"), None, "contains ':'"),
    ("      </ResourceLabel>\n", "<ChineseWallTypes><Type>Cola</Type></ChineseWallTypes>\n"
     "      </ResourceLabel>\n", "<ChineseWallTypes><Type>Cola", "unknown element ChineseWallT"),
    ("<PolicyName>example.chwall_ste.rivals</PolicyName>\n    <PolicyUrl>",
     "<PolicyName>a:b</PolicyName>\n    <PolicyUrl>", "<PolicyName>a:b", "contains ':'"),
    ("  <PolicyHeader>\n", "  <PolicyHeader xmlns=''>\n", "<PolicyHeader", "not in the namespace"),
    ("  <PolicyHeader>\n", "  <PolicyHeader>&nbsp;\n", "&nbsp;", "undefined entity"),
    ("</PolicyHeader>", "</PolicyHead>", "</PolicyHead>", "mismatched tag"),
    ('encoding="UTF-8"', 'encoding="ISO-8859-1"', "<?xml", "UTF-8"),
    ("<SecurityPolicyDefinition ", '<!DOCTYPE x SYSTEM "file:///etc/passwd">\n<Security'
     "PolicyDefinition ", "<!DOCTYPE", "not accepted"),
    ("<SecurityPolicyDefinition ", '<!DOCTYPE x [<!ENTITY a "b">]>\n<SecurityPolicyDefinition ',
     "<!DOCTYPE", "not accepted"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "at", "message"), BAD)
def test_a_broken_rule_is_an_error_with_its_line(
    old: str, new: str, at: str | None, message: str
) -> None:
    """The unbroken text is a policy; broken in one place, it is refused at that place."""
    assert read_shype(CLASSICAL.encode(), "f").name
    text = CLASSICAL.replace(old, new, 1)
    assert text != CLASSICAL
    with pytest.raises(PolicyError) as caught:
        read_shype(text.encode(), "bad.xml")
    found = [problem for problem in caught.value.problems if message in problem.message]
    assert found, caught.value
    assert all(p.file == "bad.xml" and p.line > 0 for p in caught.value.problems)
    if at is not None:
        assert found[0].line == text[: text.index(at)].count("\n") + 1


def test_a_policy_needs_the_labels_of_domains() -> None:
    """Without SubjectLabels there is no bootstrap label; without a template, neither."""
    begin, end = CLASSICAL.index("    <SubjectLabels"), CLASSICAL.index("    <ObjectLabels>")
    with pytest.raises(PolicyError, match="bootstrap"):
        read_shype((CLASSICAL[:begin] + CLASSICAL[end:]).encode(), "f")
    begin, end = CLASSICAL.index("  <SecurityLabelT"), CLASSICAL.index("</SecurityPolicyDef")
    with pytest.raises(PolicyError, match="lacks the element SecurityLabelTemplate"):
        read_shype((CLASSICAL[:begin] + CLASSICAL[end:]).encode(), "f")


def test_all_mistakes_are_reported_at_once_in_order() -> None:
    """Several mistakes of different kinds come in one error, by line."""
    text = CLASSICAL.replace("1.1<", "v<").replace(' name="RER"', "").replace(">Tea<", "><")
    text = text.replace("<Name>Storage", "<Name>a:b").replace("disk(hda1)", "Cola")
    with pytest.raises(PolicyError) as caught:
        read_shype(text.encode(), "f")
    lines = [problem.line for problem in caught.value.problems]
    assert len(lines) >= 4
    assert lines == sorted(lines)
    assert isinstance(caught.value, Denied)
    assert caught.value.exit_code == 2


def test_depth_and_number_of_elements_are_bounded() -> None:
    """Nesting and multitude are refused by name; one less is only a wrong shape."""
    deep = "<a>" * (MAX_DEPTH + 1) + "</a>" * (MAX_DEPTH + 1)
    with pytest.raises(PolicyError, match=f"deeper than {MAX_DEPTH}"):
        read_shype(deep.encode(), "f")
    with pytest.raises(PolicyError, match="the root is"):
        read_shype(deep[3:-4].encode(), "f")
    with pytest.raises(PolicyError, match=f"more than {MAX_ELEMENTS}"):
        read_shype(("<a>" + "<a/>" * MAX_ELEMENTS + "</a>").encode(), "f")


def test_xends_default_policy_is_read() -> None:
    """Its empty types stand for none, and its label for the unlabelled is a label."""
    policy = read_shype(DEFAULT.encode(), "f")
    assert [label.name for label in policy.labels] == ["SystemManagement", "__UNLABELED__"]
    assert all(label.cw == () for label in policy.labels)


def test_several_blocks_of_types_in_a_label_are_one_set() -> None:
    """The schema allows a label's types to stand in several blocks."""
    text = CLASSICAL.replace(
        _LABEL,
        _LABEL + "<SimpleTypeEnforcementTypes><Type>Soda</Type></SimpleTypeEnforcementTypes>",
    )
    cola = read_shype(text.encode(), "f").labels[1]
    assert cola.ste == ("Soda", "Cola")


_SOURCE = CLASSICAL.encode()


@given(st.lists(st.tuples(st.integers(0, len(_SOURCE)), st.integers(0, 9), st.binary(max_size=9))))
def test_mutated_xml_is_a_policy_or_a_policy_error(edits: list[tuple[int, int, bytes]]) -> None:
    """Whatever bytes are cut out or put in, nothing but `PolicyError` is raised."""
    content = _SOURCE
    for position, cut, put in edits:
        content = content[:position] + put + content[position + cut :]
    try:
        parse_acm(content, "f")
    except PolicyError as error:
        assert error.problems


def test_a_long_name_is_not_repeated_in_every_error() -> None:
    """What is said of a hostile file stays in proportion to the file."""
    name = "x" * 50_000
    types = "<Type>a</Type>" * 500
    label = f"<Name>{name}</Name><SimpleTypeEnforcementTypes>{types}</SimpleTypeEnforcementTypes>"
    text = (
        '<SecurityPolicyDefinition xmlns="http://www.ibm.com"><PolicyHeader><PolicyName>p'
        "</PolicyName><Version>1.0</Version></PolicyHeader><SecurityLabelTemplate>"
        f'<SubjectLabels bootstrap="{name}"><VirtualMachineLabel>{label}</VirtualMachineLabel>'
        "</SubjectLabels></SecurityLabelTemplate></SecurityPolicyDefinition>"
    )
    tracemalloc.start()
    with pytest.raises(PolicyError, match="longer than") as caught:
        read_shype(text.encode(), "f")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(str(caught.value)) < 2_000
    assert most < 10 * len(text)


def test_the_number_of_labels_and_conflict_sets_is_bounded() -> None:
    """They are compared with each other, so each has its limit; at the limit a policy is read."""

    def policy(conflicts: int, labels: int) -> bytes:
        head = '[policy]\nname = "p"\nversion = "1.0"\nbootstrap = "l0"\n'
        wall = '[chinese-wall]\ntypes = ["t"]\n'
        wall += '[[chinese-wall.conflicts]]\nname = "c"\ntypes = ["t"]\n' * conflicts
        return (head + wall + "".join(f"[labels.l{i}]\n" for i in range(labels))).encode()

    parse_acm(policy(MAX_CONFLICTS, 1), "f")
    with pytest.raises(PolicyError, match=f"more than {MAX_CONFLICTS} conflict sets"):
        parse_acm(policy(MAX_CONFLICTS + 1, 1), "f")
    with pytest.raises(PolicyError, match=f"more than {MAX_LABELS} labels"):
        parse_acm(policy(1, MAX_LABELS + 1), "f")


def test_the_number_of_problems_listed_is_bounded() -> None:
    """Every label breaks every conflict set, which would be more to say than memory holds."""
    head = '[policy]\nname = "p"\nversion = "1.0"\nbootstrap = "l0"\n'
    wall = '[chinese-wall]\ntypes = ["a", "b"]\n'
    wall += '[[chinese-wall.conflicts]]\nname = "c"\ntypes = ["a", "b"]\n' * 300
    labels = "".join(f'[labels.l{i}]\ncw = ["a", "b"]\n' for i in range(300))
    with pytest.raises(PolicyError, match="not all are listed") as caught:
        parse_acm((head + wall + labels).encode(), "f")
    assert len(caught.value.problems) == MAX_PROBLEMS + 1
