"""Law 5 at the monitor: a source is not told of its sink's end; everything else cuts as ever."""

from __future__ import annotations

import asyncio
import os

import pytest

from skerry.channel.one_way import Relay
from skerry.errors import NotFound, StaleGeneration, StateError
from skerry.monitor.protocols import Overflow
from skerry.monitor.table import Phase
from skerry.xsm.dummy import DummyModule
from skerry.xsm.stack import Stack
from tests.support.monitor import World, label, play

LOW_HIGH = ("low", "high")


async def bound(world: World, *, one_way: bool = True) -> int:
    """Run both domains with a channel between them that carries a byte; return its number."""
    world.allow(LOW_HIGH)
    await world.run(*LOW_HIGH)
    channel = await world.monitor.bind(*LOW_HIGH, port="up", one_way=one_way)
    assert await arrives(world, channel.number)
    return channel.number


async def arrives(world: World, channel: int) -> bool:
    """Say whether a byte that the source writes comes out at the sink soon."""
    os.write(world.end("low", channel), b"x")
    sink = world.end("high", channel)
    os.set_blocking(sink, False)
    for _ in range(500):
        try:
            return os.read(sink, 1) == b"x"
        except BlockingIOError:
            await asyncio.sleep(0.01)
    return False


@pytest.mark.parametrize("how", ["dies", "is killed", "is stopped"])
def test_a_source_keeps_its_end_when_the_sink_ends(how: str) -> None:
    """It is not detached, and can still write; the channel stays listed, as stranded.

    The control: of a two-way channel it is told at once.
    """

    async def scene(world: World, *, one_way: bool) -> None:
        number = await bound(world, one_way=one_way)
        if how == "dies":
            world.machines["high"].die("crash")
        elif how == "is killed":
            world.monitor.kill("high")
        else:
            await world.monitor.stop("high", 1.0)
        await world.monitor.domain("high").gone.wait()
        await world.monitor.settle()
        assert ("detach" in world.machines["low"].calls) is not one_way
        if one_way:
            assert world.monitor.channels.get(number).stranded
            assert os.write(world.end("low", number), b"y") == 1
        else:
            with pytest.raises(NotFound):
                world.monitor.channels.get(number)

    for one_way in (True, False):
        play(lambda world, one_way=one_way: scene(world, one_way=one_way))  # type: ignore[misc]


def test_a_source_that_ends_takes_the_channel_with_it() -> None:
    """The sink is told: information may go that way."""

    async def scene(world: World) -> None:
        number = await bound(world)
        world.machines["low"].die("crash")
        await asyncio.sleep(0)
        await world.monitor.settle()
        with pytest.raises(NotFound):
            world.monitor.channels.get(number)
        assert "detach" in world.machines["high"].calls

    play(scene)


def test_a_stranded_channel_makes_room_for_the_next_sink() -> None:
    """The sink is started again and bound anew, on the same port of the source."""

    async def scene(world: World) -> None:
        number = await bound(world)
        world.monitor.kill("high")
        await world.monitor.domain("high").gone.wait()
        await world.run("high")
        with pytest.raises(StateError, match="already has a port"):
            await world.monitor.bind("high", "low", port="up")  # the control: not from that side
        again = await world.monitor.bind(*LOW_HIGH, port="up", one_way=True)
        assert again.number != number
        assert list(world.machines["low"].ends) == [again.number]
        assert await arrives(world, again.number)
        (cut,) = world.audit.events("cut")
        assert cut["channel"] == number

    play(scene)


def test_a_policy_ends_a_stranded_channel_and_a_live_one_that_it_refuses() -> None:
    """What the source keeps after its sink's end it keeps until the policy changes."""

    async def scene(world: World, *, stranded: bool, keep: bool) -> None:
        number = await bound(world)
        if stranded:
            world.monitor.kill("high")
            await world.monitor.domain("high").gone.wait()
        candidate = world.decider.candidate(Stack((DummyModule(),)))
        candidate.allowed = {frozenset(LOW_HIGH)} if keep else set()
        await world.monitor.load(
            "policy_load", world.operator, label("security"), candidate, {}, evict=True
        )
        left = [channel.number for channel in world.monitor.channels]
        assert left == ([number] if keep and not stranded else [])

    for stranded, keep in ((True, False), (True, True), (False, False), (False, True)):
        play(lambda world, s=stranded, k=keep: scene(world, stranded=s, keep=k))  # type: ignore[misc]


def test_a_cut_while_the_relay_starts_leaves_neither_end_nor_relay() -> None:
    """No machine gets an end, the bind fails, and what was started is ended."""

    async def scene(world: World) -> None:
        world.allow(LOW_HIGH)
        await world.run(*LOW_HIGH)
        start = world.relays.start

        async def cut_first(number: int, source: int, sink: int, overflow: Overflow) -> Relay:
            world.monitor.cut(number)
            return await start(number, source, sink, overflow)

        world.monitor._bridges["stream"]._relay = cut_first  # type: ignore[attr-defined]
        with pytest.raises(StaleGeneration):
            await world.monitor.bind(*LOW_HIGH, one_way=True)
        (relay,) = world.relays.started.values()
        assert await asyncio.wait_for(asyncio.shield(relay.exited), 5) != 0
        assert not world.machines["low"].ends
        assert not world.machines["high"].ends

    play(scene)


def test_a_sink_that_ends_while_it_is_bound_leaves_no_channel() -> None:
    """Only a channel that was live before outlives its sink."""

    async def scene(world: World) -> None:
        world.allow(LOW_HIGH)
        await world.run(*LOW_HIGH)
        start = world.relays.start

        async def kill_first(number: int, source: int, sink: int, overflow: Overflow) -> Relay:
            world.monitor.kill("high")
            return await start(number, source, sink, overflow)

        world.monitor._bridges["stream"]._relay = kill_first  # type: ignore[attr-defined]
        with pytest.raises(StateError):
            await world.monitor.bind(*LOW_HIGH, one_way=True)
        assert not len(world.monitor.channels)
        assert not world.machines["low"].ends

    play(scene)


def test_a_one_way_channel_asks_its_own_hook() -> None:
    """`channel_one_way`, and no other, with the overflow that was asked for on the channel."""

    async def scene(world: World) -> None:
        world.allow(LOW_HIGH)
        await world.run(*LOW_HIGH)
        world.decider.asked.clear()
        channel = await world.monitor.bind(*LOW_HIGH, one_way=True, overflow="drop")
        hooks = [hook for hook, parties in world.decider.asked if "source" in parties]
        assert hooks == ["channel_one_way"]
        assert (channel.phase, channel.overflow) == (Phase.LIVE, "drop")

    play(scene)
