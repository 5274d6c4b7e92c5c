"""Security modules stacked: an operation is allowed only if every module allows it.

The rule this module keeps (law 4, *fail secure*): a module that raises, or whose part a label
lacks, has denied; nothing a module does can escape as an exception that is not a `Denied`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

from skerry.errors import Denied, PolicyError, Problem
from skerry.label import Label, make_label
from skerry.xsm.module import SecurityModule, Standing
from skerry.xsm.request import Answer, Decision, Request

History = Mapping[str, Mapping[str, frozenset[str]]]
"""For each module, what each of its label texts has touched (see `Standing.touched`)."""

NO_HISTORY: History = {}


class Stack:
    """One to several modules, each with its own part of every label. Immutable."""

    def __init__(self, modules: Sequence[SecurityModule]) -> None:
        """Stack the modules in this order. Raises `PolicyError` for none or two of one kind."""
        self.modules = tuple(modules)
        self.names = tuple(module.name for module in modules)
        if not modules or len(set(self.names)) != len(modules):
            shown = ", ".join(self.names) or "none"
            message = f"a stack needs one to several different modules, not: {shown}"
            raise PolicyError([Problem("policy", 0, message)])
        lines = "".join(f"{module.name} {module.digest}\n" for module in self.modules)
        self.digest = hashlib.sha256(lines.encode()).hexdigest()
        self.digests = frozenset(module.digest for module in self.modules)

    def operator_label(self) -> Label:
        """Return the label of the node's owner where the system file names none."""
        return Label(tuple(sorted((m.name, m.operator_label()) for m in self.modules)))

    def label(self, untrusted_value: str | Mapping[str, str], tclass: str) -> Label:
        """Make a label that every module defines for `tclass`. Raises `UnknownLabel`."""
        label = make_label(untrusted_value, self.names)
        return Label(
            tuple((m.name, m.check_label(label.of(m.name), tclass)) for m in self._sorted())
        )

    def carry(self, label: Label, before: Stack) -> Label:
        """Return what a label of the stack before is called under this one.

        A module that is the same in both renames nothing, whatever it once renamed. Raises
        `UnknownLabel` if a module knows it no more, or the label has no part for it.
        """
        same = {module.name for module in self.modules if module.digest in before.digests}
        texts = {module: label.of(module.name) for module in self._sorted()}
        return Label(tuple((m.name, t if m.name in same else m.carry(t)) for m, t in texts.items()))

    def carry_history(self, history: History, before: Stack) -> History:
        """Return a history under this policy: a renamed label has touched what its old one did.

        Entries under old names stay: a history only grows.
        """
        carried = dict(history)
        for module in self.modules:
            if module.digest in before.digests:
                continue
            entries = dict(history.get(module.name, {}))
            for text, touched in history.get(module.name, {}).items():
                try:
                    name = module.carry(text)
                except Denied:
                    continue
                entries[name] = entries.get(name, frozenset()) | touched
            if entries != history.get(module.name, {}):
                carried[module.name] = entries
        return carried if carried != history else history

    def decide(self, request: Request, generation: int) -> Decision:
        """Ask every module. Never raises."""

        def ask(module: SecurityModule) -> Answer:
            name = module.name
            return module.decide(
                request.subject.of(name),
                request.target.of(name),
                request.tclass,
                request.permissions,
            )

        answers = tuple([_answer(module, ask) for module in self.modules])
        allowed = all(answer.allowed for answer in answers)
        return Decision(request, allowed, answers, generation)

    def admit(
        self, label: Label, running: Sequence[Label], history: History = NO_HISTORY
    ) -> tuple[Answer, ...]:
        """Ask every module whether a domain may start beside the running ones. Never raises."""

        def ask(module: SecurityModule) -> Answer:
            beside = tuple(other.of(module.name) for other in running)
            standing = Standing(beside, history.get(module.name, {}))
            return module.admit(label.of(module.name), standing)

        return tuple(_answer(module, ask) for module in self.modules)

    def admit_bind(
        self, labels: Sequence[Label], history: History = NO_HISTORY
    ) -> tuple[Answer, ...]:
        """Ask every module whether these may all exchange information. Never raises."""

        def ask(module: SecurityModule) -> Answer:
            standing = Standing((), history.get(module.name, {}))
            return module.admit_bind([label.of(module.name) for label in labels], standing)

        return tuple(_answer(module, ask) for module in self.modules)

    def transition(self, subject: Label, target: Label, tclass: str) -> Label:
        """Return the label of what `subject` makes toward `target`, each module for its part.

        Raises `Denied` if a module fails.
        """
        try:
            return Label(
                tuple(
                    (m.name, m.transition(subject.of(m.name), target.of(m.name), tclass))
                    for m in self._sorted()
                )
            )
        except Denied:
            raise
        except Exception as error:
            raise Denied(f"a module failed: {_words(error)}", code="MODULE-FAILED") from error

    def touch(self, labels: Sequence[Label], history: History) -> History:
        """Return the history after these exchanged information; the same object if unchanged.

        Raises whatever the module raises: the caller must treat that as a denial.
        """
        changes: dict[str, Mapping[str, frozenset[str]]] = {}
        for module in self.modules:
            touched = history.get(module.name, {})
            new = module.touch([each.of(module.name) for each in labels], Standing((), touched))
            if new:
                changes[module.name] = {**touched, **new}
        return {**history, **changes} if changes else history

    def _sorted(self) -> Sequence[SecurityModule]:
        return sorted(self.modules, key=lambda module: module.name)


def _answer(module: SecurityModule, ask: Callable[[SecurityModule], Answer]) -> Answer:
    try:
        return ask(module)
    except Denied as denied:
        return Answer(module.name, False, denied.code, denied.message)
    except Exception as error:
        reason = f"the module {module.name} failed: {_words(error)}"
        return Answer(module.name, False, "MODULE-FAILED", reason)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
