"""The trail's writer: durable, shared syncs, refusal at once, nothing acknowledged is lost."""

import asyncio
import errno
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.audit import writer
from skerry.audit.chain import GENESIS, verify
from skerry.audit.disk import Disk
from skerry.audit.ending import MAX_BATCH, WINDOW
from skerry.audit.record import Record, parse_record
from skerry.audit.writer import AuditTrail
from skerry.errors import AuditUnavailable, Denied
from skerry.machine.simulator.disk import SimulatedDisk
from skerry.monitor.protocols import AuditLog

FILE = Path("/state/audit.log")


def records(disk: SimulatedDisk) -> list[Record]:
    """Return the records on a disk, after proving their chain."""
    lines = disk.content(FILE).splitlines(keepends=True)
    proof = verify(lines)
    assert not proof.broken, proof.reason
    return [parse_record(line) for line in lines]


def wait_until(done: object, seconds: float = 5.0) -> None:
    """Wait for another thread until `done()` is true."""
    assert callable(done)
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_the_trail_is_what_the_monitor_asks_for() -> None:
    """The writer has the shape of the monitor's `AuditLog`, both disks that of `Disk`."""
    disk: Disk = SimulatedDisk()
    log: AuditLog = AuditTrail.open(FILE, disk)
    assert isinstance(log, AuditTrail)
    log.close()


def test_an_append_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    """The record is in the file, private and chained, at the moment `append` returns."""
    path = tmp_path / "audit.log"

    async def main() -> None:
        trail = AuditTrail.open(path)
        for n in (1, 2, 3):
            assert await trail.append("allow", {"n": n}) == n
            assert len(path.read_bytes().splitlines()) == n
        trail.note("cut", {"channel": 7})
        await asyncio.to_thread(trail.close)
        assert trail.head.n == 4

    asyncio.run(main())
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("rb") as file:
        assert verify(file).count == 4


def test_the_chain_continues_after_reopening() -> None:
    """A second writer continues the numbers and the chain of the first."""
    disk = SimulatedDisk()
    for _ in range(3):
        trail = AuditTrail.open(FILE, disk)
        assert asyncio.run(trail.append("up", {})) == trail.head.n
        trail.close()
    assert [record.n for record in records(disk)] == [1, 2, 3]
    fresh = AuditTrail.open(FILE, SimulatedDisk())
    assert (fresh.head.n, fresh.head.hash) == (0, GENESIS)
    fresh.close()


def test_many_appends_share_a_sync() -> None:
    """Appends that arrive together are made durable by a few syncs, each with its own number."""
    disk = SimulatedDisk()

    async def main() -> None:
        trail = AuditTrail.open(FILE, disk)
        before = disk.syncs
        with trail._lock:  # the writer can't take anything before all are there
            tasks = [asyncio.ensure_future(trail.append("allow", {"i": i})) for i in range(500)]
            await asyncio.sleep(0)
        assert sorted(await asyncio.gather(*tasks)) == list(range(1, 501))
        assert disk.syncs - before <= 2
        await asyncio.to_thread(trail.close)

    asyncio.run(main())
    assert [record.fields["i"] for record in records(disk)] == list(range(500))


def test_a_batch_is_bounded() -> None:
    """However much waits, no more than `MAX_BATCH` bytes are at stake in one sync."""
    disk = SimulatedDisk()

    async def main() -> None:
        trail = AuditTrail.open(FILE, disk)
        before = disk.syncs
        await asyncio.gather(*(trail.append("allow", {"x": "y" * 50_000}) for _ in range(20)))
        assert disk.syncs - before >= 20 * 50_000 // MAX_BATCH
        await asyncio.to_thread(trail.close)

    asyncio.run(main())
    assert len(records(disk)) == 20


@pytest.mark.parametrize("fault", ["append", "sync"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC])
def test_a_failing_disk_refuses_at_once_until_it_works_again(fault: str, number: int) -> None:
    """The append that meets the fault and all after it are denied; then work goes on."""
    disk = SimulatedDisk()

    async def main() -> None:
        trail = AuditTrail.open(FILE, disk, retry_s=0.01)
        await trail.append("allow", {"i": 1})
        disk.faults["append" if fault == "append" else "sync"] = number
        disk.faults["truncate"] = number
        for _ in range(20):
            start = time.monotonic()
            with pytest.raises(AuditUnavailable, match=os.strerror(number)) as caught:
                await trail.append("allow", {"i": 2})
            assert time.monotonic() - start < 1.0
            assert isinstance(caught.value, Denied)
        trail.note("cut", {"channel": 1})
        disk.faults.clear()
        await asyncio.to_thread(wait_until, lambda: not trail.failure)
        assert await trail.append("allow", {"i": 3}) > 2
        await asyncio.to_thread(trail.close)

    asyncio.run(main())
    events = [(record.event, record.fields.get("i")) for record in records(disk)]
    assert events == [("allow", 1), ("recovered", None), ("cut", None), ("allow", 3)]
    assert records(disk)[1].fields["refused"] == 20


