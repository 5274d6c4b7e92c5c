"""Whether a FLASK policy can govern domains: does it know what the hooks ask?

The rule this module keeps (law 4): a policy that knows none of the classes by which domains and
channels are decided is no policy for this node, whatever it says of what it does not know. What it
knows in part is said when it is read, with what happens to the rest.
"""

from __future__ import annotations

from collections.abc import Mapping

from skerry.errors import PolicyError, Problem
from skerry.xsm.flask.model import FlaskPolicy
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.hooks import HOOKS
from skerry.xsm.stack import Stack

DECIDING = ("domain", "event", "grant")
"""The classes without which no start and no channel is decided."""


def needed() -> dict[str, frozenset[str]]:
    """Return every class that the hooks ask, with the permissions."""
    found: dict[str, set[str]] = {}
    for hook in HOOKS.values():
        for question in hook.asks:
            found.setdefault(question.tclass, set()).update(question.permissions)
    return {name: frozenset(found[name]) for name in sorted(found)}


def lacking(policy: FlaskPolicy) -> Mapping[str, tuple[str, ...]]:
    """Return the classes that the hooks ask and the permissions of each that the policy lacks."""
    found = {}
    for name, permissions in needed().items():
        tclass = policy.class_named(name)
        missing = permissions - set(tclass.permissions if tclass else ())
        if missing:
            found[name] = tuple(sorted(missing))
    return found


def fitness_warnings(policy: FlaskPolicy) -> list[Problem]:
    """Say what the hooks ask and the policy lacks, and what becomes of it."""
    effect = "allowed" if lets_unknown_pass(policy) else "denied"
    found = []
    for name, permissions in lacking(policy).items():
        whole = policy.class_named(name) is None
        what = f"class {name}" if whole else f"class {name} {{ {' '.join(permissions)} }}"
        reason = f"handle_unknown is {policy.handle_unknown}"
        if policy.flavour == "xen":
            reason = "Xen denies what its policy does not know"
        message = f"lacks the {what}, which is asked here; that is {effect} ({reason})"
        found.append(Problem(policy.file, 0, message))
    return found


def lets_unknown_pass(policy: FlaskPolicy) -> bool:
    """Tell whether what the policy does not know is allowed."""
    return policy.flavour == "selinux" and policy.handle_unknown == "allow"


def check_fitness(stack: Stack) -> list[Problem]:
    """Return warnings about the stack's FLASK policy. Raises `PolicyError` if it is not for us."""
    warnings: list[Problem] = []
    for module in stack.modules:
        if isinstance(module, FlaskModule):
            _check(module.policy)
            warnings += fitness_warnings(module.policy)
    return warnings


def absent(policy: FlaskPolicy) -> list[str]:
    """Return the deciding classes of which the policy has nothing; any of them makes it unfit."""
    # A class of that name which has nothing of what is asked is another one.
    known, missing = needed(), lacking(policy)
    return [name for name in DECIDING if len(missing.get(name, ())) == len(known[name])]


def _check(policy: FlaskPolicy) -> None:
    missing, nothing_of = lacking(policy), absent(policy)
    if nothing_of:
        message = (
            f"a policy for {policy.flavour} without {', '.join(nothing_of)}: the classes by which"
            " domains and channels are decided; use one written for Xen's classes"
        )
        raise PolicyError([Problem(policy.file, 0, message)])
    if lets_unknown_pass(policy) and "security" in missing:
        shown = " ".join(missing["security"])
        message = (
            f"handle_unknown is allow, and the policy lacks the class security {{ {shown} }}: every"
            " operator could change it; add the class, or compile it with handle_unknown deny"
        )
        raise PolicyError([Problem(policy.file, 0, message)])
    if policy.handle_unknown == "reject" and policy.flavour == "selinux" and missing:
        shown = ", ".join(
            f"{name} {{ {' '.join(permissions)} }}" for name, permissions in missing.items()
        )
        message = f"handle_unknown is reject, and the policy lacks: {shown}"
        raise PolicyError([Problem(policy.file, 0, message)])
