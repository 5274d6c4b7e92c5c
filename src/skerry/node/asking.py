"""Asks a policy's modules, many times over, whether a hook is allowed between two labels.

The rules this module keeps: each answer is the one that the monitor would get from the same
modules; what fails in asking is an error, for an analysis that takes it for a no proves what may be
false; a question is asked once, and of a hook no more than up to the first that is refused. Those
that refuse most are asked first, which changes no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skerry.errors import Denied
from skerry.label import Label
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.hooks import HOOKS, Hook, expand
from skerry.xsm.request import Answer, Request
from skerry.xsm.stack import Stack

_SAME = {
    hook: next(other for other in HOOKS if set(HOOKS[other].asks) == set(HOOKS[hook].asks))
    for hook in HOOKS
}
"""For each hook the first that asks the same questions: they are asked once."""

_FIRST = ("grant", "resource")
"""Classes whose questions are refused more often than others."""

_Plan = tuple[tuple[int, int, str, tuple[str, ...]], ...]
"""The questions of a hook: the numbers of subject and target (`_ENDS`), class and permissions."""

_ENDS = 2
"""From this number on, what is made between the two: 2 by the first toward the second, 3 back."""


FAILED = "MODULE-FAILED"
"""The code of an answer that is none, as `skerry.xsm.stack` gives it."""

_MAX_WORDS = 200


class Asker:
    """Asks hooks of two parties: source and sink, or operator and domain.

    Every question raises a `Denied` with the code `FAILED` where a module fails in answering it.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._flask = [m for m in stack.modules if isinstance(m, FlaskModule)]
        others = [m for m in stack.modules if not isinstance(m, FlaskModule)]
        self._others = Stack(others) if others else None
        self._plans: dict[str, _Plan] = {}
        self._answers: dict[tuple[str, Label, Label], bool] = {}
        self._decisions: dict[tuple[Label, Label, str, tuple[str, ...]], bool] = {}
        self._transitions: dict[tuple[Label, Label], Label | None] = {}
        self._made_labels: dict[tuple[Label, Label, str], Label] = {}
        self._together: dict[tuple[Label, Label], bool] = {}
        self._walls: dict[Label, Label] = {}
        self._starts: dict[Label, bool] = {}

    def allowed(self, hook: str, one: Label, two: Label) -> bool:
        """Tell whether every question of a hook is answered with yes."""
        key = _SAME[hook], one, two
        known = self._answers.get(key)
        if known is None:
            known = self._answers[key] = self._asked(*key)
        return known

    def operated(
        self, operator: Label, domain: Label, console: Label | None, *, reads: bool
    ) -> list[str]:
        """Return the hooks by which an operator may write to a domain, or with `reads` read of it.

        A console that has a label of its own is asked for as a resource that both use. Whoever
        may not run beside the domain gets nothing of it.
        """
        if not self.together(operator, domain):
            return []
        found = [hook for hook in ("domain_exec",) if self.allowed(hook, operator, domain)]
        if console is None:
            hooks = ["domain_console", *(["domain_console_read"] if reads else [])]
            return found + [hook for hook in hooks if self.allowed(hook, operator, domain)]
        hooks = ["console_both", *(["console_read"] if reads else [])]
        parties = {"operator": operator, "domain": domain, "console": console}
        return found + [hook for hook in hooks if self.opened(hook, parties)]

    def opened(self, hook: str, parties: Mapping[str, Label]) -> bool:
        """Tell whether a hook without ends of channels is allowed to these parties."""
        asks = HOOKS[hook].asks
        sides = ((parties[q.subject], parties[q.target], q.tclass, q.permissions) for q in asks)
        return all(self._decided(*side) for side in sides)

    def together(self, one: Label, two: Label) -> bool:
        """Tell whether the walls let two domains run at once and exchange, given no history."""
        both = (one, two) if one <= two else (two, one)
        key = self._walled(both[0]), self._walled(both[1])
        known = self._together.get(key)
        if known is None:
            beside = any(_allow(self._stack.admit(new, (old,))) for new, old in (both, both[::-1]))
            known = beside and _allow(self._stack.admit_bind(both))
            self._together[key] = known
        return known

    def relabelled(self, old: Label, new: Label) -> bool:
        """Tell whether the walls let a domain with nothing beside it get another label."""
        if new not in self._starts:
            self._starts[new] = _allow(self._stack.admit(new, ()))
        return self._starts[new] and _allow(self._stack.admit_bind((old, new)))

    def requests(
        self, hook: str, one: Label, two: Label, console: Label | None = None
    ) -> tuple[Request, ...]:
        """Return what a hook asks, as the monitor writes it; nothing where it can't be asked."""
        try:
            parties = dict(zip(_roles(HOOKS[hook]), (one, two), strict=True))
            if console is not None:
                parties["console"] = console
            return expand(HOOKS[hook], parties, self._whole_transition)
        except Denied as denied:
            _require_answer(denied)
            return ()  # what the channel would be made of has no label, so it can't be made

    def _whole_transition(self, subject: Label, target: Label, tclass: str) -> Label:
        """Return what the stack does, once for all hooks of a pair, in either direction."""
        key = subject, target, tclass
        if key not in self._made_labels:
            self._made_labels[key] = self._stack.transition(*key)
        return self._made_labels[key]

    def why(self, hook: str, one: Label, two: Label, console: Label | None = None) -> list[str]:
        """Return the reasons of the answers between the two, the ends of channels left aside."""
        found: dict[str, None] = {}
        for request in self.requests(hook, one, two, console):
            if one != two and request.subject == request.target:
                continue
            for answer in self._stack.decide(request, 0).answers:
                where = f" ({answer.rule.file}:{answer.rule.line})" if answer.rule.line else ""
                found[answer.reason + where] = None
        return list(found)

    def _walled(self, label: Label) -> Label:
        """Return of a label what a wall could ask for: FLASK has none, whatever the context."""
        if self._flask and label not in self._walls:
            names = {module.name for module in self._flask}
            parts = [(name, "" if name in names else text) for name, text in label.parts]
            self._walls[label] = Label(tuple(parts))
        return self._walls.get(label, label)

    def _asked(self, hook: str, one: Label, two: Label) -> bool:
        plan = self._plans.get(hook)
        if plan is None:
            plan = self._plans[hook] = _planned(HOOKS[hook])
        ends = one, two
        for subject, target, tclass, permissions in plan:
            first = ends[subject] if subject < _ENDS else self._made(ends, subject)
            second = ends[target] if target < _ENDS else self._made(ends, target)
            if first is None or second is None:
                return False  # what would be made has no label, so it can't be made
            if not self._decided(first, second, tclass, permissions):
                return False
        return True

    def _made(self, ends: tuple[Label, Label], number: int) -> Label | None:
        key = ends if number == _ENDS else ends[::-1]
        if key not in self._transitions:
            try:
                self._transitions[key] = self._stack.transition(*key, "event")
            except Denied as denied:
                _require_answer(denied)
                self._transitions[key] = None
        return self._transitions[key]

    def _decided(
        self, subject: Label, target: Label, tclass: str, permissions: tuple[str, ...]
    ) -> bool:
        key = subject, target, tclass, permissions
        known = self._decisions.get(key)
        if known is None:
            known = self._decisions[key] = self._decide(*key)
        return known

    def _decide(
        self, subject: Label, target: Label, tclass: str, permissions: tuple[str, ...]
    ) -> bool:
        for module in self._flask:
            try:
                one, two = subject.of(module.name), target.of(module.name)
                if not module.allows(one, two, tclass, permissions):
                    return False
            except Denied:  # it has no such label
                return False
            except Exception as error:
                message = f"the module {module.name} failed: {type(error).__name__}: {error}"
                raise Denied(message[:_MAX_WORDS], code=FAILED) from error
        return self._others is None or _allowed(
            self._others, Request(subject, target, tclass, permissions)
        )


