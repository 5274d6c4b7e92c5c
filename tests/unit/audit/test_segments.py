"""A trail in segments is one trail: nothing lost, doubled or hidden, whenever the power goes."""

import asyncio
import errno
import itertools
import json
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.audit.chain import SEGMENT, Link, verify
from skerry.audit.read import (
    Position,
    find_line,
    first_kept,
    follow_lines,
    read_lines,
    read_tail,
)
from skerry.audit.record import Record, parse_record
from skerry.audit.writer import AuditTrail
from skerry.cli.audit import audit, why
from skerry.errors import AuditUnavailable
from skerry.machine.simulator.disk import SimulatedDisk
from tests.unit.audit.trails import FILE, first_of, lines_of, records, segment_bytes


def fill(trail: AuditTrail, count: int, size: int = 100) -> list[int]:
    """Append records one after the other and return their numbers."""

    async def main() -> list[int]:
        return [await trail.append("allow", {"x": "y" * size}) for _ in range(count)]

    return asyncio.run(main())


def on_disk(path: Path) -> list[Record]:
    """Return the records of a trail in real files, after proving it."""
    lines = list(read_lines(path))
    proof = verify(lines, first=first_kept(path))
    assert not proof.broken, proof
    return records(lines)


def test_a_full_segment_is_closed_and_the_chain_goes_on(tmp_path: Path) -> None:
    """A segment that is long enough is renamed, and the next one continues it and says so."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path, rotate=1000, keep=100)
    numbers = fill(trail, 30)
    trail.close()
    names = sorted(name.name for name in tmp_path.iterdir())
    assert len(names) > 3
    found = on_disk(path)
    assert [record.n for record in found] == list(range(1, len(found) + 1))
    assert set(numbers) <= {record.n for record in found}
    begins = [record for record in found if record.event == SEGMENT]
    assert [f"audit.log.{record.n}" for record in begins[:-1]] == sorted(
        (name for name in names if name not in {"audit.log", "audit.log.1"}),
        key=lambda name: int(name.rsplit(".", 1)[1]),
    )
    for record in begins:
        before = found[record.n - 2]
        assert (record.fields["last"], record.fields["hash"]) == (before.n, before.hash)
        assert record.fields["previous"] in names
    assert all((tmp_path / name).stat().st_mode & 0o777 == 0o600 for name in names)


def test_without_a_limit_a_trail_is_one_file(tmp_path: Path) -> None:
    """The positive control: the same records without `rotate` stand in one file."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path)
    fill(trail, 30)
    trail.close()
    assert [name.name for name in tmp_path.iterdir()] == ["audit.log"]


def test_retention_removes_the_oldest_and_says_which(tmp_path: Path) -> None:
    """Only so many closed segments stay; the trail is proven from the first that is there."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path, rotate=1000, keep=2)
    fill(trail, 40)
    trail.close()
    assert len(list(tmp_path.iterdir())) == 3
    found = on_disk(path)
    first = first_kept(path)
    assert found[0].n == first > 1
    assert found[-1].n > 40
    removals = [record.fields["removed"] for record in found if "removed" in record.fields]
    assert removals[-1] == {"first": removals[-1]["first"], "last": first - 1}  # type: ignore[index]


def test_a_segment_that_nobody_says_was_removed_is_missed(tmp_path: Path) -> None:
    """Taking away one more segment than retention did is found and named."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path, rotate=1000, keep=3)
    fill(trail, 40)
    trail.close()
    first = first_kept(path)
    (tmp_path / f"audit.log.{first}").unlink()
    proof = verify(read_lines(path), first=first_kept(path))
    assert (proof.broken, proof.count) == (first, 0)
    assert "missing" in proof.reason


