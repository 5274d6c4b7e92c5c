"""The labels that operators may give to a domain, one after the other.

The rules this module keeps: each step is asked as the monitor asks a relabel, for each operator of
the system; a label that is not tried is never left out in silence: where a policy has more labels
than can be tried, or the domains get more of them than can be held, that is an error, and it is
one before anything is made of them.
"""

from __future__ import annotations

from itertools import product

from skerry.errors import InputError, Problem
from skerry.label import Label
from skerry.node.asking import Asker
from skerry.node.setup import Setup
from skerry.policy.fitness import lacking, lets_unknown_pass
from skerry.xsm.flask.module import FlaskModule

MAX_CANDIDATES = 512
"""Most labels of a policy that are tried for a relabel; with more, the question is refused."""

MAX_STATES = 8_192
"""Most domains, each counted once for every label that it may get; with more, the question is
refused."""


class Relabels:
    """Asks which label may follow which."""

    def __init__(self, setup: Setup, asker: Asker) -> None:
        """Raise `InputError` if the policy has too many labels to try them all."""
        self._setup = setup
        self._stack = setup.stack
        self._asker = asker
        self._operators = sorted({setup.owner, *setup.operators.values()})
        self._candidates = self._all(setup)
        self._answers: dict[tuple[Label, Label], bool] = {}
        self._known: dict[Label, list[Label]] = {}

    def of(self, label: Label) -> list[Label]:
        """Return every label that a domain can get that begins with one, that one first."""
        if label not in self._known:
            found = [label]
            left = dict.fromkeys(c for c in self._candidates if c != label)
            for one in found:  # grows while it is gone through
                more = [c for c in left if self.allowed(one, c)]
                found += more
                for each in more:
                    del left[each]
            self._known[label] = found
        return self._known[label]

    def states(self) -> dict[str, list[Label]]:
        """Return the labels that each domain of the system can get. Raises `InputError` beyond
        `MAX_STATES`."""
        labels = self._setup.labels
        count = sum(len(self.of(labels[name])) for name in self._setup.system.domains)
        if count > MAX_STATES:
            message = f"{count} domains under all their labels are more than {MAX_STATES}"
            raise _refused(self._setup, message)
        return {name: self.of(labels[name]) for name in self._setup.system.domains}

    def allowed(self, old: Label, new: Label) -> bool:
        """Tell whether some operator may give a domain another label at once."""
        key = old, new
        if key not in self._answers:
            self._answers[key] = old != new and self._ask(old, new)
        return self._answers[key]

    def _ask(self, old: Label, new: Label) -> bool:
        return self._asker.relabelled(old, new) and any(
            self._asker.opened("domain_relabel", {"operator": one, "domain": old, "new": new})
            for one in self._operators
        )

    def _all(self, setup: Setup) -> list[Label]:
        names, size = [], 1
        for module in self._stack.modules:
            if isinstance(module, FlaskModule):
                if why := _unlisted(module):
                    raise _refused(setup, why)
                names.append((*module.labels(), *module.object_labels()))
            else:
                names.append(tuple(module.labels()))
            size *= len(names[-1])
            if size > MAX_CANDIDATES:
                raise _refused(setup, f"the policy has more than {MAX_CANDIDATES} labels to try")
        modules = self._stack.names
        made = [Label(tuple(sorted(zip(modules, texts, strict=True)))) for texts in product(*names)]
        return list(dict.fromkeys([*made, *(setup.labels[n] for n in setup.system.domains)]))


def _unlisted(module: FlaskModule) -> str:
    """Say why a domain could get contexts that are not listed, "" if it can't."""
    policy = module.policy
    if policy.mls:
        return "a FLASK policy with levels has more contexts than are tried"
    if not module.lists_every_label():
        return f"the policy has more than {MAX_CANDIDATES} labels to try"
    if policy.permissive:
        return "a domain of a permissive type may get any context"
    if lets_unknown_pass(policy) and "domain2" in lacking(policy):
        return "the policy lets every relabel pass, since it does not know the class domain2"
    return ""


def _refused(setup: Setup, message: str) -> InputError:
    line = setup.system.line(("policy",))
    return InputError([Problem(str(setup.system.path), line, f"{message}; leave relabels out")])
