"""What falls when another policy comes into force: channels that it refuses, domains it can't keep.

The rules this module keeps (laws 3 and 4): every live channel and every domain is judged by the
new policy before that policy is in force, and a question that fails is a refusal; where there is
nobody to judge, nothing falls and nothing comes into force. Domains are judged in the order in
which they were started, each beside those that stay, so that where two can't run together it is
the younger that falls.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from skerry.errors import DeciderUnavailable, Denied, SkerryError, StaleGeneration
from skerry.label import Label
from skerry.monitor.domain import Domain
from skerry.monitor.mediate import Parties, explain_for, judge
from skerry.monitor.protocols import Candidate
from skerry.monitor.table import Channel

UNDECIDED = StaleGeneration, DeciderUnavailable
"""Says nothing of a domain or channel: the policy is not the next any more, or nobody decides."""


class Standing(NamedTuple):
    """What there is to judge; what stands of it later needs no second judgement."""

    channels: tuple[Channel, ...]
    domains: tuple[tuple[Domain, Label], ...]

    def covers(self, later: Standing) -> bool:
        """Say whether nothing came, or got another label."""
        return {*later.channels, *later.domains} <= {*self.channels, *self.domains}


class Fall(NamedTuple):
    """What a policy would end, each with the reason, and what it keeps with its labels."""

    channels: Mapping[Channel, str]
    domains: Mapping[Domain, str]
    kept: tuple[Channel, ...]
    labels: Mapping[Domain, Label]

    def of(self, standing: Standing) -> Fall:
        """Return what of it is still there."""
        channels, domains = set(standing.channels), {domain for domain, _ in standing.domains}
        return Fall(
            {c: why for c, why in self.channels.items() if c in channels},
            {d: why for d, why in self.domains.items() if d in domains},
            tuple(c for c in self.kept if c in channels),
            {d: label for d, label in self.labels.items() if d in domains},
        )


class Fallen(msgspec.Struct, frozen=True):
    """One thing that fell: a channel's number or a domain's name, and why."""

    what: int | str
    why: str


class Loaded(msgspec.Struct, frozen=True):
    """What a change of policy did, or would do: see `Monitor.load`."""

    record: int
    generation: int
    cut: tuple[Fallen, ...]
    evicted: tuple[Fallen, ...]
    kept: tuple[int, ...]


class EvictionNeeded(SkerryError):
    """A policy under which running domains can't stay; it did not come into force."""

    def __init__(self, evicted: tuple[Fallen, ...]) -> None:
        shown = "; ".join(f"{fallen.what}: {fallen.why}" for fallen in evicted)
        super().__init__(
            f"under this policy running domains can't stay: {shown}",
            fix="--evict stops them; or stop or relabel them first",
        )
        self.evicted = evicted


async def find_fall(candidate: Candidate, standing: Standing) -> Fall:
    """Judge everything that stands by a policy. Changes nothing, but what stands may meanwhile.

    Raises `StaleGeneration` or `DeciderUnavailable` where not everything could be judged.
    """
    await candidate.foresee(_questions(candidate, standing))
    labels: dict[Domain, Label] = {}
    evicted: dict[Domain, str] = {}
    for domain, label in standing.domains:
        await asyncio.sleep(0)  # others go on meanwhile
        try:
            new = candidate.carry(label)
            wall = await candidate.admit(new, tuple(labels.values()))
            if wall.allowed:
                labels[domain] = new
            else:
                evicted[domain] = _why(explain_for(wall, {"domain": new}).sentence)
        except UNDECIDED:
            raise
        except Exception as error:  # whatever else fails in deciding is a refusal
            evicted[domain] = _why(error)
    answers: dict[tuple[object, ...], str] = {}
    refused: dict[Channel, str] = {}
    for channel in standing.channels:
        if not labels.keys() >= set(channel.machines):
            refused[channel] = "one of its domains can't stay"
            continue

        def under(end: Domain) -> Label:
            return labels.get(end) or candidate.carry(end.label)

        try:
            parties = channel.parties(under, candidate.carry)
        except Denied as error:
            refused[channel] = _why(error)
            continue
        key = channel.hook, *parties.items()
        if key not in answers:
            await asyncio.sleep(0)
            answers[key] = await _refusal(candidate, channel.hook, parties)
        if answers[key]:
            refused[channel] = answers[key]
    kept = tuple(channel for channel in standing.channels if channel not in refused)
    return Fall(refused, evicted, kept, labels)


def _questions(candidate: Candidate, standing: Standing) -> set[tuple[str, Label, Label]]:
    """Return what will be asked about channels, each question once."""
    found, carry = set(), functools.cache(candidate.carry)
    for channel in standing.channels:
        with contextlib.suppress(Exception):  # said where it is judged
            source, sink = (carry(end.label) for end in channel.ends)
            found.add((channel.hook, source, sink))
    return found


async def _refusal(candidate: Candidate, hook: str, parties: Parties) -> str:
    """Return why a policy refuses a channel, nothing if it allows it."""
    try:
        verdict = await judge(candidate, hook, parties)
        if verdict.allowed:
            return ""
        explanation = explain_for(verdict, parties)
    except UNDECIDED:
        raise
    except Exception as error:
        return _why(error)
    return f"{_why(explanation.sentence)} [{explanation.code}]"


def _why(error: object) -> str:
    """Return a reason that is never empty, which would read as an allow."""
    words = error.message if isinstance(error, Denied) else str(error)
    return words[:500] or repr(error)[:500]