def test_readers_see_one_trail(tmp_path: Path) -> None:
    """`find_line` and `read_tail` reach into closed segments."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path, rotate=1000, keep=100)
    fill(trail, 30)
    trail.close()
    whole = list(read_lines(path))
    for number in (1, 7, len(whole)):
        assert parse_record(find_line(path, number)).n == number
    for count in (0, 1, 5, 20, 100):
        assert read_tail(path, count)[0] == whole[len(whole) - min(count, len(whole)) :]


def test_the_commands_see_one_trail(tmp_path: Path) -> None:
    """`why`, `audit tail`, `export` and `verify` reach across segments."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path, rotate=1000, keep=4)
    fill(trail, 40)
    trail.close()
    found = on_disk(path)

    def run(command: click.Command, *argv: str) -> str:
        result = CliRunner().invoke(command, [*argv, "--file", str(path)])
        assert result.exit_code == 0, result.output
        return result.output

    assert run(why, str(found[3].n)).startswith(f"record {found[3].n}: ")
    assert len(run(audit, "tail", "-n", "10").splitlines()) == 10
    exported = run(audit, "export", "--format", "json").splitlines()
    assert [json.loads(line)["n"] for line in exported] == [record.n for record in found]
    shown = json.loads(run(audit, "verify", "--json"))
    assert (shown["first"], shown["count"]) == (found[0].n, len(found))
    assert f"from record {found[0].n} on" in run(audit, "verify")


def test_follow_goes_on_in_the_next_segments(tmp_path: Path) -> None:
    """A follower sees every record once, although its segment was closed meanwhile."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path, rotate=1000, keep=100)
    fill(trail, 3)
    lines, position = read_tail(path, 10)
    rounds = itertools.count()

    class EnoughError(Exception):
        pass

    def meanwhile(_: float) -> None:
        if next(rounds) == 4:
            raise EnoughError
        fill(trail, 10)

    seen = [parse_record(line).n for line in lines]
    with pytest.raises(EnoughError):
        for line in follow_lines(path, position, meanwhile):
            seen.append(parse_record(line).n)
    trail.close()
    assert seen == [record.n for record in on_disk(path)]
    assert len(list(tmp_path.iterdir())) > 4


def test_behind_a_segment_that_retention_removed_comes_the_oldest_that_is_left(
    tmp_path: Path,
) -> None:
    """A follower that is slow misses what was removed, and nothing that is still there."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path, rotate=1000, keep=3)
    fill(trail, 1)

    class EnoughError(Exception):
        pass

    def enough(_: float) -> None:
        raise EnoughError

    follower = follow_lines(path, Position(path.stat().st_ino, 0), enough)
    seen = [parse_record(next(follower)).n]
    fill(trail, 40)
    trail.close()
    with pytest.raises(EnoughError):
        for line in follower:
            seen.append(parse_record(line).n)
    kept = [record.n for record in on_disk(path)]
    assert kept[0] > seen[0] + 1
    assert seen[-len(kept) :] == kept


