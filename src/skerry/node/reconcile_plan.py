"""Judges a difference before anything of it is done: the plan that `up` shows first.

The rule: each step is judged as if those before it were done, by the policy that will be in force
then; nothing is changed or recorded. What the steps would add to the history of a Chinese Wall is
not counted, so a step that is planned as allowed may yet be refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from skerry.label import Label
from skerry.monitor.protocols import Judge
from skerry.monitor.revise import Fall, Fallen, Standing, find_fall
from skerry.monitor.table import Phase
from skerry.node.difference import Difference
from skerry.node.node import Node
from skerry.node.plan import Planner, Step, words
from skerry.node.setup import Setup, carry
from skerry.system.model import ChannelSpec


class Plan(msgspec.Struct, frozen=True):
    """The steps, and of them what is not tried or will be refused.

    `evicted`: domains that the policy can't keep. `unmoved`: restarts that would end in a refused
    start, so that the domain is left as it is. `kept`: domains that so, or because their relabel is
    refused, keep the label that they have, as the new policy calls it. `hidden`: channels that the
    caller may not declare, because he may not see both their domains. `define`: domains whose new
    definition no allowed step stands for, so that it is asked for as the owner's.
    """

    steps: tuple[Step, ...]
    evicted: tuple[Fallen, ...]
    unmoved: Mapping[str, Step]
    kept: Mapping[str, Label]
    hidden: Mapping[ChannelSpec, Step]
    define: tuple[str, ...]


async def plan_difference(node: Node, uid: int, wanted: Setup, difference: Difference) -> Plan:
    """Return the plan of an operator's change of what a node runs."""
    decider = node.monitor.mediator.decider
    policy: Judge = (
        decider.candidate(wanted.stack, wanted.policy.sources) if difference.policy else decider
    )
    fall = await _fall(node, wanted, difference)
    planner = Planner(policy, wanted.operators[uid], fall.labels.values())
    steps = _without_question(difference, fall)
    labels = {domain.name: label for domain, label in fall.labels.items()}
    refused: set[str] = set()
    kept: dict[str, Label] = {}
    for name, new in difference.relabel.items():
        if name in labels:
            step = await planner.relabel(name, labels[name], new)
            steps.append(step)
            if step.allowed:
                labels[name] = new
                steps += await _cut_by(planner, name, labels, fall)
            else:
                refused.add(name)
                kept[name] = labels[name]
    unmoved: dict[str, Step] = {}
    for name in difference.start:
        step = await planner.start(name, wanted.labels[name], later=False)
        if name in difference.restart:
            step = msgspec.structs.replace(step, action="restart")
            if step.allowed:
                step = Step("restart", name, why=difference.restart[name])
            old = carry(wanted.stack, node.monitor.domain(name).label, node.setup.stack)
            if not step.allowed and old is not None:
                unmoved[name], kept[name] = step, old
                planner.running.append(old)
        steps.append(step)
        if not step.allowed:
            refused.add(name)
    hidden: dict[ChannelSpec, Step] = {}
    bound = set(difference.bind)
    for spec in dict.fromkeys((*difference.add, *difference.bind)):
        ends = wanted.labels[spec.source], wanted.labels[spec.sink]
        step = await planner.bind(spec, *ends, later=spec not in bound)
        if spec in difference.add:
            for role, end in zip((spec.source, spec.sink), ends, strict=True):
                if role in wanted.system.resources:
                    seen = await planner.give(spec, ends[0])
                else:
                    seen = await planner.see(spec, end)
                if not seen.allowed:
                    step = hidden[spec] = seen
        steps.append(step)
    evicted = tuple(Fallen(domain.name, why) for domain, why in fall.domains.items())
    unbacked = {*difference.define, *(refused - unmoved.keys())}
    define = tuple(name for name in difference.redefined if name in unbacked)
    return Plan(tuple(steps), evicted, unmoved, kept, hidden, define)


async def _cut_by(
    planner: Planner, name: str, labels: Mapping[str, Label], fall: Fall
) -> list[Step]:
    """Return the cuts of the channels that a domain may not have under its new label."""
    steps = []
    for channel in fall.kept:
        ends = channel.source.name, channel.sink.name
        if name in ends:
            spec = ChannelSpec(channel.kind, *ends, channel.port, channel.one_way, channel.overflow)
            source, sink = (labels.get(end.name, end.label) for end in channel.ends)
            asked = await planner.bind(spec, source, sink, later=True)
            if not asked.allowed:
                what = f"channel {channel.number}: {words(spec)}"
                steps.append(Step("cut", what, code=asked.code, why=asked.why))
    return steps


async def _fall(node: Node, wanted: Setup, difference: Difference) -> Fall:
    """Return what the policy ends of what the file leaves standing, and the labels that stay."""
    monitor = node.monitor
    ending = {*difference.remove, *difference.restart}
    domains = sorted(monitor.domains.values(), key=lambda domain: domain.started)
    standing = Standing(
        tuple(
            channel
            for channel in monitor.channels
            if channel.phase is Phase.LIVE
            and channel.number not in difference.cut
            and not {channel.source.name, channel.sink.name} & ending
        ),
        tuple((d, d.label) for d in domains if d.admitted and d.name not in ending),
    )
    if not difference.policy:
        return Fall({}, {}, standing.channels, dict(standing.domains))
    candidate = monitor.mediator.decider.candidate(wanted.stack, wanted.policy.sources)
    return await find_fall(candidate, standing)


def _without_question(difference: Difference, fall: Fall) -> list[Step]:
    """Return the steps that ask nobody here: what takes away, and what was asked as a whole."""
    return [
        *(Step("cut", f"channel {n}: {words(c)}") for n, c in difference.cut.items()),
        *(Step("remove", f"channel {words(channel)}") for channel in difference.forget),
        *(Step("remove", name) for name in difference.remove),
        *([Step("load", "the policy")] if difference.policy else []),
        *(
            Step("cut", f"channel {channel.number}", why=why)
            for channel, why in fall.channels.items()
        ),
        *(Step("stop", domain.name, why=why) for domain, why in fall.domains.items()),
        *(Step("change", setting) for setting in difference.settings),
        *(Step("define", name) for name in difference.define),
    ]
