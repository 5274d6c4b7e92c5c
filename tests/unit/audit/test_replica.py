"""A replica takes what follows, keeps what it took, and says what is missing or was rewritten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from skerry.audit.chain import GENESIS, Link, seal
from skerry.audit.record import MAX_LINE, body_json, fields_json, parse_record
from skerry.audit.replica import (
    MAX_GAPS,
    MAX_STATUS,
    Replica,
    Status,
    Store,
    read_status,
)
from skerry.errors import WireError
from tests.unit.audit.trails import made_segments


def fed(replica: Replica, *feeds: list[bytes]) -> Status:
    """Feed lines, each list as a feed of its own, and return how the replica stands."""
    for lines in feeds:
        replica.connected()
        replica.take(b"".join(lines))
    return replica.status


def head(line: bytes) -> tuple[int, str]:
    """Return number and hash of a line."""
    record = parse_record(line)
    return record.n, record.hash


def kept(folder: Path) -> bytes:
    """Return all that a store holds, in order."""
    return b"".join(p.read_bytes() for p in sorted(folder.iterdir(), key=lambda p: int(p.name)))


def test_a_whole_trail_is_replicated_byte_by_byte(tmp_path: Path) -> None:
    """However the bytes are cut into pieces."""
    first, second = made_segments([5, 4])
    replica = Replica(Store(tmp_path))
    replica.connected()
    for byte in b"".join(first + second):
        replica.take(bytes([byte]))
    status = replica.status
    assert (status.n, status.hash) == head(second[-1])
    assert (status.first, status.state, status.gaps) == (1, "whole", ())
    assert kept(tmp_path) == b"".join(first + second)


def test_a_replica_may_begin_with_any_segment(tmp_path: Path) -> None:
    """What came before it is no gap of its; the control: in the middle of a segment it may not."""
    _, second = made_segments([5, 4])
    assert fed(Replica(Store(tmp_path / "a")), second).state == "whole"
    assert fed(Replica(Store(tmp_path / "b")), second[1:]).state == "broken"


def test_a_second_feed_of_the_same_trail_adds_only_what_is_new(tmp_path: Path) -> None:
    """A feed begins with a whole segment, and the one before may have been torn."""
    (lines,) = made_segments([8])
    status = fed(Replica(Store(tmp_path)), [*lines[:3], lines[3][:20]], lines[:5], lines)
    assert (status.n, status.state) == (8, "whole")
    assert kept(tmp_path) == b"".join(lines)


def test_a_rewritten_trail_breaks_the_replica_which_keeps_what_it_had(tmp_path: Path) -> None:
    """Another record of a number that it has is found out, and nothing is taken any more."""
    (lines,) = made_segments([6])
    status = fed(Replica(Store(tmp_path)), lines, rewritten(lines))
    assert status.state == "broken"
    assert "not the one that was replicated" in status.reason
    assert (status.n, status.hash) == head(lines[-1])
    assert kept(tmp_path) == b"".join(lines)


def rewritten(lines: list[bytes]) -> list[bytes]:
    """Return a good chain of as many records, with other contents, and one more."""
    made, prev = [], GENESIS
    for n in range(1, len(lines) + 2):
        line, prev = seal(body_json(n, n, n, prev, "allow", fields_json({"other": n})), prev)
        made.append(line)
    return made


def test_a_trail_that_was_rewritten_behind_a_segment_does_not_follow(tmp_path: Path) -> None:
    """A segment that begins right behind the head must name the head's hash."""
    first, second = made_segments([5, 4])
    status = fed(Replica(Store(tmp_path)), rewritten(first)[:5], second)
    assert status.state == "broken"
    assert "does not follow" in status.reason
    assert status.n == 5


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0], lines[2]],
        lambda lines: [lines[0], lines[1].replace(b"guest 2", b"guest 9"), lines[2]],
        lambda lines: [lines[0], lines[0]],
        lambda lines: [lines[0], b"no record\n"],
        lambda lines: [lines[0], b"\xff" * (MAX_LINE + 2)],
    ],
)
def test_what_does_not_follow_is_not_taken(
    change: Callable[[list[bytes]], list[bytes]], tmp_path: Path
) -> None:
    """A record left out, altered or repeated, and what is none; the record before it is the head.

    The control: unaltered they are all taken.
    """
    (lines,) = made_segments([3])
    status = fed(Replica(Store(tmp_path / "a")), change(lines))
    assert (status.state, status.n) == ("broken", 1)
    assert fed(Replica(Store(tmp_path / "b")), lines).n == 3


def test_segments_that_never_came_are_a_gap(tmp_path: Path) -> None:
    """Also in the middle of a feed; the chain goes on behind it, and the gap stays said."""
    first, _, third, _, fifth = made_segments([5, 4, 3, 2, 6])
    status = fed(Replica(Store(tmp_path)), first + third, fifth)
    assert (status.state, status.gaps) == ("gaps", ((6, 9), (13, 14)))
    assert (status.n, status.hash) == head(fifth[-1])


def test_gaps_beyond_those_that_are_named_are_counted(tmp_path: Path) -> None:
    """The status stays short."""
    segments = made_segments([2] * (2 * MAX_GAPS + 6))
    status = fed(Replica(Store(tmp_path)), *segments[::2])
    assert (len(status.gaps), status.more_gaps) == (MAX_GAPS, 2)


def test_a_store_keeps_the_newest_records(tmp_path: Path) -> None:
    """At its limit the oldest file makes room, and `first` says so; the head goes on."""
    (lines,) = made_segments([400])
    status = fed(Replica(Store(tmp_path, keep=20_000, file=4_000)), lines)
    data = kept(tmp_path)
    assert len(data) <= 20_000
    assert b"".join(lines).endswith(data)
    assert status.first == head(data.splitlines(keepends=True)[0])[0] > 1
    assert (status.n, status.left_out) == (400, 0)


def test_a_full_store_leaves_records_out_and_the_chain_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not even the oldest file makes room, it is counted."""
    (lines,) = made_segments([5])
    replica = Replica(Store(tmp_path))
    fed(replica, lines[:2])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    status = fed(replica, lines)
    assert (status.n, status.left_out, status.state) == (5, 3, "whole")


def test_a_status_is_read_within_its_bounds() -> None:
    """What can't be is no status; the control is one that can."""
    good = Status(7, "a" * 64, 1, "gaps", ((2, 3),))
    assert read_status(msgspec.json.encode(good)) == good
    for wrong in (
        b"",
        b"{}",
        b"[" * 5000,
        msgspec.json.encode(msgspec.structs.replace(good, n=-1)),
        msgspec.json.encode(msgspec.structs.replace(good, n=1 << 60)),
        msgspec.json.encode(msgspec.structs.replace(good, hash="x")),
        msgspec.json.encode(msgspec.structs.replace(good, gaps=((2, -3),))),
        msgspec.json.encode(msgspec.structs.replace(good, reason="x" * MAX_STATUS)),
    ):
        with pytest.raises(WireError):
            read_status(wrong)


def test_an_empty_replica_has_the_head_of_an_empty_trail(tmp_path: Path) -> None:
    """So that to hold a trail against it proves nothing, and breaks nothing."""
    status = Replica(Store(tmp_path)).status
    assert Link(status.n, status.hash) == Link()
    assert status.state == "empty"