def test_a_rotation_while_reading_hides_and_doubles_nothing(tmp_path: Path) -> None:
    """What stood there when a reader began comes out once, in order, whatever is closed then."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path, rotate=2000, keep=100)
    fill(trail, 30)
    before = len(on_disk(path))
    seen = []
    for line in read_lines(path):
        seen.append(parse_record(line).n)
        if len(seen) % 5 == 0 and len(seen) < 40:
            fill(trail, 9)
    trail.close()
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) >= before


def test_a_segment_that_cannot_be_begun_is_told_and_the_old_one_goes_on() -> None:
    """A failure of the rotation costs no append; the trail says so, and later tries succeed."""
    disk = SimulatedDisk()
    trail = AuditTrail.open(FILE, disk, rotate=1000, keep=100)
    disk.faults["rename"] = errno.EACCES
    fill(trail, 10)
    assert len(segment_bytes(disk)) == 1
    del disk.faults["rename"]
    fill(trail, 20)
    trail.close()
    found = records(lines_of(segment_bytes(disk)))
    assert [record.n for record in found] == list(range(1, len(found) + 1))
    failed = [record for record in found if record.event == "segment-failed"]
    assert failed
    assert failed[0].fields["reason"] == os.strerror(errno.EACCES)
    assert len(segment_bytes(disk)) > 1


@pytest.mark.parametrize("operation", ["open", "sync_folder", "names", "truncate", "remove"])
def test_any_failure_in_a_rotation_loses_nothing(operation: str) -> None:
    """Whatever step of a rotation fails, every append is answered and stands there once."""
    disk = SimulatedDisk()
    trail = AuditTrail.open(FILE, disk, rotate=600, keep=2, retry_s=0.01)
    fill(trail, 8)
    disk.faults[operation] = errno.EIO  # type: ignore[index]
    numbers = fill(trail, 8)
    disk.faults.clear()
    numbers += fill(trail, 8)
    trail.close()
    lines = lines_of(segment_bytes(disk))
    proof = verify(lines, first=first_of(disk))
    assert not proof.broken, proof
    found = [record.n for record in records(lines)]
    assert {n for n in numbers if n >= found[0]} <= set(found)


def test_a_trail_that_ends_before_what_it_had_reached_is_refused() -> None:
    """Opening compares the end with a head noted elsewhere; the same head fits the whole trail."""
    disk = SimulatedDisk()
    trail = AuditTrail.open(FILE, disk, rotate=1000, keep=100)
    fill(trail, 20)
    trail.close()
    head = trail.head
    whole = disk.content(FILE)
    AuditTrail.open(FILE, disk, at_least=head).close()
    disk.replace(FILE, b"".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(AuditUnavailable, match="damaged: it ends with record"):
        AuditTrail.open(FILE, disk, at_least=head)
    disk.replace(FILE, whole)
    with pytest.raises(AuditUnavailable, match="damaged"):
        AuditTrail.open(FILE, disk, at_least=Link(head.n, "0" * 64))
    with pytest.raises(AuditUnavailable, match="damaged"):
        AuditTrail.open(FILE, disk, at_least=Link(head.n - 1, "0" * 64))


@settings(max_examples=250, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(st.integers(0, 30), min_size=1, max_size=5),
    st.integers(1, 3),
    st.data(),
)
def test_no_acknowledged_record_is_lost_or_doubled_by_a_crash_in_a_rotation(
    seed: int, crashes: list[int], keep: int, data: st.DataObject
) -> None:
    """Whenever the power goes, in a rotation too, the trail is proven from its first record,
    and holds once what `append` returned for, unless a record says that it was removed."""
    disk = SimulatedDisk(seed)
    acknowledged: set[tuple[int, int]] = set()
    sizes = data.draw(st.lists(st.integers(0, 400), min_size=1, max_size=8))
    marks = itertools.count()

    async def work(trail: AuditTrail) -> None:
        for size in sizes:
            mark = next(marks)
            try:
                n = await trail.append("allow", {"mark": mark, "x": "y" * size})
            except AuditUnavailable:
                continue
            acknowledged.add((n, mark))
        await asyncio.to_thread(trail.close)

    for crash_in in [*crashes, None]:
        disk.crash_in = crash_in
        try:
            trail = AuditTrail.open(FILE, disk, retry_s=60, rotate=500, keep=keep)
        except AuditUnavailable:
            assert disk.crash_in is None  # the power went while it was opened
            continue
        asyncio.run(work(trail))
        if disk.crash_in is not None:
            disk.crash()
        disk.crash_in = None
    AuditTrail.open(FILE, disk, rotate=500, keep=keep).close()
    lines = lines_of(segment_bytes(disk))
    proof = verify(lines, first=first_of(disk))
    assert not proof.broken, proof
    found = {record.n: record.fields.get("mark") for record in records(lines)}
    assert {(n, mark) for n, mark in acknowledged if n >= first_of(disk)} <= found.items()
    held = [mark for mark in found.values() if mark is not None]
    assert len(held) == len(set(held))
