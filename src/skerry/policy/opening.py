"""Whether a change of policy opens nothing: then what could not flow before can't flow after.

The rule this module keeps: it errs to one side. A change that can't be told not to let anything
flow is taken to do so. Who may start a domain is no flow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from skerry.errors import InputError
from skerry.policy.difference import Change, differences
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.flask.model import values
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.module import SecurityModule
from skerry.xsm.stack import Stack

_REMOVED = frozenset(
    {
        "label",
        "resource label",
        "type",
        "role types",
        "user roles",
        "role allow",
        "permissive",
        "alias",
    }
)
"""Statements without which less is allowed."""


def opens_nothing(old: Stack, new: Stack, check: Callable[[], None] = lambda: None) -> bool:
    """Tell whether all that may flow under `new` may flow under `old`, between the same labels.

    `check` is called between steps, and may raise.
    """
    if old.names != new.names:
        return False
    pairs = zip(old.modules, new.modules, strict=True)
    return all(one.digest == two.digest or _no_wider(one, two, check) for one, two in pairs)


def same_groups(old: SecurityModule, new: SecurityModule, names: Collection[str]) -> bool:
    """Tell whether the attributes and `type:T` among some names still stand for the same.

    What only one of the two policies has does not count.
    """
    one, two = _groups(old), _groups(new)
    both = _kinds(old) & _kinds(new)
    nothing: frozenset[str] = frozenset()
    return all(one.get(n, nothing) & both == two.get(n, nothing) & both for n in names)


def _kinds(module: SecurityModule) -> frozenset[str]:
    if isinstance(module, FlaskModule):
        return frozenset(k.name for k in module.policy.types.values() if not k.attribute)
    return frozenset(module.labels())


def _groups(module: SecurityModule) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    if isinstance(module, FlaskModule):
        policy = module.policy
        for kind in policy.types.values():
            if not kind.attribute:
                for value in values(policy.attributes[kind.value]):
                    found.setdefault(policy.type_name(value), set()).add(kind.name)
    elif isinstance(module, AcmModule):
        for label in module.policy.labels:
            for text in label.ste:
                found.setdefault(f"type:{text}", set()).add(label.name)
    return {name: frozenset(held) for name, held in found.items()}


def _no_wider(old: SecurityModule, new: SecurityModule, check: Callable[[], None]) -> bool:
    if isinstance(old, AcmModule) and isinstance(new, AcmModule) and not _same_walls(old, new):
        return False
    try:
        for change in differences(old, new):
            check()
            if not _takes(change):
                return False
    except InputError:  # they can't be compared
        return False
    return True


def _takes(change: Change) -> bool:
    if change.effect == "removed" and change.kind in _REMOVED:
        return True
    if change.effect == "added" and change.kind == "constraint":
        return True
    # What booleans switch is compared as rules, so their own values say nothing more.
    return change.effect == "denied" or change.kind in ("boolean", "create")


def _same_walls(old: AcmModule, new: AcmModule) -> bool:
    """Tell whether labels keep their names and wall types, and no wall is gone."""
    one, two = old.policy, new.policy
    were, are = (
        {
            (frozenset(wall.types), history)
            for wall in policy.conflicts
            for history in {wall.history, False}
        }
        for policy in (one, two)
    )
    before, after = ({v.name: frozenset(v.cw) for v in policy.labels} for policy in (one, two))
    names = [(label.from_, label.name) for label in two.labels]
    names += [(resource.from_, resource.name) for resource in two.resources]
    renamed = any(from_ not in ("", name) for from_, name in names)
    return were <= are and after.items() <= before.items() and not renamed
