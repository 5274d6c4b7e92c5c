"""Memories between two real machines: what is written is seen, a reader reads, a cut takes away."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from skerry.channel.memory import MemoryBridge, MemoryBridges
from skerry.channel.stream import StreamBridges
from skerry.errors import LimitReached, MachineError
from skerry.machine.qemu import shared
from skerry.machine.qemu.machine import QemuMachine
from skerry.machine.suspect import Suspect
from skerry.monitor.protocols import Side
from skerry.wire import memory
from skerry.wire.memory import Identity
from tests.support.machines import Host, descendants, sh
from tests.support.relays import BareRelays

SIZE = 1 << 20
WORD = "0xc0ffee"

LEFT = """
for i in $(seq 100); do
    left=$(ls /dev/skerry; grep -l 0x1110 /sys/bus/pci/devices/*/device)
    [ -z "$left" ] && exit
    sleep 0.1
done
echo "$left"
"""
"""Prints what a guest still shows of memories when it has had its time."""


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
        try:
            await asyncio.gather(
                give(self.one, number, name, bridge, "source"),
                give(self.other, number, name, bridge, "sink"),
            )
        except BaseException:
            bridge.cut()
            raise
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


async def give(
    machine: QemuMachine, number: int, name: str, bridge: MemoryBridge, side: Side
) -> None:
    """Attach one end."""
    await machine.attach(number, "memory", name, bridge.ends[side], bridge.bells[side])


def held(machine: QemuMachine) -> frozenset[Identity]:
    """Return the memories that a QEMU holds, as seen from outside."""
    process = machine._process
    assert process is not None
    with Suspect(process.pid, process.pidfd) as suspect:
        try:
            suspect.freeze()
            return suspect.held()
        finally:
            suspect.thaw()


def descriptors(machine: QemuMachine) -> set[str]:
    """Return what a QEMU has open."""
    return {
        f"{file.name}:{file.readlink()}"
        for pid in descendants(machine.pid)
        for file in Path(f"/proc/{pid}/fd").iterdir()
    }


def open_here() -> int:
    """Count this process's descriptors."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def there(machine: QemuMachine, name: str) -> None:
    """Wait until a guest shows a memory."""
    code, said = await sh(
        machine,
        f"for i in $(seq 100); do [ -e /dev/skerry/{name} ] && exit; sleep 0.1; done; exit 1",
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


def test_a_reader_gets_its_memory_when_it_is_closed_to_it(pairs: Memories) -> None:
    """The sink's QEMU has nothing before the writer has mapped it; then all reasons stand."""

    async def main() -> None:
        bridge = pairs.makers.mint(True, size=SIZE)
        await bridge.open(3)
        file = bridge.twins["memory"]
        sink = asyncio.create_task(give(pairs.other, 3, "late", bridge, "sink"))
        await asyncio.sleep(0.3)
        assert not held(pairs.other) and not sink.done() and not memory.is_closed(file)
        await give(pairs.one, 3, "late", bridge, "source")
        await sink
        assert held(pairs.one) == held(pairs.other) == {bridge.identity}
        assert memory.is_closed(file)
        await pairs.take(3, bridge)
        assert held(pairs.one) == held(pairs.other) == frozenset()

    pairs.host.run(main())


def test_a_reader_does_not_wait_for_a_writer_that_fails(pairs: Memories) -> None:
    """A source without slots is told what to do; the sink's attach ends at once and has nothing."""

    async def main() -> None:
        bare = await pairs.host.make("bare")
        bridge = pairs.makers.mint(True, size=SIZE)
        await bridge.open(4)
        async with asyncio.timeout(10):
            results = await asyncio.gather(
                give(bare, 4, "none", bridge, "source"),
                give(pairs.other, 4, "none", bridge, "sink"),
                return_exceptions=True,
            )
        assert 'board = "pc"' in str(results[0])
        assert "writer has not mapped" in str(results[1])
        assert all(isinstance(result, MachineError) for result in results)
        bridge.cut()
        assert held(pairs.other) == frozenset() and 4 not in pairs.other.attached
        bare.kill()
        await bare.exited

    pairs.host.run(main())


def test_twenty_memories_one_after_the_other_leave_nothing(pairs: Memories) -> None:
    """Neither QEMU has a descriptor or a mapping more, nor have we, and no guest a device."""

    async def main() -> None:
        async with pairs.memory(9, "first", True):
            pass
        before = descriptors(pairs.one), descriptors(pairs.other)
        ours = open_here()
        for number in range(10, 30):
            bridge = await pairs.attach(number, f"m{number}", number % 2 == 0)
            assert held(pairs.one) == held(pairs.other) == {bridge.identity}
            await pairs.take(number, bridge)
            assert held(pairs.one) == held(pairs.other) == frozenset()
        await pairs.relays.ended()
        await asyncio.sleep(0.2)
        assert (descriptors(pairs.one), descriptors(pairs.other)) == before
        assert open_here() == ours
        for machine in (pairs.one, pairs.other):
            _, said = await sh(machine, LEFT)
            assert said.strip() == ""

    pairs.host.run(main())


def test_memories_may_come_and_go_at_the_same_time(pairs: Memories) -> None:
    """While one is taken away another is given: both machines go on with what they were given."""

    async def main() -> None:
        old = await pairs.attach(30, "old", False)
        for number in range(31, 36):
            _, new = await asyncio.gather(
                pairs.take(number - 1, old), pairs.attach(number, f"m{number}", number % 2 == 0)
            )
            assert held(pairs.one) == held(pairs.other) == {new.identity}
            old = new
        await pairs.take(35, old)
        assert not pairs.one.exited.done() and not pairs.other.exited.done()

    pairs.host.run(main())


def test_one_memory_more_than_the_limit_is_refused(pairs: Memories) -> None:
    """`MAX_MEMORIES` work at once, each by its name; the next is refused and leaves nothing."""

    async def main() -> None:
        bridges: list[MemoryBridge] = []
        try:
            for number in range(shared.MAX_MEMORIES):
                bridges.append(await pairs.attach(40 + number, f"n{number}", False))
                await there(pairs.one, f"n{number}")
                await poke(pairs.one, f"n{number}", hex(number + 1))
            for number, bridge in enumerate(bridges):
                assert os.pread(bridge.twins["memory"], 1, 0) == bytes([number + 1])
            with pytest.raises(LimitReached, match="MAX_MEMORIES"):
                await pairs.attach(60, "over", False)
            assert len(held(pairs.one)) == shared.MAX_MEMORIES
        finally:
            await asyncio.gather(
                *(pairs.take(40 + number, bridge) for number, bridge in enumerate(bridges))
            )
        assert held(pairs.one) == held(pairs.other) == frozenset()

    pairs.host.run(main())


def test_a_next_node_takes_memories_away_from_an_adopted_machine(host: Host) -> None:
    """It knows by the twin which file is whose: one is cut and the other stays, then goes too."""

    async def main() -> None:
        makers = MemoryBridges(host.bridges)
        machine = await host.boot("kept", board="pc", incarnation="d/kept/1")
        bridges = {number: makers.mint(False, size=SIZE) for number in (1, 2, 3)}
        for number, bridge in bridges.items():
            await bridge.open(number)
            await give(machine, number, f"m{number}", bridge, "source")
        await host.abandon(machine)
        heir = await host.heir("kept", "d/kept/1")
        await heir.adopt()
        assert heir.attached == {1, 2, 3}
        for number in (1, 2):
            heir.expect(number, bridges[number].identity)
        await heir.detach(3)  # of which the next node knows nothing
        await heir.verify()
        assert held(heir) == {bridges[1].identity, bridges[2].identity}
        await heir.detach(1)
        assert held(heir) == {bridges[2].identity}
        another = makers.mint(False, size=SIZE)
        await give(heir, 4, "m4", another, "sink")
        assert held(heir) == {bridges[2].identity, another.identity}
        await asyncio.gather(heir.detach(2), heir.detach(4))
        assert held(heir) == frozenset() and not heir.exited.done()
        for bridge in (*bridges.values(), another):
            bridge.cut()
        heir.kill()
        await heir.exited

    host.run(main())


def test_a_paused_machine_cannot_give_a_memory_up(
    pairs: Memories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its guest has no turn to let go, so it is ended; the other end goes on. (The last test.)"""

    async def main() -> None:
        monkeypatch.setattr(shared, "UNPLUG_S", 1.0)
        bridge = await pairs.attach(90, "last", False)
        await there(pairs.other, "last")
        await pairs.other.pause()
        await pairs.take(90, bridge)
        end = await asyncio.wait_for(asyncio.shield(pairs.other.exited), 10)
        assert "did not give up the memory of channel 90" in end.reason
        assert held(pairs.one) == frozenset() and not pairs.one.exited.done()

    pairs.host.run(main())
