"""The policy manager in the process that asks it (`monitor.Decider`): for plans, tests and tools.

The rule this module keeps: what `touch` remembers is on disk when it returns. What decides is the
engine; a node has it in a process of its own, with `client` in this one's place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from skerry.label import Label
from skerry.policy.engine import Edition, Engine, remembers
from skerry.policy.history import HistoryStore, Keeper
from skerry.xsm.explain import refuse
from skerry.xsm.request import Decision, Request, Verdict
from skerry.xsm.stack import History, Stack


class Candidate:
    """A policy as the monitor asks it."""

    def __init__(self, edition: Edition) -> None:
        self.edition = edition

    @property
    def generation(self) -> int:
        """The number of the policy."""
        return self.edition.generation

    def carry(self, label: Label) -> Label:
        """Return what a label of the policy before is called here. Raises `UnknownLabel`."""
        return self.edition.carry(label)

    async def foresee(self, channels: Collection[tuple[str, Label, Label]]) -> None:
        """Do nothing: every answer is given at once."""

    async def decide(self, hook: str, parties: Mapping[str, Label]) -> Verdict:
        """Decide a hook for these parties, without the Chinese Wall. Raises only `Denied`."""
        return self.edition.hook_verdict(hook, parties)

    async def admit(self, label: Label, running: tuple[Label, ...]) -> Verdict:
        """Decide the Chinese Wall question for a start beside these running domains."""
        return self.edition.start_verdict(label, running)

    async def admit_bind(self, *labels: Label) -> Verdict:
        """Decide the history question for an exchange among labels."""
        return self.edition.bind_verdict(*labels)


class PolicyManager:
    """The security server in process: stack, cache, generation and standing history."""

    def __init__(self, stack: Stack, store: HistoryStore, generation: int = 1) -> None:
        """Begin with this generation. Raises `PolicyError` if the history kept is damaged."""
        self._keeper = Keeper(store)
        self._engine = Engine(stack, self._keeper.history, generation)

    @property
    def generation(self) -> int:
        """The number of the policy in force."""
        return self._engine.in_force.generation

    @property
    def stack(self) -> Stack:
        """The modules in force."""
        return self._engine.in_force.stack

    @property
    def digest(self) -> str:
        """Hex SHA-256 over the digests of the modules in force."""
        return self.stack.digest

    def candidate(
        self, stack: Stack, sources: Sequence[object] = (), *, loading: bool = False
    ) -> Candidate:
        """Return a policy that could come into force next: it answers, but decides nothing."""
        return Candidate(self._engine.candidate(stack))

    async def remember(self, candidate: Candidate) -> None:
        """Save what the history will be under a candidate, so that no restart forgets it.

        Raises `DeciderUnavailable` or another `Denied` if it can't be saved.
        """
        stack, before = candidate.edition.stack, candidate.edition.before
        await self._keeper.keep_carried(self._engine, lambda now: stack.carry_history(now, before))

    def install(self, candidate: Candidate) -> int:
        """Bring a candidate into force and return the new generation.

        Raises `StaleGeneration` if another one came before it.
        """
        return self._engine.install(candidate.edition)

    def load(self, stack: Stack) -> int:
        """Bring another stack into force at once and return the new generation."""
        return self.install(self.candidate(stack))

    def decide_request(self, request: Request, *, cached: bool = True) -> Decision:
        """Decide one request, from the cache where that may be. Never raises."""
        return self._engine.in_force.decide_request(request, cached=cached)

    async def decide(self, hook: str, parties: Mapping[str, Label]) -> Verdict:
        """Decide a hook for these parties, without the Chinese Wall. Raises only `Denied`."""
        return self._engine.in_force.hook_verdict(hook, parties)

    async def admit(self, label: Label, running: tuple[Label, ...]) -> Verdict:
        """Decide the Chinese Wall question for a start beside these running domains."""
        return self._engine.in_force.start_verdict(label, running)

    async def admit_bind(self, *labels: Label) -> Verdict:
        """Decide the history question for an exchange among labels."""
        return self._engine.in_force.bind_verdict(*labels)

    @property
    def remembers(self) -> bool:
        """Whether a wall of the policy in force keeps a history."""
        return remembers(self.stack)

    async def touch(self, *labels: Label) -> None:
        """Remember, durably, that these exchange information. One alone: a start.

        Raises `Denied` if another exchange, remembered since this one was decided, has closed the
        wall, or if the history can't be saved; what was remembered stays remembered even then.
        """
        before: History | None = None
        while before is not self._engine.history:  # until nobody has learnt anything meanwhile
            before = self._engine.history
            verdict = self._engine.touch(*labels)
            if not verdict.allowed:
                raise refuse(verdict, subject=labels[0], target=labels[-1])
            # Even if nothing changed, what this rests on may still be on its way to disk.
            await self._keeper.keep(lambda: self._engine.history)
