"""The graph of a system: its domains and resources, and which may send to which.

The rules this module keeps: each flow is asked as the monitor asks it, with the whole labels of
both ends, so user, role, level and constraints count; two domains whose labels may not run at the
same time exchange nothing. *Configured* are the channels of the file that the policy allows;
*possible* is every channel that an operator could bind between its domains under this policy, and
on request what comes with the labels that an operator could give them, and with operators who
carry words from one domain to another. Domains that the file does not name are not covered, but
for what they left: each label that is known to have written a resource (`Setup.written`) is a
source of it, whatever the file and the policy say by now. Where no domain has such a label any
more it stands there as `before:LABEL`: as a domain of which nothing comes out but what it wrote,
and into which may have come whatever the policy lets such a domain have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Literal

import msgspec

from skerry.errors import Denied
from skerry.flow.bits import members, union
from skerry.flow.claim import names_of
from skerry.flow.deadline import Deadline
from skerry.flow.graph import About, Graph
from skerry.label import Label
from skerry.monitor.table import hook_of
from skerry.node import meeting
from skerry.node.alike import Alike, Apart
from skerry.node.asking import Asker, PlainAsker
from skerry.node.relabels import Relabels
from skerry.node.setup import Setup
from skerry.system.model import LABEL, ChannelSpec
from skerry.xsm.acm.module import AcmModule

Extent = Literal["possible", "configured"]

CHANNELS = ("stream", "link", "memory")
"""The kinds of channels between two domains; the others are uses of a resource."""

BEFORE = "before:"
"""What a label that has written something is called with, where no domain has it any more."""

HISTORY = "history: "
"""How the reason of a flow begins that was there before, and stays in what was written."""

_DIRECTED = ("channel_two_way", "channel_one_way", "memory_read", "memory_both")


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


class Thing(msgspec.Struct, frozen=True):
    """A domain or resource under one label, an operator, or a label of `past` domains.

    Of resources only a disk is ever used to read alone. `console` is the label of a domain's
    console, where that has one of its own.
    """

    name: str
    label: Label
    kind: Literal["domain", "disk", "resource", "operator", "past"]
    console: Label | None = None


class SystemFlows:
    """Asks a system's policy what may flow between its domains and resources.

    With `relabels` a domain that operators may relabel stands there under each label that it can
    get, as `NAME@LABEL`; with `operators` each operator's label does, as `operator:LABEL`.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        relabels: bool = False,
        operators: bool = False,
        plainly: bool = False,
        deadline: Deadline | None = None,
    ) -> None:
        """Ask `plainly` for evidence: with the modules' whole decisions, not as the graph does.

        Raises `InputError` if the labels to be tried are too many.
        """
        self._setup = setup
        self._deadline = deadline
        self._plainly = plainly
        self._asker = (PlainAsker if plainly else Asker)(setup.stack)
        self._extra = (relabels, operators)
        self._relabels = Relabels(setup, self._asker) if relabels else None
        named = list(self._things(operators))
        self.things = [thing for _, thing in named]
        self.names = [name for name, _ in named]
        self._place = {name: number for number, name in enumerate(self.names)}
        self._wrote = self._written()

    def graph(self, extent: Extent = "possible") -> Graph:
        """Make the graph. Labels, and domains with several, are groups: all that have them.

        Raises `ValueError` for what is configured beside labels given later or operators.
        """
        if extent == "configured" and any(self._extra):
            raise ValueError("a system file configures neither relabels nor operators")
        rows = self._possible() if extent == "possible" else self._configured()
        stack = self._setup.stack
        meaning = [(name, thing.kind) for name, thing in zip(self.names, self.things, strict=True)]
        labels = [str(thing.label) for thing in self.things]
        channels = [msgspec.to_builtins(c) for c in self._setup.system.channels]
        wrote = [[one, two, sorted(map(str, held))] for (one, two), held in self._wrote.items()]
        parts = [meaning, labels, self._extra, channels if extent == "configured" else []]
        parts += [wrote] if wrote else []
        about = About(
            f"system-{extent}",
            {module.name: module.digest for module in stack.modules},
            system=hashlib.sha256(msgspec.json.encode(parts)).hexdigest(),
        )
        forgets = self._forgets() | self._remember(rows)
        return Graph(
            self.names,
            rows,
            groups=self._groups(),
            conflicts=self._conflicts(),
            forgets=forgets,
            about=about,
            reason=self.reasons if extent == "possible" else self.channels,
        )

    def configured(self) -> list[Configured]:
        """Return the file's channels and uses, each with the policy's answer."""
        labels = self._setup.labels
        found = []
        for channel in self._setup.system.channels:
            one, two = labels[channel.source], labels[channel.sink]
            allowed = self._asker.allowed(hook_of(channel.kind, channel.one_way), one, two)
            if channel.kind in CHANNELS:
                allowed = allowed and self._asker.together(one, two)
            found.append(Configured(channel, allowed))
        return found

    def evidence(self, configured: bool = False) -> list[tuple[int, int]]:
        """Return the flows as a checker of certificates takes them: from which set to which.

        What is possible is asked of labels, of whatever kind has them.
        """
        place = {name: 1 << number for number, name in enumerate(self.names)}
        before = [(place[one], place[two]) for one, two in self._wrote]
        if configured:
            ends = [(*one.ends, one.one_way) for one in self.configured() if one.allowed]
            back = [(place[two], place[one]) for one, two, one_way in ends if not one_way]
            return [*((place[one], place[two]) for one, two, _ in ends), *back, *before]
        alike: dict[tuple[Label, str, Label | None], list[int]] = {}
        states: dict[str, list[int]] = {}
        for number, thing in enumerate(self.things):
            alike.setdefault((thing.label, thing.kind, thing.console), []).append(number)
            states.setdefault(thing.name, []).append(number)
        heads = [self.things[held[0]] for held in alike.values()]
        sets = [sum(1 << number for number in held) for held in alike.values()]
        sides = [(thing.label, thing.kind) for thing in heads]
        rows = meeting.reached(
            self._setup.stack, sides, lambda one, two: self._sends(heads[one], heads[two])
        )
        found = []
        for senders, held, row in zip(sets, alike.values(), rows, strict=True):
            alone = len(sets) == len(self.things)
            reached = row if alone else sum(sets[place] for place in members(row))
            if self._relabels is None:
                found.append((senders, reached))
            for number in held if self._relabels else ():
                others = states[self.things[number].name]
                found.append((1 << number, self._onward(number, others, reached)))
        return [*found, *before]

    def _onward(self, number: int, states: Sequence[int], reached: int) -> int:
        """Return what a thing reaches; what it is itself under other labels, by a relabel alone."""
        one = self.things[number]
        for other in states:
            becomes = other != number and self._becomes(one, self.things[other])
            reached = reached & ~(1 << other) | becomes << other
        return reached

    def flows(self, source: str, sink: str) -> bool:
        """Tell whether the policy would let `source` send to `sink` by any channel or use.

        What it wrote before it has sent.
        """
        if (source, sink) in self._wrote:
            return True
        one, two = self._thing(source), self._thing(sink)
        return self._becomes(one, two) if one.name == two.name else self._sends(one, two)

    def reasons(self, source: str, sink: str) -> Sequence[str]:
        """Return by what the flow is possible, and why the policy allows that."""
        one, two = self._thing(source), self._thing(sink)
        if one.name == two.name:
            return ("possible as domain_relabel: what the domain holds goes on under the label",)
        hooks, parties = self._hooks(one, two), _parties(one, two)
        before = self._past_reasons(source, sink)
        if before and not hooks:
            return before
        console = (one.console or two.console) if "operator" in (one.kind, two.kind) else None
        found = dict.fromkeys(
            why for hook in hooks for why in self._asker.why(hook, *parties, console)
        )
        return (f"possible as {', '.join(hooks)}", *found, *before)

    def channels(self, source: str, sink: str) -> Sequence[str]:
        """Return the file's channels that make a flow, and why the policy allows them."""
        found = []
        for one in self.configured():
            ways = {one.ends} if one.one_way else {one.ends, one.ends[::-1]}
            if one.allowed and (source, sink) in ways:
                channel = one.channel
                hook = hook_of(channel.kind, channel.one_way)
                labels = self._setup.labels
                why = self._asker.why(hook, labels[channel.source], labels[channel.sink])
                found += [f"configured as {channel.kind} {channel.name}", *why]
        return [*found, *self._past_reasons(source, sink)]

    def _past_reasons(self, source: str, sink: str) -> list[str]:
        """Return which labels have made a flow before, and how a disk is rid of them."""
        labels = self._wrote.get((source, sink), ())
        until = f", until `skerry disk release {sink}`"
        end = until if labels and self._thing(sink).kind == "disk" else ""
        return [f"{HISTORY}the label {label} wrote {sink} before{end}" for label in labels]

    def _written(self) -> dict[tuple[str, str], list[Label]]:
        """Return who has written which resource, each with the labels under which it did.

        A label stands for every domain that has it. One that is called like a label is meant by it
        too: an assertion that names it may have been written of either.
        """
        named: dict[str, list[str]] = {}
        for name, thing in zip(self.names, self.things, strict=True):
            if thing.kind in ("domain", "past"):
                for text in {thing.name, str(thing.label)}:
                    named.setdefault(text, []).append(name)
        found: dict[tuple[str, str], list[Label]] = {}
        for resource in self._setup.system.resources:
            for label in sorted(self._setup.written.get(resource, ())):
                for writer in named[str(label)]:
                    found.setdefault((writer, resource), []).append(label)
        return found

    def _things(self, operators: bool) -> Iterator[tuple[str, Thing]]:
        setup = self._setup
        gone = {label for labels in setup.written.values() for label in labels}
        for one in setup.system.asserts:
            named = (named_label(setup, name) for name in source_names(setup, one.source))
            gone.update(filter(None, named))
        states = self._relabels.states() if self._relabels else {}
        for name in setup.system.domains:
            labels = states.get(name, [setup.labels[name]])
            gone.difference_update(labels)
            for label in labels:
                written = name if len(labels) == 1 else f"{name}@{label}"
                yield written, Thing(name, label, "domain", setup.consoles.get(name))
        for name in setup.system.resources:
            is_disk = setup.system.resources[name].kind == "disk"
            yield name, Thing(name, setup.labels[name], "disk" if is_disk else "resource")
        if operators:
            for label in sorted({setup.owner, *setup.operators.values()}):
                yield f"operator:{label}", Thing(f"operator:{label}", label, "operator")
        for label in sorted(gone):
            yield f"{BEFORE}{label}", Thing(f"{BEFORE}{label}", label, "past")

    def _thing(self, name: str) -> Thing:
        return self.things[self._place[name]]

    def _groups(self) -> dict[str, int]:
        """Return the sets that a name stands for; a label that is called as a domain does not."""
        groups: dict[str, int] = {}
        named = {thing.name for thing in self.things}
        for number, thing in enumerate(self.things):
            texts = {thing.name} | {str(thing.label)} - named
            if thing.kind in ("domain", "past"):
                texts.add(f"{LABEL}{thing.label}")
            if thing.kind == "operator":
                texts = {"operator"}
            for text in texts - self._place.keys():
                groups[text] = groups.get(text, 0) | 1 << number
        return groups

    def _becomes(self, one: Thing, two: Thing) -> bool:
        """Tell whether a domain may get from one of its labels to another at once."""
        relabels = self._relabels
        return relabels is not None and relabels.allowed(one.label, two.label)

    def _hooks(self, source: Thing, sink: Thing) -> list[str]:
        """Return the hooks by which one may send to the other."""
        if "operator" in (source.kind, sink.kind):
            return self._operated(source, sink)
        parties = _parties(source, sink)
        hooks = _hooks_between(source.kind, sink.kind)
        found = [hook for hook in hooks if self._asker.allowed(hook, *parties)]
        return found if found and self._beside(source, sink) else []

    def _sends(self, source: Thing, sink: Thing) -> bool:
        """Tell whether there is such a hook; no more are asked than up to the first."""
        if "operator" in (source.kind, sink.kind):
            return bool(self._operated(source, sink))
        parties = _parties(source, sink)
        hooks = _hooks_between(source.kind, sink.kind)
        allowed = any(self._asker.allowed(hook, *parties) for hook in hooks)
        return allowed and self._beside(source, sink)

    def _operated(self, source: Thing, sink: Thing) -> list[str]:
        reads = sink.kind == "operator"
        operator, domain = (sink, source) if reads else (source, sink)
        if domain.kind != "domain" and (reads or domain.kind != "past"):
            return []
        return self._asker.operated(operator.label, domain.label, domain.console, reads=reads)

    def _beside(self, source: Thing, sink: Thing) -> bool:
        both = {source.kind, sink.kind} <= {"domain", "past"}
        return not both or self._asker.together(source.label, sink.label)

    def _possible(self) -> list[int]:
        """Ask once for all pairs that the modules can't tell apart."""
        groups: dict[tuple[Label, str, Label | None], list[int]] = {}
        same: dict[str, int] = {}
        for number, thing in enumerate(self.things):
            console = thing.console if self._extra[1] else None
            groups.setdefault((thing.label, thing.kind, console), []).append(number)
            same[thing.name] = same.get(thing.name, 0) | 1 << number
        heads = [self.things[held[0]] for held in groups.values()]
        sets = [sum(1 << number for number in held) for held in groups.values()]
        stack, sides = self._setup.stack, [(thing.label, thing.kind) for thing in heads]
        alike = Apart(len(heads)) if self._plainly else Alike(stack, sides)
        answers: dict[Hashable, bool] = {}
        rows = [0] * len(self.things)
        for place, held in enumerate(groups.values()):
            if self._deadline:
                self._deadline.check()
            reached = 0
            for key, cell in alike.cells(place):
                if key not in answers:
                    other = heads[(cell & -cell).bit_length() - 1]
                    answers[key] = self._sends(heads[place], other)
                reached |= cell if answers[key] else 0
            row = reached if len(groups) == len(self.things) else union(sets, reached)
            for number in held:
                own = same[self.things[number].name]
                rows[number] = row & ~own | self._relabelled(number, own & ~(1 << number))
        return rows

    def _relabelled(self, number: int, others: int) -> int:
        one = self.things[number]
        return sum(1 << at for at in members(others) if self._becomes(one, self.things[at]))

    def _configured(self) -> list[int]:
        rows = [0] * len(self.names)
        for one in self.configured():
            source, sink = (self._place[name] for name in one.ends)
            if one.allowed:
                rows[source] |= 1 << sink
                rows[sink] |= 0 if one.one_way else 1 << source
        return rows

    def _remember(self, rows: list[int]) -> int:
        """Add what was written before, and return the resources that have it by that alone.

        What their writers had touched then, no wall of now need have been told.
        """
        found = 0
        for source, sink in self._wrote:
            one, two = self._place[source], 1 << self._place[sink]
            found |= two & ~rows[one]
            rows[one] |= two
        return found

    def _conflicts(self) -> list[list[int]]:
        """Return, for each conflict set with history, the domains that hold each of its types."""
        acm = next((m for m in self._setup.stack.modules if isinstance(m, AcmModule)), None)
        if acm is None:
            return []
        types = {label.name: frozenset(label.cw) for label in acm.policy.labels}
        domains = [
            (1 << number, types.get(thing.label.of(acm.name), frozenset()))
            for number, thing in enumerate(self.things)
            if thing.kind == "domain"
        ]
        return [
            [sum(bit for bit, held in domains if kind in held) for kind in sorted(set(one.types))]
            for one in acm.policy.conflicts
            if one.history
        ]

    def _forgets(self) -> int:
        """Return those of whom no history is kept: operators, and what lies beyond an uplink."""
        resources = self._setup.system.resources
        return sum(
            1 << number
            for number, thing in enumerate(self.things)
            if thing.kind == "operator"
            or (thing.kind == "resource" and resources[thing.name].kind == "uplink")
        )


