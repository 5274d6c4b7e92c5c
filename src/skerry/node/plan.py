"""What `up` would do: which domains start, which channels are bound, what is refused and why.

The rule: a plan asks the same modules with the same hooks as the monitor, each step as if those
before it had been done, and starts nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import msgspec

from skerry.label import Label
from skerry.monitor.mediate import SERVICES, Parties, exchanged, explain_for, judge
from skerry.monitor.protocols import Judge
from skerry.monitor.table import JOINED, hook_of
from skerry.node.setup import Setup
from skerry.policy.manager import PolicyManager
from skerry.system.model import ChannelSpec
from skerry.xsm.hooks import HOOKS
from skerry.xsm.request import Verdict


class Step(msgspec.Struct, frozen=True):
    """One step of a plan: what is done, of what, whether it is allowed, and why.

    `later` marks what waits for a `start` by hand.
    """

    action: str
    what: str
    allowed: bool = True
    code: str = ""
    why: str = ""
    text: str = ""
    later: bool = False


class Planner:
    """Judges the steps that ask. What is planned to run counts in the walls of what follows."""

    def __init__(
        self,
        policy: Judge,
        operator: Label,
        running: Iterable[Label] = (),
        touch: Callable[..., Awaitable[None]] | None = None,
    ) -> None:
        """Ask a policy for an operator; `touch` remembers what a step's labels would touch."""
        self._policy = policy
        self._operator = operator
        self._touch = touch
        self.running = list(running)
        self._joined: list[dict[str, Label]] = []

    async def start(self, name: str, label: Label, *, later: bool, action: str = "start") -> Step:
        """Judge the start of a domain, which then counts as running unless it comes later."""
        parties: Parties = {"operator": self._operator, "domain": label}
        asked = (
            await judge(self._policy, "domain_create", parties, tuple(sorted(self.running))),
            await judge(self._policy, "domain_unpause", parties),
        )
        step = _step(action, name, asked, parties, later=later)
        if step.allowed and not later:
            await self._touched(label)
            self.running.append(label)
        return step

    async def relabel(self, name: str, old: Label, new: Label) -> Step:
        """Judge the relabel of a running domain, which then counts under its new label."""
        beside = list(self.running)
        beside.remove(old)
        parties: Parties = {"operator": self._operator, "domain": old, "new": new}
        asked = await judge(self._policy, "domain_relabel", parties, tuple(sorted(beside)))
        step = _step("relabel", f"{name} from {old} to {new}", (asked,), parties, later=False)
        if step.allowed:
            self.running = [*beside, new]
        return step

    async def bind(self, channel: ChannelSpec, source: Label, sink: Label, *, later: bool) -> Step:
        """Judge a channel of the file, with all whom those before it join to its ends."""
        hook = hook_of(channel.kind, channel.one_way)
        joins = HOOKS[hook].admission == "bind"  # what comes over a resource is known once it runs
        group = {channel.source: source, channel.sink: sink}
        near = [each for each in self._joined if joins and each.keys() & group.keys()]
        for others in near:
            group |= others
        roles = enumerate(sorted(set(group.values()) - {source, sink}))
        parties = {"source": source, "sink": sink, **{f"{JOINED}{n}": each for n, each in roles}}
        asked = await judge(self._policy, hook, parties)
        step = _step("bind", words(channel), (asked,), parties, later=later)
        if step.allowed and not later:
            await self._touched(*exchanged(hook, parties))
            if joins:
                self._joined = [*(each for each in self._joined if each not in near), group]
        return step

    async def see(self, channel: ChannelSpec, end: Label) -> Step:
        """Judge whether the operator may see a domain at an end of a channel that he declares."""
        parties: Parties = {"operator": self._operator, "domain": end}
        asked = await judge(self._policy, "domain_getdomaininfo", parties)
        return _step("bind", words(channel), (asked,), parties, later=False)

    async def give(self, channel: ChannelSpec, domain: Label) -> Step:
        """Judge whether the operator may give a domain a resource."""
        parties: Parties = {"operator": self._operator, "domain": domain}
        asked = await judge(self._policy, "resource_attach", parties)
        return _step("bind", words(channel), (asked,), parties, later=False)

    async def service(self, name: str, setup: Setup) -> Step:
        """Say which domains may serve a name, and which of the others may be bound to them."""
        label = setup.names[name]
        domains = {domain: setup.labels[domain] for domain in setup.system.domains}
        servers = [domain for domain, own in domains.items() if own == label]
        asking = []
        for domain, own in domains.items():
            asked = await judge(self._policy, "channel_two_way", {"source": own, "sink": label})
            if asked.allowed and servers not in ([], [domain]):
                asking.append(domain)
        what = f"{name} by {', '.join(servers) or 'nobody'}"
        return Step("offer", f"{what}; may connect: {', '.join(asking) or 'nobody'}")

    async def _touched(self, *labels: Label) -> None:
        if self._touch is not None and labels:
            await self._touch(*labels)


async def make_plan(setup: Setup, manager: PolicyManager) -> list[Step]:
    """Return every step of `up` in its order.

    What a step would touch is remembered by the manager, whose history must not be the node's own.
    """
    planner = Planner(manager, setup.owner, touch=manager.touch)
    steps: list[Step] = []
    labels = {str(label): label for label in SERVICES}
    for name, spec in setup.system.services.items():  # as themselves, before all others
        own = labels[str(spec.label)]
        steps.append(await Planner(manager, own).start(name, own, later=False))
    started: set[str] = set(setup.system.resources)
    for name, domain in setup.system.domains.items():
        later = not domain.autostart
        steps.append(await planner.start(name, setup.labels[name], later=later))
        if steps[-1].allowed and domain.autostart:
            started.add(name)
    for channel in setup.system.channels:
        source, sink = setup.labels[channel.source], setup.labels[channel.sink]
        waits = not {channel.source, channel.sink} <= started
        steps.append(await planner.bind(channel, source, sink, later=waits))
    return [*steps, *[await planner.service(name, setup) for name in setup.names]]


def words(channel: ChannelSpec) -> str:
    """Write a channel of the file: `a ↔ b (orders)`, `a uses disk (disk)`."""
    if channel.kind not in ("stream", "link", "memory"):
        verb = "reads" if channel.one_way else "uses"
        return f"{channel.source} {verb} {channel.sink} ({channel.kind})"
    arrow = "→" if channel.one_way else "↔"
    return f"{channel.source} {arrow} {channel.sink} ({channel.name})"


def _step(
    action: str, what: str, verdicts: tuple[Verdict, ...], parties: Parties, *, later: bool
) -> Step:
    """Make a step of the verdicts that it needs: the first refusal says why."""
    deciding = next((v for v in verdicts if not v.allowed), verdicts[0])
    explanation = explain_for(deciding, parties)
    text = "" if deciding.allowed else explanation.text()
    return Step(action, what, deciding.allowed, explanation.code, explanation.sentence, text, later)
