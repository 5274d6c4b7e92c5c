"""The graph of a system: its domains and resources, and which may send to which.

The rules this module keeps: each flow is asked as the monitor asks it, with the whole labels of
both ends, so user, role, level and constraints count; two domains whose labels may not run at the
same time exchange nothing. *Configured* are the channels of the file that the policy allows;
*possible* is every channel that an operator could bind between its domains under this policy.
Labels given later (`relabel`) and domains that the file does not name are not covered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import msgspec

from skerry.errors import Denied
from skerry.flow.graph import About, Graph
from skerry.label import Label
from skerry.monitor.table import hook_of
from skerry.node.setup import Setup
from skerry.system.model import ChannelSpec
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.hooks import HOOKS, expand
from skerry.xsm.request import Request

Extent = Literal["possible", "configured"]

_DIRECTED = ("channel_two_way", "channel_one_way", "memory_read", "memory_both")
CHANNELS = ("stream", "link", "memory")
"""The kinds of channels between two domains; the others are uses of a resource."""


class Configured(msgspec.Struct, frozen=True):
    """A channel of the file, or a use of a resource, and whether the policy allows it."""

    channel: ChannelSpec
    allowed: bool

    @property
    def one_way(self) -> bool:
        """Whether information flows one way only; of a resource that is read: to the domain."""
        return self.channel.one_way

    @property
    def ends(self) -> tuple[str, str]:
        """The end that always sends, and the other."""
        source, sink = self.channel.source, self.channel.sink
        reads = self.channel.kind not in CHANNELS and self.channel.one_way
        return (sink, source) if reads else (source, sink)


class SystemFlows:
    """Asks a system's policy what may flow between its domains and resources."""

    def __init__(self, setup: Setup) -> None:
        self.names = [*setup.system.domains, *setup.system.resources]
        self._setup = setup
        self._resources = setup.system.resources
        self._answers: dict[tuple[str, Label, Label], bool] = {}
        self._together: dict[tuple[Label, Label], bool] = {}

    def graph(self, extent: Extent = "possible") -> Graph:
        """Make the graph. Its groups are the labels: each stands for all that have it."""
        rows = self._possible() if extent == "possible" else self._configured()
        groups: dict[str, int] = {}
        for number, name in enumerate(self.names):
            text = str(self._setup.labels[name])
            if text not in self.names:
                groups[text] = groups.get(text, 0) | 1 << number
        stack = self._setup.stack
        meaning = [(n, str(self._setup.labels[n]), n in self._resources) for n in self.names]
        channels = [msgspec.to_builtins(c) for c in self._setup.system.channels]
        parts = [meaning, channels if extent == "configured" else []]
        about = About(
            f"system-{extent}",
            {module.name: module.digest for module in stack.modules},
            system=hashlib.sha256(msgspec.json.encode(parts)).hexdigest(),
        )
        reason = self.reasons if extent == "possible" else self.channels
        conflicts = self._conflicts()
        return Graph(
            self.names, rows, groups=groups, conflicts=conflicts, about=about, reason=reason
        )

    def configured(self) -> list[Configured]:
        """Return the file's channels and uses, each with the policy's answer."""
        labels = self._setup.labels
        found = []
        for channel in self._setup.system.channels:
            one, two = labels[channel.source], labels[channel.sink]
            allowed = self._allowed(hook_of(channel.kind, channel.one_way), one, two)
            if channel.kind in CHANNELS:
                allowed = allowed and self._run_together(one, two)
            found.append(Configured(channel, allowed))
        return found

    def evidence(self, configured: bool = False) -> list[tuple[int, int]]:
        """Return the flows as a checker of certificates takes them, each pair asked by itself."""
        place = {name: 1 << number for number, name in enumerate(self.names)}
        if configured:
            ends = [(*one.ends, one.one_way) for one in self.configured() if one.allowed]
            back = [(place[two], place[one]) for one, two, one_way in ends if not one_way]
            return [*((place[one], place[two]) for one, two, _ in ends), *back]
        pairs = ((one, two) for one in self.names for two in self.names if one != two)
        return [(place[one], place[two]) for one, two in pairs if self.flows(one, two)]

    def flows(self, source: str, sink: str) -> bool:
        """Tell whether the policy would let `source` send to `sink` by any channel or use."""
        return bool(self._hooks(source, sink))

    def reasons(self, source: str, sink: str) -> Sequence[str]:
        """Return by what the flow is possible, and why the policy allows that."""
        hooks = self._hooks(source, sink)
        parties = self._parties(source, sink)
        found = dict.fromkeys(why for hook in hooks for why in self._why(hook, *parties))
        return (f"possible as {', '.join(hooks)}", *found)

    def channels(self, source: str, sink: str) -> Sequence[str]:
        """Return the file's channels that make a flow, and why the policy allows them."""
        found = []
        for one in self.configured():
            ways = {one.ends} if one.one_way else {one.ends, one.ends[::-1]}
            if one.allowed and (source, sink) in ways:
                channel = one.channel
                hook = hook_of(channel.kind, channel.one_way)
                labels = self._setup.labels
                why = self._why(hook, labels[channel.source], labels[channel.sink])
                found += [f"configured as {channel.kind} {channel.name}", *why]
        return found

    def _hooks(self, source: str, sink: str) -> list[str]:
        one, two = self._parties(source, sink)
        if source in self._resources and sink in self._resources:
            return []
        if sink in self._resources:
            hooks: Sequence[str] = ("resource_both",)
        elif source in self._resources:
            hooks = ("resource_read", "resource_both")
        elif not self._run_together(one, two):
            return []
        else:
            hooks = _DIRECTED
        return [hook for hook in hooks if self._allowed(hook, one, two)]

    def _parties(self, source: str, sink: str) -> tuple[Label, Label]:
        """Return the labels as a hook's source and sink: a resource is always the sink."""
        labels = self._setup.labels
        if source in self._resources:
            source, sink = sink, source
        return labels[source], labels[sink]

    def _possible(self) -> list[int]:
        """Ask once for all that have the same label and are of the same sort."""
        groups: dict[tuple[Label, bool], list[int]] = {}
        for number, name in enumerate(self.names):
            key = self._setup.labels[name], name in self._resources
            groups.setdefault(key, []).append(number)
        sets = {key: sum(1 << number for number in held) for key, held in groups.items()}
        rows = [0] * len(self.names)
        for held in groups.values():
            source = self.names[held[0]]
            row = 0
            for key, others in groups.items():
                if self.flows(source, self.names[others[-1]]):
                    row |= sets[key]
            for number in held:
                rows[number] = row & ~(1 << number)
        return rows

    def _configured(self) -> list[int]:
        place = {name: number for number, name in enumerate(self.names)}
        rows = [0] * len(self.names)
        for one in self.configured():
            source, sink = (place[name] for name in one.ends)
            if one.allowed:
                rows[source] |= 1 << sink
                rows[sink] |= 0 if one.one_way else 1 << source
        return rows

    def _conflicts(self) -> list[list[int]]:
        """Return, for each conflict set with history, the domains that hold each of its types."""
        acm = next((m for m in self._setup.stack.modules if isinstance(m, AcmModule)), None)
        if acm is None:
            return []
        types = {label.name: frozenset(label.cw) for label in acm.policy.labels}
        domains = [
            (1 << number, types.get(self._setup.labels[name].of(acm.name), frozenset()))
            for number, name in enumerate(self.names)
            if name not in self._resources
        ]
        return [
            [sum(bit for bit, held in domains if kind in held) for kind in sorted(set(one.types))]
            for one in acm.policy.conflicts
            if one.history
        ]

    def _run_together(self, one: Label, two: Label) -> bool:
        """Tell whether the walls let two domains run at once and exchange, given no history."""
        key = (one, two) if one <= two else (two, one)
        if key not in self._together:
            stack = self._setup.stack
            beside = any(
                all(answer.allowed for answer in stack.admit(new, (old,)))
                for new, old in (key, key[::-1])
            )
            exchange = all(answer.allowed for answer in stack.admit_bind(*key))
            self._together[key] = beside and exchange
        return self._together[key]

    def _allowed(self, hook: str, one: Label, two: Label) -> bool:
        key = hook, one, two
        if key not in self._answers:
            stack = self._setup.stack
            asked = self._requests(*key)
            answers = (stack.decide(request, 0).allowed for request in asked)
            self._answers[key] = bool(asked) and all(answers)
        return self._answers[key]

    def _requests(self, hook: str, one: Label, two: Label) -> tuple[Request, ...]:
        try:
            return expand(HOOKS[hook], {"source": one, "sink": two}, self._setup.stack.transition)
        except Denied:  # what the channel would be made of has no label, so it can't be made
            return ()

    def _why(self, hook: str, one: Label, two: Label) -> list[str]:
        """Return the reasons of the answers between the two, the ends of channels left aside."""
        found: dict[str, None] = {}
        for request in self._requests(hook, one, two):
            if one != two and request.subject == request.target:
                continue
            for answer in self._setup.stack.decide(request, 0).answers:
                where = f" ({answer.rule.file}:{answer.rule.line})" if answer.rule.line else ""
                found[answer.reason + where] = None
        return list(found)