def named_label(setup: Setup, source: str) -> Label | None:
    """Return the label that an assertion's source is, if it is one that the policy knows."""
    if not source.startswith(LABEL):
        return None
    try:
        return setup.stack.label(source.removeprefix(LABEL), "domain")
    except Denied:
        return None


def source_names(setup: Setup, source: str) -> tuple[str, ...]:
    """Return the names in an assertion's source; a label's text may hold commas itself."""
    if named_label(setup, source.strip()) is not None:
        return (source.strip(),)
    return names_of(source)


def _hooks_between(source: str, sink: str) -> Sequence[str]:
    """Return the hooks by which a thing of one kind could send to one of another."""
    if source == "past" != sink:
        return ()  # but for what it wrote, which is no question of the policy
    kinds = {"domain" if kind == "past" else kind for kind in (source, sink)}
    if "domain" not in kinds:
        return ()
    if source == "disk":
        return "resource_read", "resource_both"
    if kinds & {"disk", "resource"}:
        return ("resource_both",)
    return _DIRECTED


def _parties(source: Thing, sink: Thing) -> tuple[Label, Label]:
    """Return the labels in a hook's order: an operator comes first, a resource second."""
    turned = source.kind in ("disk", "resource") or sink.kind == "operator"
    return (sink.label, source.label) if turned else (source.label, sink.label)
