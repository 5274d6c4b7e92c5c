"""What decides: the stack in force at a generation, its cache, and what each label has touched.

The rules this module keeps: a decision carries the generation it was made under; a change of policy
raises the generation and empties the cache before anything else is asked; whatever fails in here
is a `Denied`; and a history only grows: it counts from the moment it is decided, for all of an
exchange at once, so that two exchanges decided one after the other can't both be let past a wall.

Everything here answers at once and waits for nothing; who keeps the history on disk is elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from skerry.errors import DeciderUnavailable, Denied, StaleGeneration
from skerry.label import Label
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.cache import Avc
from skerry.xsm.hooks import HOOKS, expand
from skerry.xsm.request import Answer, Decision, Request, Verdict
from skerry.xsm.stack import History, Stack

_T = TypeVar("_T")


class Edition:
    """One stack of modules at one generation, with a cache of its own."""

    def __init__(
        self,
        stack: Stack,
        generation: int,
        history: Callable[[], History],
        before: Stack,
        cache: Avc | None = None,
    ) -> None:
        self.stack = stack
        self.before = before
        self.generation = generation
        self.cache = cache or Avc()
        self._history = history

    def carry(self, label: Label) -> Label:
        """Return what a label of the policy before is called here. Raises `UnknownLabel`."""
        return self.stack.carry(label, self.before)

    def decide_request(self, request: Request, *, cached: bool = True) -> Decision:
        """Decide one request, from the cache where that may be. Never raises."""
        if not cached:
            return self.stack.decide(request, self.generation)
        decision = self.cache.get(request, self.generation)
        if decision is None:
            decision = self.stack.decide(request, self.generation)
            self.cache.put(decision)
        return decision

    def hook_verdict(self, hook: str, parties: Mapping[str, Label]) -> Verdict:
        """Decide a hook for these parties. Raises only `Denied`.

        Of the Chinese Wall it has only what a policy says of two labels at all times: whether they
        could run beside each other.
        """

        def ask() -> Verdict:
            entry = HOOKS[hook]
            requests = expand(entry, parties, self.stack.transition)
            decisions = tuple(self.decide_request(r, cached=entry.cached) for r in requests)
            allowed = _all_allow(decisions)
            answers: tuple[Answer, ...] = ()
            if allowed and entry.admission == "beside":
                answers = self.stack.admit(parties["operator"], (parties["domain"],))
                allowed = _all_allow(answers)
            return Verdict(hook, allowed, decisions, answers, self.generation)

        return guarded(ask)

    def start_verdict(self, label: Label, running: tuple[Label, ...]) -> Verdict:
        """Decide the Chinese Wall question for a start beside these. Raises only `Denied`."""
        return guarded(
            lambda: self._admission("start", self.stack.admit(label, running, self._history()))
        )

    def bind_verdict(self, *labels: Label) -> Verdict:
        """Decide the history question for an exchange among these. Raises only `Denied`."""
        return guarded(
            lambda: self._admission("bind", self.stack.admit_bind(labels, self._history()))
        )

    def _admission(self, what: str, answers: tuple[Answer, ...]) -> Verdict:
        return Verdict(f"admit_{what}", _all_allow(answers), (), answers, self.generation)


def _all_allow(said: Sequence[Answer | Decision]) -> bool:
    """Say whether somebody was asked and nobody refuses."""
    return bool(said) and all(one.allowed for one in said)


class Engine:
    """The edition in force, those that could follow it, and the standing history."""

    def __init__(self, stack: Stack, history: History, generation: int = 1) -> None:
        self.history = history
        self.in_force = Edition(stack, generation, lambda: self.history, stack)

    def candidate(self, stack: Stack) -> Edition:
        """Return a policy that could come into force next: it answers, but decides nothing."""
        before = self.in_force.stack
        known: tuple[History, History] | None = None

        def carried() -> History:
            nonlocal known
            if known is None or known[0] is not self.history:
                known = self.history, stack.carry_history(self.history, before)
            return known[1]

        return Edition(stack, self.in_force.generation + 1, carried, before)

    def install(self, candidate: Edition) -> int:
        """Bring a candidate into force and return the new generation.

        Raises `StaleGeneration` if another one came before it.
        """
        if candidate.generation != self.in_force.generation + 1:
            raise StaleGeneration("another policy came into force meanwhile", fix="try again")
        stack, before = candidate.stack, candidate.before
        self.history = stack.carry_history(self.history, before)
        generation, cache = candidate.generation, candidate.cache
        self.in_force = Edition(stack, generation, lambda: self.history, before, cache)
        return generation

    def touch(self, *labels: Label) -> Verdict:
        """Let an exchange among these count from now on if the wall still lets it; return that
        answer.

        One alone is a start. Raises only `Denied`.
        """

        def remember() -> Verdict:
            verdict = self.in_force.bind_verdict(*labels)
            if verdict.allowed:
                self.history = self.in_force.stack.touch(labels, self.history)
            return verdict

        return guarded(remember)


def remembers(stack: Stack) -> bool:
    """Say whether a wall of a policy keeps a history."""
    return any(isinstance(each, AcmModule) and each.remembers for each in stack.modules)


def guarded(ask: Callable[[], _T]) -> _T:
    """Run a decision; anything that is not a `Denied` becomes one."""
    try:
        return ask()
    except Denied:
        raise
    except Exception as error:
        raise DeciderUnavailable(f"the policy manager failed: {error!r:.200}") from error