class PlainAsker(Asker):
    """Asks each question of a hook as the monitor does, by the modules' whole decisions.

    What is asked for the checker of certificates, so that a mistake above does not repeat itself.
    """

    def _asked(self, hook: str, one: Label, two: Label) -> bool:
        asked = sorted(self.requests(hook, one, two), key=lambda each: each.tclass not in _FIRST)
        return bool(asked) and all(self._whole(each) for each in asked)

    def opened(self, hook: str, parties: Mapping[str, Label]) -> bool:
        """Tell whether every request of a hook is allowed."""
        asked = expand(HOOKS[hook], parties, self._stack.transition)
        return all(_allowed(self._stack, each) for each in asked)

    def _walled(self, label: Label) -> Label:
        return label

    def _whole(self, request: Request) -> bool:
        """Decide a request once: two hooks of a pair ask for much the same."""
        key = request.subject, request.target, request.tclass, request.permissions
        known = self._decisions.get(key)
        if known is None:
            known = self._decisions[key] = _allowed(self._stack, request)
        return known


def _allowed(stack: Stack, request: Request) -> bool:
    return _allow(stack.decide(request, 0).answers)


def _allow(answers: Sequence[Answer]) -> bool:
    for answer in answers:
        if answer.code == FAILED:
            raise Denied(answer.reason, code=FAILED)
    return all(answer.allowed for answer in answers)


def _require_answer(denied: Denied) -> None:
    if denied.code == FAILED:
        raise denied


def _roles(hook: Hook) -> Sequence[str]:
    operated = any("operator" in question.subject for question in hook.asks)
    return ("operator", "domain") if operated else ("source", "sink")


def _planned(hook: Hook) -> _Plan:
    """Return a hook's questions with numbers in the place of roles."""
    one, two = _roles(hook)
    number = {one: 0, two: 1, f"{one}->{two}": _ENDS, f"{two}->{one}": _ENDS + 1}
    asks = sorted(hook.asks, key=lambda question: question.tclass not in _FIRST)
    return tuple((number[q.subject], number[q.target], q.tclass, q.permissions) for q in asks)
