"""sHype's schema as a table: which elements, in which order, how many, with which attributes.

Source: security_policy.xsd and its copy in acmpolicy.py of the Xen 3.x/4.1 tree. Where the two
differ, the wider one is read (a `VirtualMachineLabel` may hold several blocks of types) and the
attribute `name` of a conflict set is required.

One extension of ours: a conflict set may carry `history="true"` in the namespace
`urn:skerry:acm:1`. It stands in a namespace of its own so that it can't be taken for sHype's: a
reader that validates against sHype's schema refuses the file rather than enforce a weaker wall,
and one that only looks at sHype's names does not see it. Without the namespace it is an error.
"""

from __future__ import annotations

import msgspec

from skerry.policy.xmltree import Element

NAMESPACE = "http://www.ibm.com"
"""The namespace of every element of a policy."""

EXTENSION = "urn:skerry:acm:1"
"""The namespace of the attribute `history`."""

INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
"""The namespace of `schemaLocation`, which the root may carry."""

PRIMARY = "PrimaryPolicyComponent"
"""The only legal value of the attribute `priority`."""

_MANY = 1_000_000


class Child(msgspec.Struct, frozen=True):
    """A child element: its name, its shape in `SHAPES` if it is not the name, and how many."""

    name: str
    least: int = 1
    most: int = 1
    shape: str = ""


class Shape(msgspec.Struct, frozen=True):
    """What an element may hold: text, or children in this order; attributes, some required."""

    children: tuple[Child, ...] = ()
    attributes: frozenset[tuple[str, str]] = frozenset()
    required: frozenset[tuple[str, str]] = frozenset()


def _names(*names: str) -> frozenset[tuple[str, str]]:
    return frozenset(("", name) for name in names)


_TYPES = (Child("Type", 1, _MANY),)
_NAME = Child("Name", shape="NameWithFrom")

SHAPES: dict[str, Shape] = {
    "SecurityPolicyDefinition": Shape(
        (
            Child("PolicyHeader"),
            Child("SimpleTypeEnforcement", 0),
            Child("ChineseWall", 0),
            Child("SecurityLabelTemplate"),
        ),
        frozenset({(INSTANCE, "schemaLocation"), (INSTANCE, "noNamespaceSchemaLocation")}),
    ),
    "PolicyHeader": Shape(
        (
            Child("PolicyName"),
            Child("PolicyUrl", 0),
            Child("Reference", 0),
            Child("Date", 0),
            Child("NameSpaceUrl", 0),
            Child("Version"),
            Child("FromPolicy", 0),
        )
    ),
    "FromPolicy": Shape((Child("PolicyName"), Child("Version"))),
    "SimpleTypeEnforcement": Shape((Child("SimpleTypeEnforcementTypes"),), _names("priority")),
    "ChineseWall": Shape((Child("ChineseWallTypes"), Child("ConflictSets", 0)), _names("priority")),
    "SimpleTypeEnforcementTypes": Shape(_TYPES),
    "ChineseWallTypes": Shape(_TYPES),
    "ConflictSets": Shape((Child("Conflict", 1, _MANY),)),
    "Conflict": Shape(_TYPES, _names("name") | {(EXTENSION, "history")}, _names("name")),
    "SecurityLabelTemplate": Shape((Child("SubjectLabels", 0), Child("ObjectLabels", 0))),
    "SubjectLabels": Shape(
        (Child("VirtualMachineLabel", 1, _MANY),), _names("bootstrap"), _names("bootstrap")
    ),
    "ObjectLabels": Shape((Child("ResourceLabel", 1, _MANY),)),
    "VirtualMachineLabel": Shape(
        (
            _NAME,
            Child("SimpleTypeEnforcementTypes", 0, _MANY),
            Child("ChineseWallTypes", 0, _MANY),
        )
    ),
    "ResourceLabel": Shape((_NAME, Child("SimpleTypeEnforcementTypes", shape="SingleType"))),
    "SingleType": Shape((Child("Type"),)),
    "NameWithFrom": Shape((), _names("from")),
}
"""Every element that has children or attributes; the others hold text alone."""

_TEXT = Shape()


def find_misshapes(root: Element) -> list[tuple[int, str]]:
    """Return (line, message) for everything that the schema does not allow."""
    found: list[tuple[int, str]] = []
    if root.name != "SecurityPolicyDefinition" or root.namespace != NAMESPACE:
        what = f"{root.name!r} in namespace {root.namespace!r}"
        message = f"the root is {what}, not SecurityPolicyDefinition in namespace {NAMESPACE!r}"
        return [(root.line, message)]
    _walk(root, root.name, found)
    return found


def _walk(element: Element, shape_name: str, found: list[tuple[int, str]]) -> None:
    shape = SHAPES.get(shape_name, _TEXT)
    _attributes(element, shape, found)
    if shape.children:
        if element.text.strip():
            found.append((element.line, f"text in {element.name}, which holds elements only"))
        _sequence(element, shape, found)
        return
    found.extend((c.line, f"unknown element {c.name} in {element.name}") for c in element.children)


def _attributes(element: Element, shape: Shape, found: list[tuple[int, str]]) -> None:
    for namespace, name in element.attributes:
        if (namespace, name) in shape.attributes:
            continue
        hint = ""
        if name == "history" and element.name == "Conflict":
            hint = f"; it belongs to the namespace {EXTENSION!r}"
        found.append((element.line, f"unknown attribute {name} of {element.name}{hint}"))
    for key in sorted(shape.required - element.attributes.keys()):
        found.append((element.line, f"{element.name} lacks the attribute {key[1]}"))
    priority = element.attributes.get(("", "priority"), PRIMARY)
    if ("", "priority") in shape.attributes and priority != PRIMARY:
        found.append((element.line, f"priority {priority!r} is not {PRIMARY!r}"))
    history = element.attributes.get((EXTENSION, "history"), "false")
    if history not in ("true", "false"):
        found.append((element.line, f"history {history!r} is neither 'true' nor 'false'"))


def _sequence(element: Element, shape: Shape, found: list[tuple[int, str]]) -> None:
    order = {child.name: position for position, child in enumerate(shape.children)}
    counts = dict.fromkeys(order, 0)
    reached = 0
    for child in element.children:
        if child.namespace != NAMESPACE:
            found.append((child.line, f"{child.name} is not in the namespace {NAMESPACE!r}"))
            continue
        if child.name not in order:
            found.append((child.line, f"unknown element {child.name} in {element.name}"))
            continue
        position = order[child.name]
        if position < reached:
            after = shape.children[reached].name
            found.append((child.line, f"{child.name} must come before {after}"))
        reached = max(reached, position)
        expected = shape.children[position]
        counts[child.name] += 1
        if counts[child.name] == expected.most + 1:
            found.append((child.line, f"{element.name} has more than {expected.most} {child.name}"))
        _walk(child, expected.shape or child.name, found)
    for expected in shape.children:
        if counts[expected.name] < expected.least:
            found.append((element.line, f"{element.name} lacks the element {expected.name}"))