def test_a_full_disk_refuses_and_what_was_half_written_is_gone() -> None:
    """A batch that fits only in part leaves nothing of it in the trail."""
    disk = SimulatedDisk()
    disk.faults["allocate"] = errno.EOPNOTSUPP  # no reserve: found out in the middle of a write

    async def main() -> None:
        trail = AuditTrail.open(FILE, disk, retry_s=0.01)
        await trail.append("allow", {"i": 1})
        disk.room = 100
        with pytest.raises(AuditUnavailable, match="No space left"):
            await trail.append("allow", {"i": 2})
        with pytest.raises(AuditUnavailable, match="No space left"):
            await trail.append("allow", {"i": 3})
        disk.room = None
        await asyncio.to_thread(wait_until, lambda: not trail.failure)
        await trail.append("allow", {"i": 4})
        await asyncio.to_thread(trail.close)

    asyncio.run(main())
    assert [record.fields.get("i") for record in records(disk)] == [1, None, 4]


class Dying(SimulatedDisk):
    """A disk whose writer thread ends in it."""

    def sync(self, fd: int) -> None:
        """End the thread once something was appended."""
        if self.content(FILE):
            raise SystemExit
        super().sync(fd)


def test_a_dead_writer_refuses_at_once() -> None:
    """Those who wait when the thread dies are denied, and so is everyone after."""
    disk = Dying()

    async def main() -> None:
        trail = AuditTrail.open(FILE, disk)
        results = await asyncio.gather(
            *(trail.append("allow", {}) for _ in range(10)), return_exceptions=True
        )
        assert all(isinstance(result, AuditUnavailable) for result in results)
        with pytest.raises(AuditUnavailable, match="its writer ended"):
            await trail.append("allow", {})
        trail.note("cut", {})
        await asyncio.to_thread(trail.close)

    asyncio.run(main())


def test_a_closed_trail_refuses() -> None:
    """After `close` an append is a denial and a note is nothing; closing twice is once."""
    trail = AuditTrail.open(FILE, SimulatedDisk())
    trail.close()
    trail.close()
    trail.note("cut", {})
    with pytest.raises(AuditUnavailable, match="has ended"):
        asyncio.run(trail.append("allow", {}))


def test_notes_beyond_the_limit_are_counted_and_confessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk fails notes are kept up to the limit; the rest is a number in the trail."""
    monkeypatch.setattr(writer, "MAX_NOTES", 5)
    disk = SimulatedDisk()
    trail = AuditTrail.open(FILE, disk, retry_s=0.01)
    disk.faults["append"] = errno.EIO
    trail.note("cut", {"i": 0})
    wait_until(lambda: trail.failure)
    for i in range(1, 9):
        trail.note("cut", {"i": i, "odd": object()})
    disk.faults.clear()
    wait_until(lambda: not trail.failure)
    trail.close()
    found = [(record.event, record.fields.get("count")) for record in records(disk)]
    assert found == [("recovered", None), ("lost", 4), *[("cut", None)] * 5]


def test_appends_beyond_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue of waiting appends is bounded by a named limit."""
    monkeypatch.setattr(writer, "MAX_WAITING", 3)

    async def main() -> None:
        trail = AuditTrail.open(FILE, SimulatedDisk())
        with trail._lock:  # the writer can't take anything meanwhile
            tasks = [asyncio.ensure_future(trail.append("allow", {})) for _ in range(5)]
            await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [r for r in results if isinstance(r, int)] == [1, 2, 3]
        assert "MAX_WAITING" in str(results[-1])
        await asyncio.to_thread(trail.close)

    asyncio.run(main())


def good_trail(count: int, size: int = 10) -> bytes:
    """Return the bytes of a good trail."""
    disk = SimulatedDisk()

    async def main() -> None:
        trail = AuditTrail.open(FILE, disk)
        await asyncio.gather(*(trail.append("allow", {"x": "y" * size}) for _ in range(count)))
        await asyncio.to_thread(trail.close)

    asyncio.run(main())
    return disk.content(FILE)


GOOD = good_trail(3)


