"""A change of policy that is judged by a manager in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from skerry.errors import DeciderUnavailable, SkerryError
from skerry.label import Label
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Decider
from skerry.monitor.revise import Loaded
from skerry.policy.history import MemoryHistory
from skerry.policy.manager import PolicyManager
from skerry.policy.source import Policy, Source, make_policy
from tests.support.monitor import World, carries
from tests.support.remote import managed, until
from tests.unit.policy.samples import TOML

BANKS = make_policy([Source("banks.toml", TOML.encode())])
NARROW = make_policy(
    [Source("n.toml", TOML.replace('ste = ["bank-a", "bank-b"]\n\n[res', "\n[res").encode())]
)
"""The broker shares with nobody any more."""


def label(name: str) -> Label:
    """Return an ACM label."""
    return Label((("acm", name),))


@asynccontextmanager
async def two(decider: Decider) -> AsyncIterator[World]:
    """Run a broker and a bank with two channels, one of which no policy here refuses."""
    world = World()
    world.monitor = Monitor(
        decider, world.audit, world.monitor._bridges, lambda: world.now, max_channels=10_000
    )
    world.operator = label("dom0")
    try:
        for name, text in (("broker", "broker"), ("one", "bank-a"), ("two", "bank-a")):
            await world.monitor.start(world.operator, name, label(text), world.maker(name))
            await world.monitor.resume(world.operator, name)
        for sink in ("broker", "two"):
            await world.monitor.bind("one", sink)
        yield world
    finally:
        world.close()
        await world.monitor.settle()


async def load(world: World, policy: Policy) -> Loaded:
    """Bring a policy into force."""
    candidate = world.monitor.mediator.decider.candidate(policy.stack, policy.sources)
    security = label("security")
    return await world.monitor.load("policy_load", world.operator, security, candidate, {})


def test_a_load_does_what_it_does_in_process() -> None:
    """The same channels fall, for the same reasons."""

    async def run() -> None:
        async with two(PolicyManager(BANKS.stack, MemoryHistory())) as world:
            near = await load(world, NARROW)
        async with managed(BANKS) as (manager, _), two(manager) as world:
            far = await load(world, NARROW)
            assert not carries(world, 1, "one", "broker")
            assert carries(world, 2, "one", "two")
            assert manager.generation == 2
        assert near == far
        assert len(far.cut) == len(far.kept) == 1

    asyncio.run(run())


def test_a_load_whose_manager_is_gone_changes_nothing() -> None:
    """It is denied, on record; every channel stays, and cutting works."""

    async def run() -> None:
        async with managed(BANKS) as (manager, host), two(manager) as world:
            candidate = manager.candidate(NARROW.stack, NARROW.sources)
            security = label("security")
            await manager.decide("policy_load", {"operator": world.operator, "security": security})
            host.broken = True
            host.processes[-1].kill()
            await until(lambda: manager.state == "lost")
            with pytest.raises(DeciderUnavailable):
                await world.monitor.load("policy_load", world.operator, security, candidate, {})
            assert manager.generation == 1
            assert carries(world, 1, "one", "broker")
            assert world.audit.events("deny")[-1]["why"]
            world.monitor.cut(1)
            assert not carries(world, 1, "one", "broker")

    asyncio.run(run())


def test_a_manager_lost_in_the_middle_of_a_load_cuts_nothing() -> None:
    """Between the judgement and the change it dies: the old policy stays in force."""

    async def run() -> None:
        async with managed(BANKS) as (manager, host), two(manager) as world:
            candidate = manager.candidate(NARROW.stack, NARROW.sources)
            foresee = candidate.foresee

            async def die(channels: object) -> None:
                await foresee({("channel_two_way", label("bank-a"), label("broker"))})
                host.processes[-1].kill()
                await until(lambda: manager.state == "lost")

            candidate.foresee = die  # type: ignore[method-assign]
            with pytest.raises(SkerryError):
                await world.monitor.load(
                    "policy_load", world.operator, label("security"), candidate, {}, evict=True
                )
            assert manager.generation == 1
            assert carries(world, 1, "one", "broker")

    asyncio.run(run())


def test_who_keeps_binding_cannot_hold_off_a_load() -> None:
    """What is known of two labels is not asked again, so the last judgement is one step."""

    async def run() -> None:
        async with managed(BANKS) as (manager, _), two(manager) as world:
            bound = 0

            async def keep_binding() -> None:
                nonlocal bound
                while True:
                    await world.monitor.bind("one", "broker")
                    bound += 1

            binding = [asyncio.ensure_future(keep_binding()) for _ in range(8)]
            await until(lambda: bound > 20)
            assert (await load(world, NARROW)).generation == 2
            ended = await asyncio.gather(*binding, return_exceptions=True)
            assert all(isinstance(error, SkerryError) for error in ended)
            assert [c.number for c in world.monitor.channels] == [2]

    asyncio.run(run())
