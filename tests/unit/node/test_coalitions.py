"""The node's switches at a relabel: judged before it, and only for who may relabel."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast

import msgspec
import pytest

from skerry.label import Label
from skerry.node.coalitions import Coalitions
from skerry.node.resources import Resources
from skerry.xsm.explain import Refused
from skerry.xsm.request import Verdict
from tests.support.monitor import World, label
from tests.support.switches import BareSwitches, add_switch


class Switches:
    """In the place of a node's resources."""

    def __init__(self, *made: object) -> None:
        self._made = made

    def made(self) -> tuple[object, ...]:
        """Return the makers of uses."""
        return self._made


@pytest.mark.parametrize("may", [True, False], ids=["control", "refused"])
def test_who_may_not_relabel_leaves_no_trace_in_the_walls(
    may: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a member would exchange as what it is not to be is not remembered, and all stay."""

    async def main() -> None:
        world, switches = World(), BareSwitches()
        uses = add_switch(world, "lan", switches)
        names = "a", "b", "c"
        world.allow(*((x, y) for x in names for y in (*names, "lan")))
        await world.run("a", "b")
        coalitions = Coalitions(world.monitor, cast(Resources, Switches(uses)))
        world.monitor.withdrawn = coalitions.withdrawn
        for name in ("a", "b"):
            await world.monitor.bind(name, "lan")
        world.decider.touched.clear()
        decide = world.decider.decide

        async def strict(hook: str, parties: Mapping[str, Label]) -> Verdict:
            verdict = await decide(hook, parties)
            refused = hook == "domain_relabel" and not may
            return msgspec.structs.replace(verdict, allowed=False) if refused else verdict

        monkeypatch.setattr(world.decider, "decide", strict)
        operator = world.operator
        try:
            async with coalitions.relabelling(operator, "a", label("c")):
                await world.monitor.relabel(operator, "a", label("c"))
        except Refused:
            assert not may
        assert (("c", "b") in world.decider.touched) is may
        assert {channel.source.name for channel in uses.coalition.members()} == {"a", "b"}
        assert world.monitor.domain("a").label == label("c" if may else "a")
        world.close()
        await world.monitor.settle()
        await switches.ended()
        uses.close()

    asyncio.run(main())


def test_a_relabel_that_nobody_judged_before_takes_the_member_off() -> None:
    """Also where every answer would have been yes."""

    async def main() -> None:
        world, switches = World(), BareSwitches()
        uses = add_switch(world, "lan", switches)
        names = "a", "b", "c"
        world.allow(*((x, y) for x in names for y in (*names, "lan")))
        await world.run("a", "b")
        world.monitor.withdrawn = Coalitions(
            world.monitor, cast(Resources, Switches(uses))
        ).withdrawn
        for name in ("a", "b"):
            await world.monitor.bind(name, "lan")
        await world.monitor.relabel(world.operator, "a", label("c"))
        assert {channel.source.name for channel in uses.coalition.members()} == {"b"}
        world.close()
        await world.monitor.settle()
        await switches.ended()
        uses.close()

    asyncio.run(main())
