"""The members of one switch, judged pair by pair: every two of them may talk, or they are cut.

The rules (laws 2 to 4): a domain joins only once the policy lets it talk, both ways, with each
member, on record; every pair is judged again whenever the policy or a member's label changes, and
what fails in deciding is a refusal. Of a pair that a new policy refuses both are cut, because what
one had sent may still wait for the other. Who is relabelled leaves in that very step, unless it was
found before that all others may talk with what it becomes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import combinations

from skerry.errors import Denied, NotFound, StaleGeneration
from skerry.label import Label
from skerry.monitor.domain import ALIVE, Domain, Resource
from skerry.monitor.mediate import MAX_TRIES, explain_for, judge
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Judge
from skerry.monitor.revise import UNDECIDED
from skerry.monitor.table import Channel, Phase

HOOK = "channel_two_way"
"""What is asked of every pair of members."""


Pass = tuple[int, frozenset[tuple[Channel, Label]]]
"""With whom a relabelled member may still talk, and the generation that said so."""


class Coalition:
    """The members of one switch."""

    def __init__(self, monitor: Monitor, resource: Resource) -> None:
        self._monitor = monitor
        self._resource = resource
        self._passes: dict[Channel, Pass] = {}
        self._refusals: dict[Channel, str] = {}

    def members(self) -> list[Channel]:
        """Return the uses of the switch that stand, those that are only joining too."""
        return [
            channel
            for channel in self._monitor.channels.of(self._resource)
            if channel.phase is Phase.LIVE and channel.bridge is not None
        ]

    def _others(self, channel: Channel) -> list[Channel]:
        """Return the uses by other domains."""
        return [each for each in self.members() if each.source is not channel.source]

    async def admit(self, number: int) -> None:
        """Return once the policy in force lets a new member talk with each that has joined.

        Each answer is on record. Raises `Refused` or another `Denied`, `NotFound` if it was cut.
        """
        channel = self._monitor.channels.get(number)
        mediator = self._monitor.mediator
        for _ in range(MAX_TRIES):
            generation, asked = mediator.decider.generation, self._joined(channel)
            label = channel.source.label
            for other, _ in sorted(asked, key=_number):
                about = {"switch": self._resource.name, "channel": channel.number}
                names = {"source": channel.source.name, "sink": other.source.name}

                parties = partial(_labels, channel.source, other.source)
                await mediator.permit(HOOK, parties, {**about, **names})
            current = mediator.decider.generation, channel.source.label
            if current == (generation, label) and self._joined(channel) <= asked:
                return
        raise StaleGeneration(
            f"the members of {self._resource.name} kept changing", fix="try again"
        )

    def _joined(self, channel: Channel) -> frozenset[tuple[Channel, Label]]:
        return frozenset(
            (each, each.source.label) for each in self._others(channel) if has_joined(each)
        )

    async def judge(self) -> dict[int, str]:
        """Cut at once all whom the policy in force keeps from one another; return why, by number.

        Raises nothing that a policy or its manager is the cause of.
        """
        mediator = self._monitor.mediator
        cut = {}
        for channel, why in (await self._refused(mediator.decider)).items():
            if self._cut(channel, why):
                cut[channel.number] = why
        return cut

    async def foretold(self, policy: Judge, carry: Callable[[Label], Label]) -> Mapping[int, str]:
        """Say what `judge` would cut under a policy that is not in force; changes nothing."""
        found = await self._refused(policy, carry)
        return {channel.number: why for channel, why in found.items()}

    async def _refused(
        self, policy: Judge, carry: Callable[[Label], Label] | None = None
    ) -> dict[Channel, str]:
        """Return the members that a policy refuses, with the reasons.

        `carry` gives the labels under it; None: it is the one in force, so what is allowed is
        remembered in the walls, and what is refused goes on record.
        """
        refused: dict[Channel, str] = {}
        answers: dict[tuple[Label, Label], str] = {}
        for one, other in combinations(self.members(), 2):
            if one.source is other.source:
                continue
            try:
                pair = one.source.label, other.source.label
                if carry is not None:
                    pair = carry(pair[0]), carry(pair[1])
            except Denied as error:
                answer = _words(error)
            else:
                if pair not in answers:
                    answers[pair] = await self._ask(policy, *pair, real=carry is None)
                answer = answers[pair]
            if answer:
                for each in _fall(one, other):
                    peer = other if each is one else one
                    refused.setdefault(each, self._why(peer, answer))
        return refused

    async def _ask(self, policy: Judge, one: Label, other: Label, *, real: bool) -> str:
        """Return why a pair may not talk, nothing if it may."""
        mediator = self._monitor.mediator
        parties = {"source": one, "sink": other}
        try:
            verdict = await judge(policy, HOOK, parties)
            if verdict.allowed:
                if real:
                    await mediator.touch(HOOK, parties, lambda: parties)
                return ""
        except UNDECIDED as error:
            if not real:
                raise
            return _words(error)
        except Exception as error:  # whatever fails in deciding is a refusal
            return _words(error)
        explanation = explain_for(verdict, parties)
        if real:
            fields = {
                "hook": HOOK,
                "generation": verdict.generation,
                "parties": {role: str(label) for role, label in parties.items()},
                "switch": self._resource.name,
                "why": explanation.as_dict(),
            }
            mediator.audit.note("deny", fields)
        return f"{explanation.sentence} [{explanation.code}]"

    def _why(self, peer: Channel, answer: str) -> str:
        where = f"on the switch {self._resource.name} with {peer.source.name}"
        return f"{where}, with which it may not talk: {answer}"

    def _cut(self, channel: Channel, why: str) -> bool:
        """Cut a member that still is one."""
        if channel.phase is not Phase.LIVE:
            return False
        self._monitor.cut(channel.number, why)
        return True

    async def foresee(self, domain: Domain, new: Label) -> None:
        """Find out what of a domain's uses can stay when it gets another label: see `withdrawn`."""
        self.forget()
        generation = self._monitor.mediator.decider.generation
        for channel in self.members():
            if channel.source is not domain:
                continue
            others = frozenset((each, each.source.label) for each in self._others(channel))
            answers: dict[Label, str] = {}
            for other, label in sorted(others, key=_number):
                if label not in answers:
                    decider = self._monitor.mediator.decider
                    answers[label] = await self._ask(decider, new, label, real=True)
                if answers[label]:
                    self._refusals[channel] = self._why(other, answers[label])
                    break
            else:
                self._passes[channel] = generation, others

    def forget(self) -> None:
        """Nobody is being relabelled any more."""
        self._passes.clear()
        self._refusals.clear()

    def withdrawn(self, name: str, why: str) -> None:
        """Cut the uses of a domain that ends or gets another label; never asks.

        What `foresee` found to be still allowed stays, if nothing has changed since.
        """
        generation = self._monitor.mediator.decider.generation
        for channel in self.members():
            if channel.source.name != name:
                continue
            granted, others = self._passes.get(channel, (0, frozenset()))
            now = {(each, each.source.label) for each in self._others(channel)}
            stays = channel in self._passes and granted == generation and now <= others
            if not (stays and channel.source.state in ALIVE):
                refusal = self._refusals.get(channel)
                self._cut(channel, f"{why}: {refusal}" if refusal else why)

    def lost(self, numbers: Iterable[int], why: str) -> None:
        """Cut these members."""
        for number in numbers:
            try:
                channel = self._monitor.channels.get(number)
            except NotFound:
                continue
            if channel.sink is self._resource:
                self._cut(channel, why)


def has_joined(channel: Channel) -> bool:
    """Say whether a use's socket was handed to the switch."""
    return bool(getattr(channel.bridge, "joined", False))


def _number(member: tuple[Channel, Label]) -> int:
    return member[0].number


def _labels(source: Domain, sink: Domain) -> dict[str, Label]:
    return {"source": source.label, "sink": sink.label}


def _fall(one: Channel, other: Channel) -> tuple[Channel, ...]:
    """Return whom a refused pair costs its use: who has not joined yet, else both."""
    joining = tuple(each for each in (one, other) if not has_joined(each))
    return joining or (one, other)


def _words(error: Exception) -> str:
    words = error.message if isinstance(error, Denied) else str(error)
    return words[:500] or repr(error)[:500]
