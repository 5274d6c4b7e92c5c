"""What starts the helpers of channels keeps nothing of those that did not start."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from skerry.device.disk import daemon
from skerry.device.helper import Program
from skerry.device.tpm.program import swtpm
from skerry.errors import SupervisorError
from skerry.jail.confinement import Limits
from skerry.jail.identity import own
from skerry.node.helpers import Order
from skerry.node.relays import LIMITS, Relays
from skerry.supervisor.client import Process
from tests.support.disks import disks

PROGRAM = Program(["/bin/true"], {}, "relay", Limits())


class Toy:
    """A process that runs until it is killed."""

    def __init__(self) -> None:
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        """End."""
        self.exited.set_result(-9)


class ToyHelpers:
    """Starts toys, or fails."""

    def __init__(self) -> None:
        self.fails = False
        self.names: list[str] = []
        self.limits: list[Limits] = []
        self.toys: list[Toy] = []

    async def launch(self, order: Order) -> Toy:
        """Start one."""
        self.names.append(order.name)
        self.limits.append(order.limits)
        if self.fails:
            raise SupervisorError("no")
        self.toys.append(Toy())
        return self.toys[-1]


def test_what_did_not_start_leaves_nothing() -> None:
    """A thousand channels whose helper fails are forgotten; one identity serves them all.

    A second helper that fails beside a first which runs is another: the names stay different.
    """

    async def run() -> None:
        helpers: Any = ToyHelpers()
        taken: list[str] = []

        def take(name: str) -> Any:
            taken.append(name)
            return own()

        relays = Relays(helpers, take)
        helpers.fails = True
        for channel in range(1000):
            with pytest.raises(SupervisorError):
                await relays.serve(channel, PROGRAM)
        assert relays._parts == {} and taken == ["relay"]
        helpers.fails, helpers.names = False, []
        await relays.serve(7, PROGRAM)
        helpers.fails = True
        with pytest.raises(SupervisorError):
            await relays.serve(7, PROGRAM)
        helpers.fails = False
        await relays.serve(7, PROGRAM)
        assert helpers.names == ["r/7", "r/7.2", "r/7.3"]
        for toy in helpers.toys:
            toy.kill()
        await asyncio.sleep(0)
        assert relays._parts == {}

    asyncio.run(run())


def test_what_works_for_one_domain_has_its_share_and_no_other_limit_changes() -> None:
    """Also where it makes something before the channel's own helper. The controls: what serves
    several, and a domain without a share."""

    async def run() -> None:
        helpers: Any = ToyHelpers()
        relays = Relays(helpers, lambda name: own())
        relays.share = {1: 20, 2: 0}.__getitem__
        limits = Limits(memory=4096, pids=3)
        one, several = (
            Program(["/bin/true"], {}, "relay", limits, as_domain=alone) for alone in (True, False)
        )
        for channel, program in ((1, one), (-1, one), (2, one), (1, several)):
            await relays.serve(channel, program)
        shares = [Limits(memory=4096, pids=3, cpu=cpu) for cpu in (20, 20, 0, 0)]
        assert helpers.limits == shares
        for toy in helpers.toys:
            toy.kill()
        await asyncio.sleep(0)

    asyncio.run(run())


def test_a_disks_daemon_and_a_tpm_work_for_one_domain_and_a_relay_does_not(tmp_path: Path) -> None:
    """So these have its share, as they are really started."""

    async def run() -> None:
        asked: list[tuple[int, int]] = []
        async with disks() as served:
            served.relays.share = lambda channel: 40 + channel
            launch = served.helpers.launch

            async def looked_at(order: Order) -> Process:
                asked.append((order.limits.cpu, order.limits.memory))
                return await launch(order)

            served.helpers.launch = looked_at  # type: ignore[method-assign]
            await served.use(served.maker(encrypted=True))
            read, write = os.pipe()
            relay = await served.relays.start(9, read, write, "drop")
            os.close(read)
            os.close(write)
            relay.process.kill()
            await relay.process.exited
        assert asked == [(41, daemon.LIMITS.memory), (0, LIMITS.memory)]

    asyncio.run(run())
    assert swtpm(tmp_path, tmp_path, 3, 4, 5).as_domain
