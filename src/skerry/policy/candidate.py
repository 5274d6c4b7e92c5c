"""A policy that a manager's process holds and that could come into force next.

The rule this module keeps: a question about a channel is asked once, many together, so that what
stands can be judged in one step; what was said of a wall counts only while no history has grown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from skerry.label import Label
from skerry.policy.link import Link
from skerry.policy.messages import (
    MAX_QUESTIONS,
    Ask,
    Exchanged,
    Hooked,
    Offered,
    Propose,
    Question,
    Started,
)
from skerry.policy.replies import answers_of, ask, require_made
from skerry.policy.source import Policy, Source
from skerry.policy.verdicts import Verdicts, key_of, may_keep
from skerry.xsm.hooks import HOOKS
from skerry.xsm.request import Verdict
from skerry.xsm.stack import History

WINDOW = 16
"""Orders that foreseen questions take up at one time, so that others are answered in between."""


class RemoteCandidate:
    """A policy that the manager holds and that could come into force next."""

    def __init__(
        self,
        link: Link,
        number: int,
        generation: int,
        policy: Policy,
        before: Policy,
        history: Callable[[], History],
        loading: bool = False,
    ) -> None:
        """Propose the policy, which follows `before`. Raises `DeciderUnavailable`."""
        self.generation = generation
        self.number = number
        self.policy = policy
        self.before = before.stack
        self.verdicts = Verdicts()
        self.link = link
        self.made = False
        self._now = history
        self._walls: dict[Question, Verdict] = {}
        self._history = history()
        offered = tuple(_offered(policy.sources, before.sources))
        self._offer = link.order(Propose(number, offered, loading))

    def carry(self, label: Label) -> Label:
        """Return what a label of the policy before is called here. Raises `UnknownLabel`."""
        return self.policy.stack.carry(label, self.before)

    async def foresee(self, channels: Collection[tuple[str, Label, Label]]) -> None:
        """Wait until the manager has the policy, and ask what will be asked, many at a time.

        Raises `Denied` if the manager can't make the policy, or is gone.
        """
        if not self.made:
            reply = await asyncio.shield(self._offer)
            require_made(self.link, reply, self.generation, self.policy.stack)
            self.made = True
        self.verdicts.make_room(len(channels))
        wanted = [question for channel in channels for question in self._unknown(*channel)]
        orders = [
            tuple(wanted[start : start + MAX_QUESTIONS])
            for start in range(0, len(wanted), MAX_QUESTIONS)
        ]
        for start in range(0, len(orders), WINDOW):
            window = orders[start : start + WINDOW]
            history = self._now()
            coming = [self.link.order(Ask(self.number, order)) for order in window]
            for order, answer in zip(window, coming, strict=True):
                answers = answers_of(self.link, order, await answer, self.generation)
                for question, found in zip(order, answers, strict=True):
                    if isinstance(found, Verdict):
                        self._learn(question, found, history)

    def _unknown(self, hook: str, source: Label, sink: Label) -> Iterator[Question]:
        parties = {"source": source, "sink": sink}
        if self.verdicts.get(key_of(hook, parties)) is None:
            yield Hooked(hook, parties)
        exchange = Exchanged((source, sink))
        if HOOKS[hook].admission and self._wall(exchange) is None:
            yield exchange

    def _wall(self, question: Question) -> Verdict | None:
        """Return what was said of a wall, unless something was remembered since."""
        if self._now() is not self._history:
            self._walls.clear()
            self._history = self._now()
        return self._walls.get(question)

    def _learn(self, question: Question, verdict: Verdict, history: History) -> None:
        if isinstance(question, Hooked):
            self.verdicts.put(key_of(question.hook, question.parties), verdict)
        elif history is self._now() and may_keep(verdict):
            self._wall(question)
            self._walls[question] = verdict

    async def decide(self, hook: str, parties: Mapping[str, Label]) -> Verdict:
        """Decide a hook for these parties, without the Chinese Wall. Raises only `Denied`."""
        found = self.verdicts.get(key_of(hook, parties))
        return found or await self._ask(Hooked(hook, dict(parties)))

    async def admit(self, label: Label, running: tuple[Label, ...]) -> Verdict:
        """Decide the Chinese Wall question for a start beside these running domains."""
        question = Started(label, running)
        return self._wall(question) or await self._ask(question)

    async def admit_bind(self, *labels: Label) -> Verdict:
        """Decide the history question for an exchange among labels."""
        question = Exchanged(labels)
        return self._wall(question) or await self._ask(question)

    async def _ask(self, question: Question) -> Verdict:
        history = self._now()
        verdict = await ask(self.link, self.number, question, self.generation)
        self._learn(question, verdict, history)
        return verdict


def _offered(sources: Sequence[Source], known: Sequence[Source]) -> Iterator[Offered]:
    """Yield sources as a proposal, without the contents that the manager has."""
    for new, old in zip(sources, known, strict=True):
        same = (new.file, new.content) == (old.file, old.content)
        yield Offered(new.file, None if same else new.content, dict(new.booleans))
