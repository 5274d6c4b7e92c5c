"""From the stack in force and a change of it to the stack that shall come into force.

The rules this module keeps: a policy takes the place of the one of the same module and of nothing
else; an ACM policy that names the policy it updates (`FromPolicy`) is loaded over that one only,
and with a higher version, as sHype does.
"""

from __future__ import annotations

from collections.abc import Mapping

from skerry.errors import InputError, PolicyError, Problem
from skerry.policy.fitness import check_fitness
from skerry.policy.load import parse_policy
from skerry.xsm.acm.model import AcmPolicy
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.module import SecurityModule
from skerry.xsm.stack import Stack


def with_policy(stack: Stack, untrusted: bytes, file: str) -> Stack:
    """Return the stack with a policy, given by its bytes, in the place of the old one.

    Raises `PolicyError` if it is none, or none of a module in force.
    """
    new = parse_policy(untrusted, file)
    if new.name not in stack.names:
        shown = ", ".join(stack.names)
        message = f"a policy of the module {new.name}, but in force are: {shown}"
        raise PolicyError([Problem(file, 0, f"{message}; give one of these")])
    changed = _replaced(stack, new)
    check_update(stack, changed)
    check_fitness(changed)
    return changed


def check_update(old: Stack, new: Stack) -> None:
    """Raise `PolicyError` where an ACM policy updates another one than that in force."""
    were = {module.name: module for module in old.modules}
    for module in new.modules:
        before = were.get(module.name)
        if not isinstance(module, AcmModule) or not isinstance(before, AcmModule):
            continue
        if module.digest != before.digest:
            _check_update(before.policy, module.policy)


def with_booleans(stack: Stack, values: Mapping[str, bool]) -> Stack:
    """Return the stack with booleans of its Flask policy set. Raises `InputError`."""
    for module in stack.modules:
        if isinstance(module, FlaskModule):
            return _replaced(stack, module.with_booleans(values))
    shown = ", ".join(stack.names)
    message = f"only a FLASK policy has booleans; in force are: {shown}"
    raise InputError([Problem("argument", 0, message)])


def _replaced(stack: Stack, new: SecurityModule) -> Stack:
    return Stack([new if module.name == new.name else module for module in stack.modules])


def _check_update(old: AcmPolicy, new: AcmPolicy) -> None:
    updated = new.from_policy
    if updated is None:
        return
    line = new.places.get("from", 0)
    if (updated.name, updated.version) != (old.name, old.version):
        message = (
            f"updates {updated.name} {updated.version}, but {old.name} {old.version} is in force"
        )
        raise PolicyError([Problem(new.file, line, message)])
    if _version(new.version) <= _version(old.version):
        message = f"version {new.version} does not follow {old.version}, which is in force"
        raise PolicyError([Problem(new.file, line, message)])


def _version(text: str) -> tuple[int, ...]:
    """Return major and minor; the schema lets any character stand between them."""
    digits = "".join(character if character.isdigit() else " " for character in text)
    return tuple(int(number) for number in digits.split())
