"""The writer's thread and the event loops: neither waits for the other, nobody is left untold."""

import asyncio
import errno
import gc
import os
import threading
from pathlib import Path

import pytest

from skerry.audit.bell import Bell
from skerry.audit.writer import AuditTrail
from skerry.errors import AuditUnavailable
from skerry.machine.simulator.disk import SimulatedDisk

FILE = Path("/state/audit.log")


def descriptors() -> int:
    """Return how many descriptors this process has, without those of forgotten objects."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_ring_before_the_wait_is_not_lost() -> None:
    """Rings before the wait end it at once, all of them one wait; the next one waits."""
    bell = Bell()
    bell.ring()
    bell.ring()
    bell.wait()
    thread = threading.Thread(target=bell.wait)
    thread.start()
    thread.join(0.02)
    assert thread.is_alive()
    bell.ring()
    thread.join(5)
    assert not thread.is_alive()


class Hanging(SimulatedDisk):
    """A disk that answers no sync until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.free.set()

    def sync(self, fd: int) -> None:
        """Wait to be let go."""
        assert self.free.wait(10)
        super().sync(fd)


@pytest.mark.parametrize("hangs", [False, True])
def test_a_disk_that_hangs_does_not_stop_the_loop(hangs: bool) -> None:
    """While a sync hangs the loop runs and notes are taken; nothing is acknowledged before it."""
    disk = Hanging()

    async def main() -> None:
        trail = AuditTrail.open(FILE, disk)
        if hangs:
            disk.free.clear()
        tasks = [asyncio.ensure_future(trail.append("allow", {})) for _ in range(10)]
        for _ in range(20):
            await asyncio.sleep(0.005)
            trail.note("cut", {})
        assert [task.done() for task in tasks] == [not hangs] * 10
        tasks[3].cancel()
        disk.free.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, int) for result in results) == 9 + (not hangs)
        await asyncio.to_thread(trail.close)

    asyncio.run(main())
    assert disk.content(FILE).count(b'"event":"cut"') == 20


def numbers_of_fifteen_loops() -> list[int]:
    """Return the numbers of the records of 15 loops, three at a time, on one trail."""
    trail = AuditTrail.open(FILE, SimulatedDisk())
    numbers: list[int] = []

    async def some() -> None:
        numbers.extend([await trail.append("allow", {}) for _ in range(20)])

    def loop() -> None:
        asyncio.run(some())

    for _ in range(5):
        threads = [threading.Thread(target=loop) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    trail.close()
    return numbers


def test_loops_in_several_threads_share_a_trail() -> None:
    """Each loop gets the numbers of its own records; ended loops and the trail leave nothing."""
    before = descriptors()
    assert sorted(numbers_of_fifteen_loops()) == list(range(1, 301))
    assert descriptors() <= before


def test_a_closed_trail_leaves_the_loop() -> None:
    """A loop that opens and closes trails for long collects nothing of them."""

    async def main() -> None:
        disk = SimulatedDisk()
        before = descriptors()
        for number in range(1, 6):
            trail = AuditTrail.open(FILE, disk)
            assert await trail.append("allow", {}) == number
            trail.close()
            await asyncio.sleep(0)
        del trail
        assert descriptors() <= before

    asyncio.run(main())


def test_an_append_that_could_not_be_answered_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor for its answer an append is denied, and works once there is one."""

    def no_more(value: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), value)

    async def main() -> None:
        trail = AuditTrail.open(FILE, SimulatedDisk())
        with monkeypatch.context() as patched:
            patched.setattr(os, "eventfd", no_more)
            with pytest.raises(AuditUnavailable, match="Too many open files"):
                await trail.append("allow", {})
            with pytest.raises(AuditUnavailable, match="Too many open files"):
                AuditTrail.open(FILE, SimulatedDisk())
        assert await trail.append("allow", {}) == 1
        await asyncio.to_thread(trail.close)

    asyncio.run(main())
