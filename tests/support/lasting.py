"""Every state that channels which last can lead to: bind, cut, stop and start in any order.

A domain is called like its label. What it knows goes on with its label, as on a disk of its own,
and runs over whatever is live at every moment. Whoever has no channel is stopped, and is started
when it gets one: that leaves out no order of stops and starts, as a wall asks only who runs.

What is asked, and of whom, is the core's own: its channel table, its hooks and the module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from skerry.label import Label
from skerry.monitor.domain import Domain, Resource
from skerry.monitor.mediate import exchanged
from skerry.monitor.protocols import Kind
from skerry.monitor.table import MAX_CHANNELS, Channel, ChannelTable, Phase
from skerry.xsm.acm.module import RESOURCE_PREFIX, AcmModule
from skerry.xsm.module import Standing
from tests.support.resources import ToyUses


class Could(NamedTuple):
    """A channel that could be bound; a use of a resource names that as its sink."""

    source: str
    sink: str
    kind: Kind = "stream"
    one_way: bool = False


class State(NamedTuple):
    """Which channels are live, and what was touched, known (by whom of whom) and written."""

    live: frozenset[int] = frozenset()
    touched: frozenset[tuple[str, frozenset[str]]] = frozenset()
    knows: frozenset[tuple[str, str]] = frozenset()
    written: frozenset[tuple[str, str]] = frozenset()


class Lasting:
    """The states of one policy and of the channels that it lets be bound.

    `old`: as it was when an exchange counted only at its bind and only for its two ends.
    """

    def __init__(self, module: AcmModule, could: Sequence[Could], *, old: bool = False) -> None:
        self.module = module
        self._could = could
        self._old = old
        self._uses = ToyUses()
        self._asked: dict[tuple[object, ...], list[str]] = {}

    def states(self) -> Iterator[State]:
        """Yield every state that there can be."""
        begin = State(knows=frozenset((name, name) for name in self.module.labels()))
        seen, waiting = {begin}, [begin]
        while waiting:
            state = waiting.pop()
            yield state
            for number in range(len(self._could)):
                after = self._cut(state, number) or self._bound(state, number)
                if after is not None and after not in seen:
                    seen.add(after)
                    waiting.append(after)

    def meets(self, state: State) -> bool:
        """Say whether somebody knows two sides of a wall with history."""
        own = {label.name: set(label.cw) for label in self.module.policy.labels}
        held: dict[str, set[str]] = {}
        for who, whom in state.knows:
            held.setdefault(who, set()).update(own[whom])
        sets = [set(c.types) for c in self.module.policy.conflicts if c.history]
        return any(len(types & wall) > 1 for types in held.values() for wall in sets)

    def _cut(self, state: State, number: int) -> State | None:
        return state._replace(live=state.live - {number}) if number in state.live else None

    def _bound(self, state: State, number: int) -> State | None:
        sides = self._sides(state, number)
        touched = dict(state.touched)
        groups = [(sides[0], each) for each in sides[1:]] if self._old else [tuple(sides)]
        if not self._may_run(state, number) or not all(
            self.module.admit_bind(group, Standing((), touched)).allowed
            for group in groups
            if group
        ):
            return None
        for group in groups:
            touched |= self.module.touch(group, Standing((), touched))
        channel, live = self._could[number], state.live | {number}
        written = state.written
        if channel.kind == "disk" and not channel.one_way:
            written |= {(channel.sink, channel.source)}
        return State(live, frozenset(touched.items()), self._told(live, state.knows), written)

    def _sides(self, state: State, number: int) -> list[str]:
        """Return whom the monitor asks about."""
        key = state.live, state.written, number
        if key not in self._asked:
            self._asked[key] = self._ask_of(state, number)
        return self._asked[key]

    def _ask_of(self, state: State, number: int) -> list[str]:
        table = ChannelTable(MAX_CHANNELS, lambda: not self._old)
        things = {name: Domain(name, _label(name), 0.0) for name in self.module.labels()}
        for name in {each.sink for each in self._could if each.kind == "disk"}:
            things[name] = Resource(name, _label(RESOURCE_PREFIX + name), "disk", self._uses)
            things[name].written = frozenset(_label(w) for r, w in state.written if r == name)
        made = {}
        for each in (*state.live, number):
            could = self._could[each]
            ends = things[could.source], things[could.sink]
            made[each] = Channel(each, could.kind, *ends, f"ch{each}", could.one_way)
            made[each].phase = Phase.BINDING if each == number else Phase.LIVE
            table.enter(made[each])
        parties = table.parties(made[number])
        if self._old and made[number].writes:  # who read it then was asked about too
            reading = (c for c in table.of(made[number].sink) if c.one_way)
            parties |= {f"joined{c.number}": c.source.label for c in reading}
        return [label.of("acm") for label in exchanged(made[number].hook, parties)]

    def _may_run(self, state: State, number: int) -> bool:
        domains = set(self.module.labels())
        ends = {end for each in (*state.live, number) for end in self._could[each][:2]} & domains
        touched = dict(state.touched)
        return all(
            self.module.admit(each, Standing(tuple(ends - {each}), touched)).allowed
            for each in ends
        )

    def _told(
        self, live: frozenset[int], knows: frozenset[tuple[str, str]]
    ) -> frozenset[tuple[str, str]]:
        held: dict[str, set[str]] = {}
        for who, whom in knows:
            held.setdefault(who, set()).add(whom)
        ways = [way for number in live for way in _ways(self._could[number])]
        while any(held.get(one, set()) - held.get(two, set()) for one, two in ways):
            for one, two in ways:
                held.setdefault(two, set()).update(held.get(one, ()))
        return frozenset((who, whom) for who, known in held.items() for whom in known)


def _ways(could: Could) -> list[tuple[str, str]]:
    """Return in which directions information goes over it."""
    there, back = (could.source, could.sink), (could.sink, could.source)
    if not could.one_way:
        return [there, back]
    return [back] if could.kind == "disk" else [there]


def _label(text: str) -> Label:
    return Label((("acm", text),))
