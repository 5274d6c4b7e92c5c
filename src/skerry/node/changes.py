"""What a system's domains may do under one policy and not under another.

The rule this module keeps: each operation is asked as the monitor asks it, with the same hooks and
every module of the system's stack, so constraints, roles, levels and bounds count here.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from skerry.errors import Denied, InputError, Problem
from skerry.label import Label
from skerry.policy.difference import Change
from skerry.policy.source import load_stack
from skerry.system.load import load_system
from skerry.system.model import RawLabel, System
from skerry.xsm.hooks import HOOKS, Hook, expand
from skerry.xsm.module import SecurityModule
from skerry.xsm.stack import Stack


def _with_parties(*parties: str) -> tuple[str, ...]:
    def named(hook: Hook) -> set[str]:
        sides = (side for q in hook.asks for side in (q.subject, q.target))
        return {role for side in sides for role in side.split("->")}

    return tuple(name for name, hook in HOOKS.items() if named(hook) == set(parties))


_BETWEEN = _with_parties("source", "sink")
BETWEEN_DOMAINS = tuple(hook for hook in _BETWEEN if HOOKS[hook].admission == "bind")
"""The hooks whose parties are two domains."""

ON_A_RESOURCE = tuple(hook for hook in _BETWEEN if hook not in BETWEEN_DOMAINS)
"""The hooks whose parties are a domain and a resource that it uses."""

ON_A_DOMAIN = _with_parties("operator", "domain")
"""The hooks whose parties are the operator and a domain."""

RUN_BESIDE = "run beside"
"""The question whether a domain may start while another one runs."""


def system_changes(path: Path, old: SecurityModule, new: SecurityModule) -> Iterator[Change]:
    """Yield each operation on and between a system's domains whose answer changes.

    Raises `InputError` if the system file is wrong or its policies have no such module.
    """
    system = load_system(path)
    stack = load_stack(system.policy)
    for module in (old, new):
        if module.name not in stack.names:
            message = f"the system has no policy of the module {module.name}"
            raise InputError([Problem(str(path), system.line(("policy",)), message)])
    sides = [_Side(system, _with(stack, module)) for module in (old, new)]
    names = list(system.domains)
    for hook in ON_A_DOMAIN:
        yield from _compared(sides, hook, ["operator"], names)
    for hook in (*BETWEEN_DOMAINS, RUN_BESIDE):
        yield from _compared(sides, hook, names, names)
    for hook in ON_A_RESOURCE:
        yield from _compared(sides, hook, names, list(system.resources))


def _with(stack: Stack, new: SecurityModule) -> Stack:
    return Stack([new if module.name == new.name else module for module in stack.modules])


def _compared(
    sides: list[_Side], hook: str, sources: list[str], targets: list[str]
) -> Iterator[Change]:
    groups: defaultdict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for source in sources:
        changed: dict[str, list[str]] = {"allowed": [], "denied": []}
        for target in targets:
            if source == target:
                continue
            before, after = (side.allows(hook, source, target) for side in sides)
            if before != after:
                changed["allowed" if after else "denied"].append(target)
        for effect, names in changed.items():
            if names:
                groups[effect, tuple(names)].append(source)
    for (effect, names_), sources_ in sorted(groups.items()):
        yield Change(effect, hook, tuple(sources_), names_)


class _Side:
    """A system under one of the two policies; labels alike are asked once."""

    def __init__(self, system: System, stack: Stack) -> None:
        self._stack = stack
        self._labels = {name: self._label(d.label) for name, d in system.domains.items()}
        for name, resource in system.resources.items():
            self._labels[name] = self._label(resource.label, "resource")
        self._labels["operator"] = self._label(system.operators.get(os.getuid()))
        self._answers: dict[tuple[str, Label, Label], bool] = {}

    def allows(self, hook: str, source: str, target: str) -> bool:
        """Tell whether an operation is allowed; never for a label that the policy lacks."""
        one, other = self._labels[source], self._labels[target]
        if one is None or other is None:
            return False
        key = hook, one, other
        if key not in self._answers:
            self._answers[key] = self._ask(*key)
        return self._answers[key]

    def _label(self, raw: RawLabel | None, tclass: str = "domain") -> Label | None:
        try:
            if raw is None:
                return self._stack.operator_label()
            return self._stack.label(raw, tclass)
        except Denied:
            return None

    def _ask(self, hook: str, one: Label, other: Label) -> bool:
        if hook == RUN_BESIDE:
            return all(answer.allowed for answer in self._stack.admit(one, (other,)))
        parties = {"operator": one, "domain": other, "source": one, "sink": other}
        try:
            requests = expand(HOOKS[hook], parties, self._stack.transition)
        except Denied:  # what the operation would make has no label
            return False
        return all(self._stack.decide(request, 0).allowed for request in requests)
