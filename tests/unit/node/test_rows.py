"""What `skerry channels` says of a channel: what its bridge runs with, not what was asked for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from skerry.channel.memory import MemoryBridges
from skerry.channel.one_way import BACK_BITS_S
from skerry.channel.stream import StreamBridges
from skerry.monitor.domain import Domain, Resource
from skerry.monitor.protocols import Bridge, Kind, Overflow
from skerry.monitor.table import Channel
from skerry.node.bridges import AllBridges
from skerry.node.resources import Resources
from skerry.node.rows import channel_row
from skerry.node.standing import ChannelEntry
from tests.support.monitor import label
from tests.support.relays import BareRelays
from tests.support.resources import ToyUse, ToyUses

SIZE = 1 << 16


def said(kind: Kind, bridge: Bridge, sink: Domain | None = None) -> tuple[object, object]:
    """Return setting and rate of a one-way channel that was asked for without a setting."""
    ends = Domain("a", label("a"), 0), sink or Domain("b", label("b"), 0)
    channel = Channel(1, kind, *ends, "port", one_way=True)
    channel.bridge = bridge
    row = channel_row(channel, 0.0)
    return row["overflow"], row["back_bits_s"]


def play(scene: Callable[[StreamBridges, BareRelays], Awaitable[None]]) -> None:
    """Play a scene and wait until its relays have ended."""

    async def main() -> None:
        relays = BareRelays()
        streams = StreamBridges(relay=relays.start)
        await scene(streams, relays)
        await relays.ended()
        streams.close()

    asyncio.run(main())


def test_a_one_way_memory_says_what_its_doorbells_relay_runs_with() -> None:
    """It drops, whatever was asked for, so nothing goes back; a two-way one has no relay."""

    async def scene(streams: StreamBridges, relays: BareRelays) -> None:
        bridge = MemoryBridges(streams).mint(True, "block", size=SIZE)
        assert said("memory", bridge) == ("drop", 0)
        bridge.cut()
        both = MemoryBridges(streams).mint(False, size=SIZE)
        assert both.overflow is None
        both.cut()

    play(scene)


@pytest.mark.parametrize("overflow", ["block", "drop"])
def test_a_one_way_stream_says_its_own(overflow: Overflow) -> None:
    """The control: what was asked for is what runs, and only `block` has a rate."""

    async def scene(streams: StreamBridges, relays: BareRelays) -> None:
        bridge = streams.mint(True, overflow)
        assert said("stream", bridge) == (overflow, BACK_BITS_S[overflow])
        bridge.cut()

    play(scene)


def test_what_only_reads_a_resource_has_neither() -> None:
    """There is no relay, and nobody whom the reading could keep waiting."""
    use = ToyUse()
    disk = Resource("d", label("d"), "disk", ToyUses())
    assert said("disk", use, disk) == (None, None)
    use.cut()


@pytest.mark.parametrize("overflow", ["block", "drop"])
@pytest.mark.parametrize("kind", ["stream", "memory"])
def test_the_next_node_says_the_same(kind: Kind, overflow: Overflow) -> None:
    """A bridge that is adopted knows with what its relay was started."""

    async def scene(streams: StreamBridges, relays: BareRelays) -> None:
        size = SIZE if kind == "memory" else 0
        made = MemoryBridges(streams) if size else streams
        bridge = made.mint(True, overflow, size=size)
        await bridge.open(1)
        before = said(kind, bridge)
        entry = ChannelEntry(1, kind, "a", "b", "p", True, 1, 1, 0.0, overflow=overflow, size=size)
        kept = {name: os.dup(fd) for name, fd in bridge.twins.items()}
        next_life = AllBridges(StreamBridges(), Resources({}))
        adopted = next_life.adopt(kept, relays.started[1], entry)
        assert adopted is not None
        assert said(kind, adopted) == before
        adopted.cut()
        bridge.cut()

    play(scene)
