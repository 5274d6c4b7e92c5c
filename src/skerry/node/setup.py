"""From files to what a node runs with: the system, its policy, its labels, all checked at once.

`check`, `plan` and `up` share this, so that what `check` accepts is what `up` starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from skerry.errors import Denied, InputError, PolicyError, Problem, UnknownLabel
from skerry.label import Label
from skerry.policy.fitness import check_fitness
from skerry.policy.source import NewBooleans, Policy, changed, read_policy
from skerry.system.load import load_system
from skerry.system.model import RawLabel, System
from skerry.xsm.stack import Stack


class Setup(msgspec.Struct, frozen=True):
    """A system whose policy is loaded and whose labels the policy defines.

    `labels` maps each domain to its label, `operators` each uid to its label; `owner` is the
    label of the user who runs this; `warnings` say what the policy lacks for domains.
    """

    system: System
    policy: Policy
    labels: Mapping[str, Label]
    operators: Mapping[int, Label]
    owner: Label
    warnings: tuple[Problem, ...] = ()

    @property
    def stack(self) -> Stack:
        """The modules that decide."""
        return self.policy.stack


def load_setup(path: Path) -> Setup:
    """Read a system file and its policy.

    Raises `InputError` with every problem of the file or, if it has none, of its policy.
    """
    system = load_system(path)
    try:
        policy = read_policy(system.policy)
        warnings = check_fitness(policy.stack)
    except PolicyError as error:
        raise InputError(error.problems) from None
    stack = policy.stack
    reader = _Labels(system, stack)
    labels = {
        name: reader.read(domain.label, system.line(("domains", name, "label")))
        for name, domain in system.domains.items()
    }
    operators = {
        uid: reader.read(label, system.operator_line(uid))
        for uid, label in system.operators.items()
    }
    problems = reader.problems + _alarm_problems(system, policy)
    if problems:
        raise InputError(sorted(problems, key=lambda problem: problem.line))
    # The owner of the node may always call it; without a line of its own it has domain 0's label.
    if os.getuid() not in operators:
        operators[os.getuid()] = _owner(stack, system)
    owner = operators[os.getuid()]
    return Setup(system, policy, labels, operators, owner, tuple(warnings))


def carry(stack: Stack, label: Label, before: Stack) -> Label | None:
    """Return what a label is called under the next policy, None if that has no such label."""
    try:
        return stack.carry(label, before)
    except Denied:
        return None


def carried(setup: Setup, policy: Policy) -> Setup:
    """Return the setup under another policy; a label that it lacks stays, and is refused."""

    def new(label: Label) -> Label:
        return carry(policy.stack, label, setup.stack) or label

    return msgspec.structs.replace(
        setup,
        policy=policy,
        labels={name: new(label) for name, label in setup.labels.items()},
        operators={uid: new(label) for uid, label in setup.operators.items()},
        owner=new(setup.owner),
    )


def _alarm_problems(system: System, policy: Policy) -> list[Problem]:
    """Return the alarms whose booleans the policy lacks: too late to learn in an emergency."""
    problems = []
    for name, alarm in system.alarms.items():
        try:
            if alarm.booleans:
                changed(policy, NewBooleans(alarm.booleans))
        except InputError as error:
            line = system.line(("alarm", name, "booleans"))
            problems.append(Problem(str(system.path), line, error.problems[0].message))
    return problems


def _owner(stack: Stack, system: System) -> Label:
    try:
        label = stack.operator_label()
        for module in stack.modules:
            module.check_label(label.of(module.name), "domain")
        return label
    except UnknownLabel as error:
        message = f"{error.message}; name your own label in [operators]"
        raise InputError([Problem(str(system.path), 0, message)]) from None


class _Labels:
    """Reads the labels of a file and collects what is wrong with them."""

    def __init__(self, system: System, stack: Stack) -> None:
        self.problems: list[Problem] = []
        self._file = str(system.path)
        self._stack = stack

    def read(self, value: RawLabel, line: int) -> Label:
        try:
            return self._stack.label(value, "domain")
        except UnknownLabel as error:
            message = str(error)
            if isinstance(value, str) and len(self._stack.names) > 1 and "=" not in value:
                parts = ", ".join(f'{name} = "..."' for name in self._stack.names)
                message += f"; with several modules, write label = {{ {parts} }}"
            self.problems.append(Problem(self._file, line, message))
            return Label(())
