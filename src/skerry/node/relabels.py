"""The labels that operators may give to a domain, one after the other.

The rule this module keeps: each step is asked as the monitor asks a relabel, for each operator of
the system; a label that is not tried is never left out in silence: where a policy has more labels
than can be tried, that is an error.
"""

from __future__ import annotations

from itertools import product

from skerry.errors import Denied, InputError, Problem
from skerry.label import Label
from skerry.node.setup import Setup
from skerry.xsm.flask.module import MAX_LABELS, FlaskModule
from skerry.xsm.hooks import HOOKS, expand

MAX_CANDIDATES = 1_024
"""Most labels of a policy that are tried for a relabel; with more, the question is refused."""


class Relabels:
    """Asks which label may follow which."""

    def __init__(self, setup: Setup) -> None:
        """Raise `InputError` if the policy has too many labels to try them all."""
        self._stack = setup.stack
        self._operators = sorted({setup.owner, *setup.operators.values()})
        self._candidates = self._all(setup)
        self._answers: dict[tuple[Label, Label], bool] = {}
        self._known: dict[Label, list[Label]] = {}

    def of(self, label: Label) -> list[Label]:
        """Return every label that a domain can get that begins with one, that one first."""
        if label not in self._known:
            found = [label]
            for one in found:  # grows while it is gone through
                found += [c for c in self._candidates if c not in found and self.allowed(one, c)]
            self._known[label] = found
        return self._known[label]

    def allowed(self, old: Label, new: Label) -> bool:
        """Tell whether some operator may give a domain another label at once."""
        key = old, new
        if key not in self._answers:
            self._answers[key] = old != new and self._ask(old, new)
        return self._answers[key]

    def _ask(self, old: Label, new: Label) -> bool:
        stack = self._stack
        walls = (*stack.admit(new, ()), *stack.admit_bind(old, new))
        return all(answer.allowed for answer in walls) and any(
            self._asked(operator, old, new) for operator in self._operators
        )

    def _asked(self, operator: Label, old: Label, new: Label) -> bool:
        parties = {"operator": operator, "domain": old, "new": new}
        try:
            requests = expand(HOOKS["domain_relabel"], parties, self._stack.transition)
        except Denied:
            return False
        return all(self._stack.decide(request, 0).allowed for request in requests)

    def _all(self, setup: Setup) -> list[Label]:
        names, size = [], 1
        for module in self._stack.modules:
            if isinstance(module, FlaskModule) and module.policy.mls:
                raise _too_many(
                    setup, "a FLASK policy with levels has more contexts than are tried"
                )
            names.append(module.labels())
            size *= len(names[-1])
            full = isinstance(module, FlaskModule) and len(names[-1]) >= MAX_LABELS
            if full or size > MAX_CANDIDATES:
                raise _too_many(setup, f"the policy has more than {MAX_CANDIDATES} labels to try")
        modules = self._stack.names
        made = [Label(tuple(sorted(zip(modules, texts, strict=True)))) for texts in product(*names)]
        return list(dict.fromkeys([*made, *(setup.labels[n] for n in setup.system.domains)]))


def _too_many(setup: Setup, message: str) -> InputError:
    line = setup.system.line(("policy",))
    return InputError([Problem(str(setup.system.path), line, f"{message}; leave relabels out")])
