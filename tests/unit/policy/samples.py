"""Policies for tests: sHype's classical case in both forms, and strategies that make policies."""

from __future__ import annotations

from hypothesis import strategies as st

from skerry.xsm.acm.model import (
    AcmPolicy,
    ConflictSet,
    FromPolicy,
    ResourceLabel,
    TypeName,
    VmLabel,
)

CLASSICAL = """\
<?xml version="1.0" encoding="UTF-8"?>
<SecurityPolicyDefinition xmlns="http://www.ibm.com"
    xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
    xsi:schemaLocation="http://www.ibm.com ../../security_policy.xsd ">
  <PolicyHeader>
    <PolicyName>example.chwall_ste.rivals</PolicyName>
    <PolicyUrl>www.example.org/rivals</PolicyUrl>
    <Date>2007-04-16</Date>
    <Version>1.1</Version>
    <FromPolicy>
      <PolicyName>example.chwall_ste.rivals</PolicyName>
      <Version>1.0</Version>
    </FromPolicy>
  </PolicyHeader>
  <SimpleTypeEnforcement>
    <SimpleTypeEnforcementTypes>
      <Type>SystemManagement</Type>
      <Type>Cola</Type>
      <Type>Soda</Type>
    </SimpleTypeEnforcementTypes>
  </SimpleTypeEnforcement>
  <ChineseWall priority="PrimaryPolicyComponent">
    <ChineseWallTypes>
      <Type>SystemManagement</Type>
      <Type>Cola</Type>
      <Type>Soda</Type>
      <Type>Storage</Type>
    </ChineseWallTypes>
    <ConflictSets>
      <Conflict name="RER">
        <Type>Cola</Type>
        <Type>Soda</Type>
      </Conflict>
    </ConflictSets>
  </ChineseWall>
  <SecurityLabelTemplate>
    <SubjectLabels bootstrap="SystemManagement">
      <VirtualMachineLabel>
        <Name>SystemManagement</Name>
        <SimpleTypeEnforcementTypes>
          <Type>SystemManagement</Type>
          <Type>Cola</Type>
          <Type>Soda</Type>
        </SimpleTypeEnforcementTypes>
        <ChineseWallTypes>
          <Type>SystemManagement</Type>
        </ChineseWallTypes>
      </VirtualMachineLabel>
      <VirtualMachineLabel>
        <Name>Cola</Name>
        <SimpleTypeEnforcementTypes>
          <Type>Cola</Type>
        </SimpleTypeEnforcementTypes>
        <ChineseWallTypes>
          <Type>Cola</Type>
        </ChineseWallTypes>
      </VirtualMachineLabel>
      <VirtualMachineLabel>
        <Name from="Fizz">Soda</Name>
        <SimpleTypeEnforcementTypes>
          <Type>Soda</Type>
        </SimpleTypeEnforcementTypes>
        <ChineseWallTypes>
          <Type>Soda</Type>
        </ChineseWallTypes>
      </VirtualMachineLabel>
      <VirtualMachineLabel>
        <Name>Storage</Name>
        <SimpleTypeEnforcementTypes>
          <Type>Cola</Type>
          <Type>Soda</Type>
        </SimpleTypeEnforcementTypes>
        <ChineseWallTypes>
          <Type>Storage</Type>
        </ChineseWallTypes>
      </VirtualMachineLabel>
    </SubjectLabels>
    <ObjectLabels>
      <ResourceLabel>
        <Name>Cola</Name>
        <SimpleTypeEnforcementTypes>
          <Type>Cola</Type>
        </SimpleTypeEnforcementTypes>
      </ResourceLabel>
      <ResourceLabel>
        <Name>disk(hda1)</Name>
        <SimpleTypeEnforcementTypes>
          <Type>Soda</Type>
        </SimpleTypeEnforcementTypes>
      </ResourceLabel>
    </ObjectLabels>
  </SecurityLabelTemplate>
</SecurityPolicyDefinition>
"""
"""Two competitors and the domain that serves them both storage, as in the sHype manual."""