@pytest.mark.parametrize(
    "torn", [b'{"n":4,"ti', b"\0" * 700, b'{"n":4' + b"\0" * 600 + b'"}\n{"n":5}\n', b"{"]
)
def test_what_a_crash_left_behind_is_cut_and_told(torn: bytes) -> None:
    """An incomplete end is removed, the acknowledged records stay, and a record says so."""
    disk = SimulatedDisk()
    disk.replace(FILE, GOOD + torn)
    trail = AuditTrail.open(FILE, disk)
    assert asyncio.run(trail.append("allow", {})) == 5
    trail.close()
    found = records(disk)
    assert disk.content(FILE).startswith(GOOD)
    assert (found[3].event, found[3].fields["cut_bytes"]) == ("recovered", len(torn))


@pytest.mark.parametrize(
    "damaged",
    [
        GOOD.replace(b"allow", b"deny!", 1),
        GOOD + b'{"n":4}\n',
        b"".join(GOOD.splitlines(keepends=True)[1:]),
        GOOD.replace(b"yyy", b"y\0y", 1) + b"x" * MAX_BATCH,
        b"x" * (WINDOW + 5),
    ],
)
def test_damage_that_no_crash_explains_is_refused_and_kept(damaged: bytes) -> None:
    """An altered trail is not continued and not touched; the good one is."""
    disk = SimulatedDisk()
    disk.replace(FILE, damaged)
    with pytest.raises(AuditUnavailable, match="damaged"):
        AuditTrail.open(FILE, disk)
    assert disk.content(FILE) == damaged
    disk.replace(FILE, GOOD)
    AuditTrail.open(FILE, disk).close()


def test_a_long_trail_is_continued_by_its_end() -> None:
    """Only the end of a long trail is read when it is opened, and the chain still fits."""
    disk = SimulatedDisk()
    disk.replace(FILE, good_trail(60, 40_000))
    assert len(disk.content(FILE)) > WINDOW
    trail = AuditTrail.open(FILE, disk)
    assert asyncio.run(trail.append("allow", {})) == 61
    trail.close()
    assert len(records(disk)) == 61


def test_the_file_must_be_a_private_regular_file(tmp_path: Path) -> None:
    """A link, a FIFO or a folder in its place is refused; loose permissions are tightened."""
    real, link, fifo = tmp_path / "real", tmp_path / "link", tmp_path / "fifo"
    real.touch(0o644)
    link.symlink_to(real)
    os.mkfifo(fifo)
    for path in (link, fifo, tmp_path, tmp_path / "none" / "x"):
        with pytest.raises(AuditUnavailable, match="cannot be opened"):
            AuditTrail.open(path)
    trail = AuditTrail.open(real)
    assert real.stat().st_mode & 0o777 == 0o600
    with pytest.raises(AuditUnavailable, match="another node"):
        AuditTrail.open(real)
    trail.close()
    AuditTrail.open(real).close()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 12), min_size=1, max_size=4), st.data())
def test_no_acknowledged_record_is_lost_in_a_crash(
    seed: int, crashes: list[int], data: st.DataObject
) -> None:
    """Whenever the power goes, what `append` returned for is there after it, and chained."""
    disk = SimulatedDisk(seed)
    acknowledged: dict[int, int] = {}
    sizes = data.draw(st.lists(st.integers(0, 2000), min_size=1, max_size=12))
    serial = iter(range(10**6))

    async def work(trail: AuditTrail) -> None:
        async def one(size: int) -> None:
            mark = next(serial)
            try:
                n = await trail.append("allow", {"mark": mark, "x": "y" * size})
            except AuditUnavailable:
                return
            acknowledged[n] = mark

        for size in sizes:
            trail.note("cut", {})
            await asyncio.gather(*(one(size) for _ in range(3)))
        await asyncio.to_thread(trail.close)

    for crash_in in [*crashes, None]:
        disk.crash_in = crash_in
        try:
            trail = AuditTrail.open(FILE, disk, retry_s=60)
        except AuditUnavailable:
            assert disk.crash_in is None  # the power went while it was opened
            continue
        asyncio.run(work(trail))
        if disk.crash_in is not None:
            disk.crash()
        found = {record.n: record.fields.get("mark") for record in records_until_torn(disk)}
        assert acknowledged.items() <= found.items()


def records_until_torn(disk: SimulatedDisk) -> list[Record]:
    """Return the records up to where a crash tore the file."""
    lines = disk.content(FILE).splitlines(keepends=True)
    return [parse_record(line) for line in lines[: verify(lines).count]]
