"""What `up` would do: which domains start, which channels are bound, what is refused and why.

The plan asks the same modules with the same hooks as the monitor, in the order of the file, and
starts nothing.
"""

from __future__ import annotations

import msgspec

from skerry.label import Label
from skerry.monitor.mediate import Parties, explain_for
from skerry.monitor.table import hook_of
from skerry.node.setup import Setup
from skerry.policy.manager import PolicyManager
from skerry.xsm.request import Verdict


class Step(msgspec.Struct, frozen=True):
    """One step of a plan: `start` or `bind`, of what, whether it is allowed, and why."""

    action: str
    what: str
    allowed: bool
    code: str
    why: str
    text: str = ""
    later: bool = False


async def make_plan(setup: Setup, manager: PolicyManager) -> list[Step]:
    """Return every step of `up` in its order. `later` marks what waits for a `start` by hand.

    What a step would touch is remembered by the manager, whose history must not be the node's own.
    """
    steps: list[Step] = []
    running: list[Label] = []
    started: set[str] = set()
    for name, domain in setup.system.domains.items():
        label = setup.labels[name]
        parties: Parties = {"operator": setup.owner, "domain": label}
        verdict = await manager.decide("domain_create", parties)
        wall = await manager.admit(label, tuple(running))
        run = await manager.decide("domain_unpause", parties)
        asked = verdict, wall, run
        steps.append(_step("start", name, asked, parties, later=not domain.autostart))
        if steps[-1].allowed and domain.autostart:
            await manager.touch(label, label)
            running.append(label)
            started.add(name)
    for channel in setup.system.channels:
        parties = {"source": setup.labels[channel.source], "sink": setup.labels[channel.sink]}
        verdict = await manager.decide(hook_of(channel.kind, channel.one_way), parties)
        wall = await manager.admit_bind(parties["source"], parties["sink"])
        arrow = "→" if channel.one_way else "↔"
        what = f"{channel.source} {arrow} {channel.sink} ({channel.name})"
        waits = not {channel.source, channel.sink} <= started
        steps.append(_step("bind", what, (verdict, wall), parties, later=waits))
        if steps[-1].allowed and not waits:
            await manager.touch(parties["source"], parties["sink"])
    return steps


def _step(
    action: str, what: str, verdicts: tuple[Verdict, ...], parties: Parties, *, later: bool
) -> Step:
    """Make a step of the verdicts that it needs: the first refusal says why."""
    deciding = next((v for v in verdicts if not v.allowed), verdicts[0])
    explanation = explain_for(deciding, parties)
    text = "" if deciding.allowed else explanation.text()
    return Step(action, what, deciding.allowed, explanation.code, explanation.sentence, text, later)
