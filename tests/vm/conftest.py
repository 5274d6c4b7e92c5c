"""What the tests with real machines share: one host, and one pair of running machines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from skerry.machine.qemu.machine import QemuMachine
from tests.support.machines import Host

Pair = tuple[QemuMachine, QemuMachine]


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """A supervisor, the minimal image and an event loop, for the whole run."""
    made = Host()
    yield made
    made.close()


@pytest.fixture(scope="session")
def pair(host: Host) -> Pair:
    """Two jailed machines for tests that leave them as they found them."""

    async def boot() -> Pair:
        one, other = await asyncio.gather(host.boot("alpha"), host.boot("beta"))
        return one, other

    return host.run(boot())
