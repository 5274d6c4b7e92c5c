"""The policy manager: decides for the monitor with the stack in force (`monitor.Decider`).

The rules this module keeps: a decision carries the generation it was made under; a load raises
the generation and empties the cache before anything else is asked; whatever fails in here is a
`Denied`; and a history only grows: it counts from the moment it is decided, before it is on disk,
so that two exchanges decided at the same time can't both be let past a wall.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeVar

from skerry.errors import DeciderUnavailable, Denied, StaleGeneration
from skerry.label import Label
from skerry.policy.history import HistoryStore
from skerry.xsm.cache import Avc
from skerry.xsm.explain import refuse
from skerry.xsm.hooks import HOOKS, expand
from skerry.xsm.request import Answer, Decision, Request, Verdict
from skerry.xsm.stack import History, Stack

_T = TypeVar("_T")


class Candidate:
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

    async def decide(self, hook: str, parties: Mapping[str, Label]) -> Verdict:
        """Decide a hook for these parties, without the Chinese Wall. Raises only `Denied`."""

        def ask() -> Verdict:
            entry = HOOKS[hook]
            requests = expand(entry, parties, self.stack.transition)
            decisions = tuple(self.decide_request(r, cached=entry.cached) for r in requests)
            allowed = bool(decisions) and all(decision.allowed for decision in decisions)
            return Verdict(hook, allowed, decisions, (), self.generation)

        return _guarded(ask)

    async def admit(self, label: Label, running: tuple[Label, ...]) -> Verdict:
        """Decide the Chinese Wall question for a start beside these running domains."""
        return _guarded(
            lambda: self._admission("start", self.stack.admit(label, running, self._history()))
        )

    async def admit_bind(self, one: Label, other: Label) -> Verdict:
        """Decide the history question for an exchange between two labels."""
        return _guarded(lambda: self.bind_verdict(one, other))

    def bind_verdict(self, one: Label, other: Label) -> Verdict:
        """Return the verdict of `admit_bind` at once."""
        return self._admission("bind", self.stack.admit_bind(one, other, self._history()))

    def _admission(self, what: str, answers: tuple[Answer, ...]) -> Verdict:
        allowed = bool(answers) and all(answer.allowed for answer in answers)
        return Verdict(f"admit_{what}", allowed, (), answers, self.generation)


class PolicyManager:
    """The security server in process: stack, cache, generation and standing history."""

    def __init__(self, stack: Stack, store: HistoryStore, generation: int = 1) -> None:
        """Begin with this generation. Raises `PolicyError` if the history kept is damaged."""
        self._store = store
        self._history: History = store.load()
        self._saved = self._history
        self._in_force = Candidate(stack, generation, lambda: self._history, stack)
        self._saving = asyncio.Lock()

    @property
    def generation(self) -> int:
        """The number of the policy in force."""
        return self._in_force.generation

    @property
    def stack(self) -> Stack:
        """The modules in force."""
        return self._in_force.stack

    @property
    def digest(self) -> str:
        """Hex SHA-256 over the digests of the modules in force."""
        return self.stack.digest

    def candidate(self, stack: Stack) -> Candidate:
        """Return a policy that could come into force next: it answers, but decides nothing."""
        known: tuple[History, History] | None = None

        def carried() -> History:
            nonlocal known
            if known is None or known[0] is not self._history:
                known = self._history, stack.carry_history(self._history, self.stack)
            return known[1]

        return Candidate(stack, self.generation + 1, carried, self.stack)

    def install(self, candidate: Candidate) -> int:
        """Bring a candidate into force and return the new generation.

        Raises `StaleGeneration` if another one came before it.
        """
        if candidate.generation != self.generation + 1:
            raise StaleGeneration("another policy came into force meanwhile", fix="try again")
        stack, before = candidate.stack, candidate.before
        self._history = stack.carry_history(self._history, before)
        generation, cache = candidate.generation, candidate.cache
        self._in_force = Candidate(stack, generation, lambda: self._history, before, cache)
        return candidate.generation

    def load(self, stack: Stack) -> int:
        """Bring another stack into force at once and return the new generation."""
        return self.install(self.candidate(stack))

    def decide_request(self, request: Request, *, cached: bool = True) -> Decision:
        """Decide one request, from the cache where that may be. Never raises."""
        return self._in_force.decide_request(request, cached=cached)

    async def decide(self, hook: str, parties: Mapping[str, Label]) -> Verdict:
        """Decide a hook for these parties, without the Chinese Wall. Raises only `Denied`."""
        return await self._in_force.decide(hook, parties)

    async def admit(self, label: Label, running: tuple[Label, ...]) -> Verdict:
        """Decide the Chinese Wall question for a start beside these running domains."""
        return await self._in_force.admit(label, running)

    async def admit_bind(self, one: Label, other: Label) -> Verdict:
        """Decide the history question for an exchange between two labels."""
        return await self._in_force.admit_bind(one, other)

    async def touch(self, one: Label, other: Label) -> None:
        """Remember, durably, that the two exchanged information. The same label twice: a start.

        Raises `Denied` if another exchange, remembered since this one was decided, has closed the
        wall, or if the history can't be saved; what was remembered stays remembered even then.
        """

        def remember() -> None:
            verdict = self._in_force.bind_verdict(one, other)
            if not verdict.allowed:
                raise refuse(verdict, subject=one, target=other)
            self._history = self.stack.touch(one, other, self._history)

        _guarded(remember)
        # Even if nothing changed here, what this exchange rests on may still be on its way to disk.
        # A save goes on when its waiter is cancelled, or an older one could land on a newer.
        await asyncio.shield(self._keep())

    async def _keep(self) -> None:
        async with self._saving:
            if self._saved is not self._history:
                await self._save()

    async def _save(self) -> None:
        saving = self._history
        try:
            await self._store.save(saving)
        except Denied:
            raise
        except Exception as error:
            raise DeciderUnavailable(
                f"the Chinese Wall history can't be saved: {error}", fix="free the disk"
            ) from error
        self._saved = saving


def _guarded(ask: Callable[[], _T]) -> _T:
    """Run a decision; anything that is not a `Denied` becomes one."""
    try:
        return ask()
    except Denied:
        raise
    except Exception as error:
        raise DeciderUnavailable(f"the policy manager failed: {error!r:.200}") from error
