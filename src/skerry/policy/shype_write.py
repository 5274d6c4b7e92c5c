"""Writer of sHype's XML policies, in one canonical layout.

The rule this module keeps: what it writes, `read_shype` reads back as the same policy, and the
same policy always gives the same bytes. The namespace of our extension is declared only where a
conflict set keeps a history, so that every other file is plain sHype.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.sax.saxutils import escape, quoteattr

from skerry.policy.shype_schema import EXTENSION, INSTANCE, NAMESPACE, PRIMARY
from skerry.xsm.acm.model import AcmPolicy, Component

_ROOT = f'<SecurityPolicyDefinition xmlns="{NAMESPACE}" xmlns:xsi="{INSTANCE}"'
_SCHEMA = f' xsi:schemaLocation="{NAMESPACE} security_policy.xsd"'


def write_shype(policy: AcmPolicy) -> str:
    """Return the policy as XML."""
    extension = any(conflict.history for conflict in policy.conflicts)
    prefix = f' xmlns:skerry="{EXTENSION}"' if extension else ""
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        _ROOT + _SCHEMA + prefix + ">",
        *_header(policy),
        *_components(policy),
        *_labels(policy),
        "</SecurityPolicyDefinition>",
    ]
    return "\n".join(lines) + "\n"


def _header(policy: AcmPolicy) -> Iterator[str]:
    yield "  <PolicyHeader>"
    yield _text(4, "PolicyName", policy.name)
    optional = (
        ("PolicyUrl", policy.url),
        ("Reference", policy.reference),
        ("Date", policy.date),
        ("NameSpaceUrl", policy.namespace_url),
    )
    for tag, value in optional:
        if value:
            yield _text(4, tag, value)
    yield _text(4, "Version", policy.version)
    if policy.from_policy:
        yield "    <FromPolicy>"
        yield _text(6, "PolicyName", policy.from_policy.name)
        yield _text(6, "Version", policy.from_policy.version)
        yield "    </FromPolicy>"
    yield "  </PolicyHeader>"


def _components(policy: AcmPolicy) -> Iterator[str]:
    if policy.ste_types:
        yield f"  <SimpleTypeEnforcement{_priority(policy, 'SimpleTypeEnforcement')}>"
        names = (declared.name for declared in policy.ste_types)
        yield from _types(4, "SimpleTypeEnforcementTypes", names)
        yield "  </SimpleTypeEnforcement>"
    if not policy.cw_types:
        return
    yield f"  <ChineseWall{_priority(policy, 'ChineseWall')}>"
    yield from _types(4, "ChineseWallTypes", (declared.name for declared in policy.cw_types))
    if policy.conflicts:
        yield "    <ConflictSets>"
        for conflict in policy.conflicts:
            history = ' skerry:history="true"' if conflict.history else ""
            attributes = f" name={quoteattr(conflict.name)}{history}"
            yield from _types(6, "Conflict", conflict.types, attributes)
        yield "    </ConflictSets>"
    yield "  </ChineseWall>"


def _labels(policy: AcmPolicy) -> Iterator[str]:
    yield "  <SecurityLabelTemplate>"
    yield f"    <SubjectLabels bootstrap={quoteattr(policy.bootstrap)}>"
    for label in policy.labels:
        yield "      <VirtualMachineLabel>"
        yield _text(8, "Name", label.name, label.from_)
        if label.ste:
            yield from _types(8, "SimpleTypeEnforcementTypes", label.ste)
        if label.cw:
            yield from _types(8, "ChineseWallTypes", label.cw)
        yield "      </VirtualMachineLabel>"
    yield "    </SubjectLabels>"
    if policy.resources:
        yield "    <ObjectLabels>"
        for resource in policy.resources:
            yield "      <ResourceLabel>"
            yield _text(8, "Name", resource.name, resource.from_)
            yield from _types(8, "SimpleTypeEnforcementTypes", (resource.ste,))
            yield "      </ResourceLabel>"
        yield "    </ObjectLabels>"
    yield "  </SecurityLabelTemplate>"


def _priority(policy: AcmPolicy, component: Component) -> str:
    return f' priority="{PRIMARY}"' if policy.primary == component else ""


def _types(indent: int, tag: str, names: Iterable[str], attributes: str = "") -> Iterator[str]:
    yield f"{' ' * indent}<{tag}{attributes}>"
    for name in names:
        yield _text(indent + 2, "Type", name)
    yield f"{' ' * indent}</{tag}>"


def _text(indent: int, tag: str, text: str, from_: str = "") -> str:
    attribute = f" from={quoteattr(from_)}" if from_ else ""
    return f"{' ' * indent}<{tag}{attribute}>{escape(text)}</{tag}>"
