"""What a FLASK policy holds, in numbers and names: what `seinfo` prints of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from skerry.xsm.flask.model import (
    ALLOW,
    AUDITALLOW,
    AUDITDENY,
    CHANGE,
    MEMBER,
    TRANSITION,
    XALLOW,
    XAUDITALLOW,
    XDONTAUDIT,
    FlaskPolicy,
    TeRule,
    values,
)
from skerry.xsm.flask.module import FlaskModule

_EXTENDED = {XALLOW: "allowxperm", XAUDITALLOW: "auditallowxperm", XDONTAUDIT: "dontauditxperm"}
_RULES = {
    ALLOW: "allow",
    AUDITALLOW: "auditallow",
    AUDITDENY: "dontaudit",
    TRANSITION: "type_transition",
    CHANGE: "type_change",
    MEMBER: "type_member",
}


def counts(policy: FlaskPolicy) -> dict[str, int]:
    """Return how many there are of each kind of statement, by the policy language's words."""
    found = dict.fromkeys(_RULES.values(), 0)
    for rule in all_rules(policy):
        found[_RULES[rule[3]]] += 1
    extended = dict.fromkeys(_EXTENDED.values(), 0)
    for entry in policy.extended:
        extended[_EXTENDED[entry.kind]] += 1
    constraints = [c for tclass in policy.classes.values() for c in tclass.constraints]
    validate = [c for tclass in policy.classes.values() for c in tclass.validatetrans]
    types = policy.types.values()
    return {
        "classes": len(policy.classes),
        "permissions": len(_permissions(policy)),
        "sensitivities": len(policy.sensitivities),
        "categories": len(policy.categories),
        "types": sum(not kind.attribute for kind in types),
        "attributes": sum(kind.attribute for kind in types),
        "users": len(policy.users),
        "roles": len(policy.roles),
        "booleans": len(policy.booleans),
        "conditionals": len(policy.conditionals),
        **found,
        **extended,
        "range_transition": len(policy.range_transitions),
        "type_transition by name": len(policy.file_transitions),
        "role allow": len(policy.role_allows),
        "role_transition": len(policy.role_transitions),
        "constraints": sum(not c.mls for c in constraints),
        "mls constraints": sum(c.mls for c in constraints),
        "validatetrans": sum(not c.mls for c in validate),
        "mls validatetrans": sum(c.mls for c in validate),
        "typebounds": sum(bool(kind.bounds) for kind in types),
        "permissive": policy.permissive.bit_count(),
        "capabilities": policy.capabilities.bit_count(),
        "initial sids": sum(entry.kind == "sid" for entry in policy.object_contexts),
    }


def all_rules(policy: FlaskPolicy) -> Iterable[TeRule]:
    """Yield every rule, those of both branches of the conditionals included."""
    yield from policy.rules
    for conditional in policy.conditionals:
        yield from conditional.if_true
        yield from conditional.if_false


def summary(module: FlaskModule) -> dict[str, Any]:
    """Return what `policy show` prints of a FLASK policy."""
    policy = module.policy
    return {
        "target": policy.flavour,
        "version": policy.version,
        "mls": policy.mls,
        "handle_unknown": policy.handle_unknown,
        "counts": counts(policy),
        "booleans": dict(sorted(module.booleans().items())),
        "types": _names(kind.name for kind in policy.types.values() if not kind.attribute),
        "attributes": _names(kind.name for kind in policy.types.values() if kind.attribute),
        "roles": _names(role.name for role in policy.roles.values()),
        "users": _names(user.name for user in policy.users.values()),
        "permissive": _names(policy.permissive_types()),
        "classes": _classes(policy),
    }


def _classes(policy: FlaskPolicy) -> Mapping[str, list[str]]:
    classes = sorted(policy.classes.values(), key=lambda tclass: tclass.name)
    return {tclass.name: _names(filter(None, tclass.permissions)) for tclass in classes}


def _permissions(policy: FlaskPolicy) -> set[tuple[str, str]]:
    """Each permission once: those of a common count once, as seinfo counts them."""
    found = {(f"common {name}", p) for name, names in policy.commons.items() for p in names}
    for tclass in policy.classes.values():
        inherited = set(policy.commons.get(tclass.common, ()))
        found |= {(tclass.name, p) for p in tclass.permissions if p and p not in inherited}
    return found


def _names(names: Iterable[str]) -> list[str]:
    return sorted(names)


def unused(policy: FlaskPolicy) -> dict[str, list[str]]:
    """Return what is declared and does nothing, by kind: for warnings.

    Types that no rule names, also not by an attribute; attributes without a type that a rule
    names all the same; booleans that no condition asks.
    """
    named = {value for rule in all_rules(policy) for value in rule[:2]}
    named |= {
        rule[4] for rule in all_rules(policy) if rule[3] not in (ALLOW, AUDITALLOW, AUDITDENY)
    }
    members = [value for value in policy.attributes if _is_type(policy, value)]
    idle, held = [], set[int]()
    for value in members:
        attributes = set(values(policy.attributes[value]))
        held |= attributes
        if not attributes & named:
            idle.append(policy.type_name(value))
    empty = [
        kind.name
        for kind in policy.types.values()
        if kind.attribute and kind.value in named and kind.value not in held
    ]
    asked = {v for c in policy.conditionals for word, v in c.expression if word == "bool"}
    dead = [b.name for b in policy.booleans.values() if b.value not in asked]
    return {
        "types": sorted(idle),
        "attributes": sorted(empty),
        "booleans": sorted(dead),
    }


def _is_type(policy: FlaskPolicy, value: int) -> bool:
    found = policy.types.get(value)
    return bool(found and not found.attribute)
