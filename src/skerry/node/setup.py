"""From files to what a node runs with: the system, its policy, its labels, all checked at once.

`check`, `plan` and `up` share this, so that what `check` accepts is what `up` starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from skerry.errors import InputError, PolicyError, Problem, UnknownLabel
from skerry.label import Label
from skerry.policy.load import load_stack
from skerry.system.load import load_system
from skerry.system.model import System
from skerry.xsm.stack import Stack


class Setup(msgspec.Struct, frozen=True):
    """A system whose policy is loaded and whose labels the policy defines.

    `labels` maps each domain to its label, `operators` each uid to its label; `owner` is the
    label of the user who runs this.
    """

    system: System
    stack: Stack
    labels: Mapping[str, Label]
    operators: Mapping[int, Label]
    owner: Label


def load_setup(path: Path) -> Setup:
    """Read a system file and its policy. Raises `InputError` with every problem of both."""
    system = load_system(path)
    try:
        stack = load_stack(system.policy)
    except PolicyError as error:
        raise InputError(error.problems) from None
    problems: list[Problem] = []
    labels = {
        name: _label(system, stack, domain.label, ("domains", name, "label"), problems)
        for name, domain in system.domains.items()
    }
    operators = {
        uid: _label(system, stack, label, ("operators",), problems)
        for uid, label in system.operators.items()
    }
    if problems:
        raise InputError(problems)
    # The owner of the node may always call it; without a line of its own it has domain 0's label.
    owner = operators.setdefault(os.getuid(), stack.operator_label())
    return Setup(system, stack, labels, operators, owner)


def _label(
    system: System,
    stack: Stack,
    value: str | Mapping[str, str],
    place: Sequence[str],
    problems: list[Problem],
) -> Label:
    try:
        return stack.label(value, "domain")
    except UnknownLabel as error:
        problems.append(Problem(str(system.path), system.line(tuple(place)), str(error)))
        return Label(())
