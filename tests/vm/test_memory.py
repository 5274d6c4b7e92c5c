"""Memories between two real machines: what is written is seen, a reader reads, a cut takes away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from skerry.channel.memory import MemoryBridge, MemoryBridges
from skerry.channel.stream import StreamBridges
from skerry.machine.qemu import shared
from skerry.machine.qemu.machine import QemuMachine
from skerry.machine.suspect import Suspect
from skerry.wire import memory
from tests.support.machines import Host, descendants, sh
from tests.support.relays import BareRelays

SIZE = 1 << 20
WORD = "0xc0ffee"


class Memories:
    """Two jailed machines with slots, and the memories between them."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.relays = BareRelays()
        self.streams = StreamBridges(relay=self.relays.start)
        self.makers = MemoryBridges(self.streams)
        self.one, self.other = host.run(self._boot())

    async def _boot(self) -> tuple[QemuMachine, QemuMachine]:
        one, other = await asyncio.gather(
            self.host.boot("one", board="pc"), self.host.boot("other", board="pc")
        )
        return one, other

    async def attach(self, number: int, name: str, one_way: bool) -> MemoryBridge:
        """Do as the monitor does: both at once."""
        bridge = self.makers.mint(one_way, size=SIZE)
        await bridge.open(number)
        await asyncio.gather(
            *(
                machine.attach(number, "memory", name, bridge.ends[side], bridge.bells[side])
                for machine, side in ((self.one, "source"), (self.other, "sink"))
            )
        )
        bridge.handed_over()
        return bridge

    @contextlib.asynccontextmanager
    async def memory(self, number: int, name: str, one_way: bool) -> AsyncIterator[MemoryBridge]:
        """A memory that both guests show, and that both give up."""
        bridge = await self.attach(number, name, one_way)
        try:
            for machine in (self.one, self.other):
                await there(machine, name)
            yield bridge
        finally:
            await self.take(number, bridge)

    async def take(self, number: int, bridge: MemoryBridge) -> None:
        """Do as the monitor does."""
        bridge.cut()
        await asyncio.gather(self.one.detach(number), self.other.detach(number))


async def there(machine: QemuMachine, name: str) -> None:
    """Wait until a guest shows a memory."""
    code, said = await sh(
        machine, f"for i in $(seq 100); do [ -e /dev/skerry/{name} ] && exit; sleep 0.1; done; exit 1"
    )
    assert code == 0, said


async def poke(machine: QemuMachine, name: str, value: str, offset: int = 0) -> None:
    """Write a word in a guest."""
    place = f"$(($(cat /dev/skerry/{name}.address) + {offset}))"
    code, said = await sh(machine, f"devmem {place} 32 {value}")
    assert code == 0, said


async def peek(machine: QemuMachine, name: str, offset: int = 0) -> int:
    """Read a word in a guest."""
    place = f"$(($(cat /dev/skerry/{name}.address) + {offset}))"
    code, said = await sh(machine, f"devmem {place} 32")
    assert code == 0, said
    return int(said, 16)


@pytest.fixture(scope="module")
def pairs(host: Host) -> Iterator[Memories]:
    """Two machines that run."""
    made = Memories(host)
    yield made
    for machine in (made.one, made.other):
        machine.kill()
        host.run(asyncio.wait_for(asyncio.shield(machine.exited), 10))
    made.streams.close()


def test_what_one_guest_writes_the_other_reads(pairs: Memories) -> None:
    """A two-way memory carries both ways, at any place in it, and its doorbell rings both ways."""

    async def main() -> None:
        async with pairs.memory(1, "pool", False):
            for writer, reader, offset in (
                (pairs.one, pairs.other, 0),
                (pairs.other, pairs.one, SIZE - 4),
            ):
                await poke(writer, "pool", WORD, offset)
                assert await peek(reader, "pool", offset) == int(WORD, 16)
                waiting = asyncio.create_task(
                    sh(reader, "timeout 20 head -c 1 /dev/virtio-ports/pool.bell")
                )
                await sh(writer, "printf x > /dev/virtio-ports/pool.bell")
                assert (await waiting) == (0, "x")

    pairs.host.run(main())


def test_a_reader_can_only_read(pairs: Memories) -> None:
    """What the sink's guest writes into a one-way memory is nowhere; the source's is in both."""

    async def main() -> None:
        async with pairs.memory(2, "feed", True) as bridge:
            await poke(pairs.one, "feed", WORD)
            await poke(pairs.other, "feed", "0xbad")
            assert await peek(pairs.other, "feed") == await peek(pairs.one, "feed")
            assert os.pread(bridge.twins["memory"], 4, 0) == int(WORD, 16).to_bytes(4, "little")
            waiting = asyncio.create_task(
                sh(pairs.other, "timeout 20 head -c 1 /dev/virtio-ports/feed.bell")
            )
            await sh(pairs.one, "printf y > /dev/virtio-ports/feed.bell")
            assert (await waiting) == (0, "y")

    pairs.host.run(main())