DEFAULT = """\
<?xml version="1.0" ?>
<SecurityPolicyDefinition xmlns="http://www.ibm.com">
  <PolicyHeader><PolicyName>DEFAULT</PolicyName><Version>1.0</Version></PolicyHeader>
  <SimpleTypeEnforcement><SimpleTypeEnforcementTypes>
    <Type>SystemManagement</Type><Type>__UNLABELED__</Type>
  </SimpleTypeEnforcementTypes></SimpleTypeEnforcement>
  <ChineseWall><ChineseWallTypes><Type>SystemManagement</Type></ChineseWallTypes></ChineseWall>
  <SecurityLabelTemplate>
    <SubjectLabels bootstrap="SystemManagement">
      <VirtualMachineLabel>
        <Name>SystemManagement</Name>
        <SimpleTypeEnforcementTypes>
          <Type>SystemManagement</Type><Type>__UNLABELED__</Type>
        </SimpleTypeEnforcementTypes>
        <ChineseWallTypes><Type/></ChineseWallTypes>
      </VirtualMachineLabel>
      <VirtualMachineLabel>
        <Name>__UNLABELED__</Name>
        <SimpleTypeEnforcementTypes><Type>__UNLABELED__</Type></SimpleTypeEnforcementTypes>
        <ChineseWallTypes><Type/></ChineseWallTypes>
      </VirtualMachineLabel>
    </SubjectLabels>
    <ObjectLabels>
      <ResourceLabel>
        <Name>__UNLABELED__</Name>
        <SimpleTypeEnforcementTypes><Type>__UNLABELED__</Type></SimpleTypeEnforcementTypes>
      </ResourceLabel>
    </ObjectLabels>
  </SecurityLabelTemplate>
</SecurityPolicyDefinition>
"""
"""The shape of the policy that xend wrote at its start, empty types included."""

TOML = """\
[policy]
name = "example.two-banks"
version = "1.0"
bootstrap = "dom0"

[simple-type-enforcement]
types = ["bank-a", "bank-b"]

[chinese-wall]
types = ["bank-a", "bank-b"]

[[chinese-wall.conflicts]]
name = "banks"
types = ["bank-a", "bank-b"]
history = true

[labels.dom0]
ste = ["bank-a", "bank-b"]

[labels.bank-a]
ste = ["bank-a"]
cw = ["bank-a"]

[labels.bank-b]
ste = ["bank-b"]
cw = ["bank-b"]

[labels.broker]
ste = ["bank-a", "bank-b"]

[resources.ledger-a]
ste = "bank-a"
"""
"""Two banks, a broker that may serve either, and a wall that remembers."""

_WORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=6
)
_TEXTS = st.lists(_WORDS, max_size=3).map(" ".join)
_NAMES = _WORDS.filter(lambda text: ":" not in text and not text.startswith("__"))
_VERSIONS = st.from_regex(r"[0-9]{1,8}\.[0-9]{1,8}", fullmatch=True).filter(str.isascii)


def _subset(names: list[str]) -> st.SearchStrategy[tuple[str, ...]]:
    if not names:
        return st.just(())
    return st.lists(st.sampled_from(names), unique=True).map(tuple)


@st.composite
def policies(draw: st.DrawFn) -> AcmPolicy:
    """Draw a sound policy of any shape."""
    ste = draw(st.lists(_NAMES, max_size=4, unique=True))
    wall = draw(st.lists(_NAMES, max_size=5, unique=True))
    names = draw(st.lists(_NAMES, min_size=1, max_size=5, unique=True))
    conflicts: list[ConflictSet] = []
    for name in draw(st.lists(_NAMES, max_size=3)) if wall else []:
        types = tuple(draw(st.lists(st.sampled_from(wall), min_size=1, unique=True)))
        conflicts.append(ConflictSet(name, types, draw(st.booleans())))
    labels: list[VmLabel] = []
    for name in names:
        own: list[str] = []
        for wanted in draw(_subset(wall)):
            if all(len({*own, wanted} & set(c.types)) < 2 for c in conflicts):
                own.append(wanted)
        from_ = draw(st.sampled_from(["", "old"]))
        labels.append(VmLabel(name, draw(_subset(ste)), tuple(own), from_))
    resources = [
        ResourceLabel(name, draw(st.sampled_from(ste)), draw(st.sampled_from(["", "old"])))
        for name in (draw(st.lists(_NAMES, max_size=3, unique=True)) if ste else [])
    ]
    updates = draw(st.booleans())
    return AcmPolicy(
        draw(_NAMES),
        draw(_VERSIONS),
        draw(st.sampled_from(names)),
        tuple(TypeName(name) for name in ste),
        tuple(TypeName(name) for name in wall),
        tuple(conflicts),
        tuple(labels),
        tuple(resources),
        draw(st.sampled_from(["ChineseWall", ""] if wall else [""])),
        draw(_TEXTS),
        draw(_TEXTS),
        draw(_TEXTS),
        draw(_TEXTS),
        FromPolicy(draw(_NAMES), draw(_VERSIONS)) if updates else None,
    )
