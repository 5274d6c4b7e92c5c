"""Reader of sHype's XML policies.

The rule this module keeps: what is not in sHype's schema, in its order and number, or breaks one
of the checks beyond the schema, is an error with its line; every error of a file is reported at
once, and a policy with any error is no policy.

An empty `Type` in a label's list stands for no type: xend's own DEFAULT policy writes it so.
"""

from __future__ import annotations

from skerry.errors import PolicyError, Problem
from skerry.policy.shype_schema import EXTENSION, find_misshapes
from skerry.policy.xmltree import Element, parse_xml
from skerry.xsm.acm.check import find_problems, without_echoes
from skerry.xsm.acm.model import (
    AcmPolicy,
    Component,
    ConflictSet,
    FromPolicy,
    ResourceLabel,
    TypeName,
    VmLabel,
)

_NOTHING = Element("", 0)


def read_shype(untrusted: bytes, file: str) -> AcmPolicy:
    """Read a policy from XML; `file` names it in errors and rules. Raises `PolicyError`."""
    root = parse_xml(untrusted, file)
    misshapes = [Problem(file, line, message) for line, message in find_misshapes(root)]
    if misshapes and misshapes[0].message.startswith("the root"):
        raise PolicyError(misshapes)
    policy = _policy(root, file)
    problems = [*misshapes, *_both_primary(root, file)]
    problems += without_echoes(find_problems(policy), problems)
    if problems:
        raise PolicyError(sorted(problems, key=lambda problem: problem.line))
    return policy


def _policy(root: Element, file: str) -> AcmPolicy:
    header = _child(root, "PolicyHeader")
    ste, wall = _child(root, "SimpleTypeEnforcement"), _child(root, "ChineseWall")
    subjects = _child(root, "SecurityLabelTemplate", "SubjectLabels")
    objects = _child(root, "SecurityLabelTemplate", "ObjectLabels")
    source = header.child("FromPolicy")
    version = _child(header, "Version")
    places = {
        "name": _child(header, "PolicyName").line or header.line or root.line,
        "version": version.line or header.line or root.line,
        "bootstrap": subjects.line or _child(root, "SecurityLabelTemplate").line or root.line,
        **({"from": source.line} if source else {}),
    }
    return AcmPolicy(
        _text(header, "PolicyName"),
        version.text,
        " ".join(subjects.attributes.get(("", "bootstrap"), "").split()),
        _declared(ste, "SimpleTypeEnforcementTypes"),
        _declared(wall, "ChineseWallTypes"),
        tuple(_conflict(c) for c in _child(wall, "ConflictSets").all("Conflict")),
        tuple(_vm_label(label) for label in subjects.all("VirtualMachineLabel")),
        tuple(_resource_label(label) for label in objects.all("ResourceLabel")),
        _primary(ste, wall),
        _text(header, "PolicyUrl"),
        _text(header, "Reference"),
        _text(header, "Date"),
        _text(header, "NameSpaceUrl"),
        FromPolicy(_text(source, "PolicyName"), _child(source, "Version").text) if source else None,
        file,
        places,
    )


def _primary(ste: Element, wall: Element) -> Component:
    if ("", "priority") in wall.attributes:
        return "ChineseWall"
    return "SimpleTypeEnforcement" if ("", "priority") in ste.attributes else ""


def _both_primary(root: Element, file: str) -> list[Problem]:
    ste, wall = _child(root, "SimpleTypeEnforcement"), _child(root, "ChineseWall")
    if ("", "priority") in ste.attributes and ("", "priority") in wall.attributes:
        return [Problem(file, wall.line, "both components are marked as the primary one")]
    return []


def _conflict(element: Element) -> ConflictSet:
    return ConflictSet(
        " ".join(element.attributes.get(("", "name"), "").split()),
        tuple(child.words() for child in element.all("Type")),
        element.attributes.get((EXTENSION, "history")) == "true",
        element.line,
    )


def _vm_label(element: Element) -> VmLabel:
    return VmLabel(
        _text(element, "Name"),
        _used(element, "SimpleTypeEnforcementTypes"),
        _used(element, "ChineseWallTypes"),
        _from(element),
        element.line,
    )


def _resource_label(element: Element) -> ResourceLabel:
    ste = _text(_child(element, "SimpleTypeEnforcementTypes"), "Type")
    return ResourceLabel(_text(element, "Name"), ste, _from(element), element.line)


def _from(element: Element) -> str:
    return " ".join(_child(element, "Name").attributes.get(("", "from"), "").split())


def _declared(component: Element, block: str) -> tuple[TypeName, ...]:
    types = _child(component, block).all("Type")
    return tuple(TypeName(child.words(), child.line) for child in types)


def _used(label: Element, block: str) -> tuple[str, ...]:
    types = (child.words() for types in label.all(block) for child in types.all("Type"))
    return tuple(name for name in types if name)


def _child(element: Element, *path: str) -> Element:
    """Follow a path of element names; an empty element stands for what is not there."""
    for name in path:
        element = element.child(name) or _NOTHING
    return element


def _text(element: Element, name: str) -> str:
    return _child(element, name).words()
