"""On a full disk nothing is allowed, and that is still written down."""

import asyncio
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skerry.audit.appender import RESERVE
from skerry.audit.chain import verify
from skerry.audit.writer import AuditTrail
from skerry.errors import AuditUnavailable
from skerry.machine.simulator.disk import SimulatedDisk
from tests.support.audit import until
from tests.unit.audit.trails import FILE, lines_of, records, segment_bytes

FULL = os.strerror(errno.ENOSPC)


def events(disk: SimulatedDisk) -> list[str]:
    """Return the events on a disk, after proving their chain."""
    lines = lines_of(segment_bytes(disk))
    assert not verify(lines).broken
    return [record.event for record in records(lines)]


async def fill(trail: AuditTrail) -> int:
    """Append until it is refused; returns how many were not."""
    count = 0
    with pytest.raises(AuditUnavailable, match=FULL):
        while True:
            await trail.append("allow", {"x": "y" * 1000})
            count += 1
    return count


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_refusal_and_a_taking_away_are_written_on_a_full_disk(number: int) -> None:
    """Every append is refused at once; notes are written from the reserve; room ends it."""
    disk = SimulatedDisk()

    async def main() -> None:
        trail = AuditTrail.open(FILE, disk, retry_s=0.01)
        await trail.append("allow", {})
        if number == errno.ENOSPC:
            disk.room = 0
            await fill(trail)
        else:
            disk.faults["allocate"] = number
            with pytest.raises(AuditUnavailable, match=os.strerror(number)):
                while True:
                    await trail.append("allow", {"x": "y" * 50_000})
        trail.note("deny", {"why": {"code": "AUDIT-UNAVAILABLE"}})
        trail.note("cut", {"channel": 7})
        await until(lambda: events(disk)[-2:] == ["deny", "cut"])
        begin = time.monotonic()
        with pytest.raises(AuditUnavailable):
            await trail.append("allow", {})
        assert time.monotonic() - begin < 0.5
        disk.faults.clear()
        disk.room = None
        await until(lambda: not trail.failure)
        await trail.append("allow", {})
        await asyncio.to_thread(trail.close)

    asyncio.run(main())
    assert events(disk)[-4:] == ["deny", "cut", "recovered", "allow"]


def test_nobody_else_can_take_the_reserve() -> None:
    """Whatever fills the disk, the reserve holds as much as it promises, and what is beyond waits.

    The control: without the reserve the same notes are not written until there is room.
    """

    async def written(disk: SimulatedDisk) -> int:
        trail = AuditTrail.open(FILE, disk, retry_s=0.01)
        await trail.append("allow", {})
        disk.room = 0
        if "allocate" not in disk.faults:
            await fill(trail)
        for channel in range(100):
            trail.note("cut", {"channel": channel, "x": "y" * 1000})
        await asyncio.sleep(0.2)
        there = events(disk).count("cut")
        disk.room = None
        await until(lambda: not trail.failure)
        await asyncio.to_thread(trail.close)
        assert events(disk).count("cut") == 100
        return there

    disk = SimulatedDisk()
    assert RESERVE > 100 * 1500
    assert asyncio.run(written(disk)) == 100
    without = SimulatedDisk()
    without.faults["allocate"] = errno.EOPNOTSUPP
    assert asyncio.run(written(without)) == 0


def test_a_spent_reserve_keeps_the_notes_for_later() -> None:
    """When the reserve is used up, notes wait in memory and follow when there is room."""
    disk = SimulatedDisk()

    async def main() -> None:
        trail = AuditTrail.open(FILE, disk, retry_s=0.01)
        await trail.append("allow", {})
        disk.room = 0
        await fill(trail)
        for channel in range(1000):
            trail.note("cut", {"channel": channel, "x": "y" * 1000})
        await asyncio.sleep(0.2)
        assert 0 < events(disk).count("cut") < 1000
        disk.room = None
        await until(lambda: not trail.failure)
        await asyncio.to_thread(trail.close)

    asyncio.run(main())
    assert events(disk).count("cut") == 1000


def test_the_reserve_outlives_its_writer() -> None:
    """A trail that is opened on a full disk still has the reserve that the last writer made."""
    disk = SimulatedDisk()

    async def main() -> None:
        trail = AuditTrail.open(FILE, disk, retry_s=0.01)
        await trail.append("allow", {})
        disk.room = 0
        await fill(trail)
        await asyncio.to_thread(trail.close)
        again = AuditTrail.open(FILE, disk, retry_s=0.01)
        await fill(again)
        again.note("down", {})
        await until(lambda: events(disk)[-1] == "down")
        await asyncio.to_thread(again.close)

    asyncio.run(main())


SMALL = r"""
import asyncio, os, subprocess, sys, time
from pathlib import Path
from skerry.audit.chain import verify
from skerry.audit.client import AuditClient
from skerry.audit.read import first_kept, read_lines
from skerry.audit.record import parse_record
from skerry.audit.writer import AuditTrail
from skerry.errors import AuditUnavailable
from tests.support.audit import Writers

folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], check=True)
path = folder / "audit.log"

async def main():
    (folder / "half").write_bytes(bytes(2 << 20))
    if sys.argv[2] == "thread":
        trail = AuditTrail.open(path, rotate=1 << 20, keep=16, retry_s=0.05)
    else:
        trail = await AuditClient.open(path, Writers().start, rotate=1 << 20, keep=16)
    count = 0
    try:
        while True:
            await trail.append("allow", {"x": "y" * 2000})
            count += 1
    except AuditUnavailable as error:
        assert "No space left" in str(error), error
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)) == 4096:
                pass
        except OSError:
            pass
    trail.note("deny", {"why": {"code": "AUDIT-UNAVAILABLE"}})
    for channel in range(50):
        trail.note("cut", {"channel": channel, "x": "y" * 1000})
    end = time.monotonic() + 20
    while not list(read_lines(path))[-1].count(b'"channel":49'):
        assert time.monotonic() < end, "the notes were not written"
        await asyncio.sleep(0.05)
    assert trail.failure
    (folder / "half").unlink()
    while trail.failure:
        assert time.monotonic() < end, trail.failure
        await asyncio.sleep(0.05)
    await trail.append("allow", {})
    if sys.argv[2] == "thread":
        await asyncio.to_thread(trail.close)
    else:
        await trail.close()
    lines = list(read_lines(path))
    assert not verify(lines, first=first_kept(path)).broken
    events = [parse_record(line).event for line in lines]
    assert events.count("cut") == 50 and events.count("deny") == 1, events[-60:]
    assert events[-2:] == ["recovered", "allow"], events[-5:]
    assert len(list(folder.iterdir())) > 2, "no rotation"
    print("written", count)

asyncio.run(main())
"""


@pytest.mark.parametrize("writer", ["thread", "process"])
def test_a_real_full_file_system_is_survived(tmp_path: Path, writer: str) -> None:
    """On a file system of 6 MB, filled to its last block, refusal and cuts are written."""
    argv = ["unshare", "--user", "--map-root-user", "--mount"]
    python = [sys.executable, "-c", SMALL, str(tmp_path), writer]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*argv, *python],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "written" in done.stdout
