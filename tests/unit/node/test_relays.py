"""What starts the helpers of channels keeps nothing of those that did not start."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from skerry.device.helper import Program
from skerry.errors import SupervisorError
from skerry.jail.confinement import Limits
from skerry.jail.identity import own
from skerry.node.helpers import Order
from skerry.node.relays import Relays

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
        self.toys: list[Toy] = []

    async def launch(self, order: Order) -> Toy:
        """Start one."""
        self.names.append(order.name)
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
