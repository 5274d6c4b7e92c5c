"""Warnings about a sound policy: what is legal and yet probably not meant.

The rule this module keeps: a warning never changes what a policy decides.
"""

from __future__ import annotations

from collections import Counter

from skerry.errors import Problem
from skerry.policy.describe import unused
from skerry.policy.fitness import fitness_warnings
from skerry.xsm.acm.model import AcmPolicy
from skerry.xsm.flask.module import FlaskModule

XEN_MAX_TYPES = 256
"""Most types of one kind that Xen's ACM could load."""


def find_warnings(policy: AcmPolicy) -> list[Problem]:
    """Return the warnings for a policy, ordered by line."""
    found = [
        *_version(policy),
        *_types(policy),
        *_conflicts(policy),
        *_labels(policy),
        *_lonely(policy),
    ]
    problems = (Problem(policy.file, line, message) for line, message in found)
    return sorted(problems, key=lambda problem: problem.line)


def find_flask_warnings(module: FlaskModule) -> list[Problem]:
    """Return the warnings for a FLASK policy."""
    policy = module.policy
    found = fitness_warnings(policy)
    for kind, names in unused(policy).items():
        if names:
            shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            noun = kind.removesuffix("s") if len(names) == 1 else kind
            found.append(Problem(policy.file, 0, f"{len(names)} {noun} {_UNUSED[kind]}: {shown}"))
    permissive = policy.permissive_types()
    if permissive:
        message = f"permissive, so nothing is refused to them: {', '.join(sorted(permissive))}"
        found.append(Problem(policy.file, 0, message))
    return found


_SHOWN = 10
_UNUSED = {
    "types": "that no rule names",
    "attributes": "without a type that rules name, so the rules give nothing",
    "booleans": "that no condition asks",
}

_Found = list[tuple[int, str]]


def _version(policy: AcmPolicy) -> _Found:
    if "." in policy.version:
        return []
    line = policy.places.get("version", 0)
    return [(line, f"version {policy.version!r} is not written as major.minor")]


def _types(policy: AcmPolicy) -> _Found:
    used_ste = {name for label in policy.labels for name in label.ste}
    used_ste |= {resource.ste for resource in policy.resources}
    used_cw = {name for label in policy.labels for name in label.cw}
    found: _Found = []
    for kind, types, used in (
        ("Simple Type Enforcement", policy.ste_types, used_ste),
        ("Chinese Wall", policy.cw_types, used_cw),
    ):
        found += [
            (declared.line, f"dead {kind} type {declared.name!r}: no label has it")
            for declared in types
            if declared.name not in used
        ]
        if len(types) > XEN_MAX_TYPES:
            message = f"{len(types)} {kind} types; Xen's ACM loads at most {XEN_MAX_TYPES}"
            found.append((types[0].line, message))
    return found


def _conflicts(policy: AcmPolicy) -> _Found:
    found: _Found = []
    sets = [(conflict, frozenset(conflict.types)) for conflict in policy.conflicts]
    names = Counter(conflict.name for conflict in policy.conflicts)
    for index, (conflict, types) in enumerate(sets):
        where = f"conflict set {conflict.name!r}"
        found += _repeated(where, conflict.types, conflict.line)
        if len(types) == 1:
            found.append((conflict.line, f"{where} has one type, so it conflicts with nothing"))
        if names[conflict.name] > 1:
            found.append(
                (conflict.line, f"the name of {where} is used {names[conflict.name]} times")
            )
        for position, (other, wider) in enumerate(sets):
            covers = types <= wider and (other.history or not conflict.history)
            same = types == wider and conflict.history == other.history
            if covers and (position < index if same else position != index):
                message = f"{where} is shadowed by {other.name!r} (line {other.line})"
                found.append((conflict.line, message))
                break
    return found


def _labels(policy: AcmPolicy) -> _Found:
    found: _Found = []
    for label in policy.labels:
        where = f"label {label.name!r}"
        found += _repeated(where, (*label.ste,), label.line)
        found += _repeated(where, (*label.cw,), label.line)
    named = [(label.name, label.line) for label in policy.labels]
    named += [(resource.name, resource.line) for resource in policy.resources]
    for name, line in named:
        if "," in name or " " in name:
            found.append((line, f"label {name!r} can't be named in lists on the command line"))
    return found


def _lonely(policy: AcmPolicy) -> _Found:
    if not policy.ste_types:
        return []
    holders = Counter(name for label in policy.labels for name in set(label.ste))
    resources = {resource.ste for resource in policy.resources}
    found: _Found = []
    for label in policy.labels:
        if not label.ste:
            message = f"label {label.name!r} has no Simple Type Enforcement type: it shares nothing"
            found.append((label.line, message))
        elif all(holders[name] == 1 and name not in resources for name in set(label.ste)):
            message = f"label {label.name!r} can share with no other label and no resource"
            found.append((label.line, message))
    found += [
        (resource.line, f"resource label {resource.name!r} can be used by no label")
        for resource in policy.resources
        if not holders[resource.ste]
    ]
    return found


def _repeated(where: str, types: tuple[str, ...], line: int) -> _Found:
    repeated = sorted(name for name, count in Counter(types).items() if count > 1)
    return [(line, f"{where} lists the type {name!r} more than once") for name in repeated]
