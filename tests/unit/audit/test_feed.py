"""A feed gives a pipe what the writer has acknowledged, and costs the writer nothing."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from skerry.audit import feed as feed_module
from skerry.audit.chain import Link
from skerry.audit.feed import Feed
from skerry.audit.read import first_kept, number_of, read_lines
from skerry.audit.writer import AuditTrail


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have feeds look for new records soon, and try again soon."""
    monkeypatch.setattr(feed_module, "PAUSE_S", 0.01)
    monkeypatch.setattr(feed_module, "RETRY_S", 0.05)
    monkeypatch.setattr(feed_module, "MISSED_S", 0.1)


def unexpected(*what: object) -> None:
    """Fail: nothing of the kind was to happen."""
    raise AssertionError(what)


def fill(trail: AuditTrail, count: int, size: int = 100) -> None:
    """Append records one after the other."""

    async def main() -> None:
        for _ in range(count):
            await trail.append("allow", {"x": "y" * size})

    asyncio.run(main())


def until(what: Callable[[], bool]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


def span(first: object, last: object) -> range:
    """Return the numbers of a gap."""
    assert isinstance(first, int)
    assert isinstance(last, int)
    return range(first, last + 1)


class Notes:
    """What a feed tells, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Mapping[str, object]]] = []

    def __call__(self, event: str, fields: Mapping[str, object]) -> None:
        """Take a note."""
        self.told.append((event, fields))

    @property
    def events(self) -> list[str]:
        """What happened."""
        return [event for event, _ in self.told]

    @property
    def gaps(self) -> list[tuple[object, object]]:
        """First and last number of each gap."""
        return [(f["first"], f["last"]) for event, f in self.told if event == "replica-gap"]


class Drain:
    """Reads a pipe to its end, in a thread."""

    def __init__(self, end: int) -> None:
        self.data = b""
        self._end = end
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while piece := os.read(self._end, 65536):
            self.data += piece
        os.close(self._end)

    def join(self) -> bytes:
        """Return all that came."""
        self._thread.join()
        return self.data


def test_a_feed_gives_every_record_over_all_segments(tmp_path: Path) -> None:
    """From the live segment's start on, byte for byte, also what is written meanwhile."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path, rotate=4000, keep=100)
    try:
        fill(trail, 5)
        reader, writer = os.pipe()
        feed = Feed(path, lambda: trail.head, writer, unexpected, unexpected)
        drain = Drain(reader)
        fill(trail, 60)
        until(lambda: feed.fed == trail.head.n)
        assert feed.lag == 0
        feed.close()
        assert drain.join() == b"".join(read_lines(path))
    finally:
        trail.close()


def test_nothing_is_fed_before_it_is_acknowledged(tmp_path: Path) -> None:
    """A record that is in the file and not yet acknowledged could still be cut off by a crash."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path)
    try:
        fill(trail, 3)
        known = Link(2, "")
        reader, writer = os.pipe()
        feed = Feed(path, lambda: known, writer, unexpected, unexpected)
        drain = Drain(reader)
        until(lambda: feed.fed == 2)
        time.sleep(0.1)
        assert drain.data.count(b"\n") == 2
        known = trail.head
        until(lambda: feed.fed == 3)
        feed.close()
        assert drain.join().count(b"\n") == 3
    finally:
        trail.close()


def test_a_reader_that_does_not_read_delays_no_append(tmp_path: Path) -> None:
    """The feed waits and lags; appends go on, and a close does not wait for the reader."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path)
    reader, writer = os.pipe()
    feed = Feed(path, lambda: trail.head, writer, unexpected, unexpected)
    try:
        fill(trail, 200, size=1000)  # more than a pipe holds
        assert trail.head.n == 200
        until(lambda: 0 < feed.fed < 200)
        assert feed.lag > 0
        began = time.monotonic()
        feed.close()
        assert time.monotonic() - began < 2
    finally:
        os.close(reader)
        trail.close()


def test_what_retention_removed_before_it_was_fed_is_a_gap(tmp_path: Path) -> None:
    """A reader that comes back gets the rest, and the gap is told with its numbers."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path, rotate=20_000, keep=1)
    notes = Notes()
    reader, writer = os.pipe()
    feed = Feed(path, lambda: trail.head, writer, notes, unexpected)
    try:
        fill(trail, 300, size=1000)
        drain = Drain(reader)
        until(lambda: feed.fed == trail.head.n)
        feed.close()
        numbers = [int(line[5 : line.index(b",")]) for line in drain.join().splitlines()]
        missing = sorted(set(range(1, numbers[-1] + 1)) - set(numbers))
        assert missing
        assert [n for first, last in notes.gaps for n in span(first, last)] == missing
    finally:
        trail.close()


def test_a_feed_ends_with_its_reader(tmp_path: Path) -> None:
    """While it waits for records as well as while it waits for room."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path)
    try:
        for count in (1, 200):
            fill(trail, count, size=1000)
            reader, writer = os.pipe()
            ended: list[str] = []
            feed = Feed(path, lambda: trail.head, writer, unexpected, ended.append)
            until(lambda feed=feed: feed.fed > 0)  # type: ignore[misc]
            os.close(reader)
            until(lambda ended=ended: bool(ended))  # type: ignore[misc]
            assert ended == ["its reader has ended"]
            feed.close()
    finally:
        trail.close()


NO_RECORD = b"x\n"


@pytest.mark.parametrize(
    "line",
    [NO_RECORD, b'{"n":0,"x":1}\n', b'{"n":99999999999999999}\n', b'{"n":4,' + b"x" * (1 << 16)],
    ids=["text", "zero", "beyond", "long"],
)
def test_a_line_that_is_no_record_ends_no_feed(line: bytes, tmp_path: Path) -> None:
    """Whoever writes the disk can't end the reader: nothing is fed, which is told once; without
    the line it goes on behind what it fed."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path)
    reader, writer = os.pipe()
    notes = Notes()
    fill(trail, 3)
    feed = Feed(path, lambda: trail.head, writer, notes, unexpected)
    drain = Drain(reader)
    try:
        until(lambda: feed.fed == 3)
        whole = path.read_bytes()
        with path.open("ab") as file:
            file.write(line)
        until(lambda: bool(feed.failure))
        assert "behind record 3, a line is no record" in feed.failure
        time.sleep(0.2)
        assert notes.events == ["replica-unfed"]
        os.truncate(path, len(whole))
        fill(trail, 2)
        until(lambda: feed.fed == 5)
        assert feed.failure == ""
        assert notes.events == ["replica-unfed", "replica-fed"]
    finally:
        feed.close()
        trail.close()
    assert drain.join() == path.read_bytes()


def test_what_a_failed_write_left_is_not_fed(tmp_path: Path) -> None:
    """Read before it is acknowledged, cut off and written anew: the reader gets the second one."""
    path = tmp_path / "audit.log"
    stale = [b'{"n":2,"x":"never acknowledged"}\n', b'{"n":3,"x":"nor this"}\n', b'{"n":4,"x']
    true = [b'{"n":1,"x":1}\n', b'{"n":2,"x":"true"}\n', b'{"n":3,"x":"a longer true record"}\n']
    path.write_bytes(true[0] + b"".join(stale))
    known = Link(1, "")
    reader, writer = os.pipe()
    feed = Feed(path, lambda: known, writer, unexpected, unexpected)
    drain = Drain(reader)
    until(lambda: feed.fed == 1)
    time.sleep(0.05)
    os.truncate(path, len(true[0]))
    with path.open("ab") as file:
        file.write(b"".join(true[1:]))
    known = Link(3, "")
    until(lambda: feed.fed == 3)
    feed.close()
    assert drain.join() == b"".join(true)


def test_a_feed_begins_where_its_reader_stands(tmp_path: Path) -> None:
    """With the segment that holds the last record that it has, however many were closed since; the
    control: of a reader that has nothing only the live one is asked."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path, rotate=4000, keep=100)
    fill(trail, 60)
    try:
        whole = b"".join(read_lines(path))
        begins = [int(p.suffix[1:]) for p in tmp_path.iterdir() if p != path]
        assert len(begins) > 2
        for since in (1, 20, trail.head.n, 0):
            reader, writer = os.pipe()
            feed = Feed(path, lambda: trail.head, writer, unexpected, unexpected, since)
            drain = Drain(reader)
            until(lambda feed=feed: feed.fed == trail.head.n)  # type: ignore[misc]
            feed.close()
            got = drain.join()
            first = number_of(got.splitlines(keepends=True)[0])
            assert whole.endswith(got)
            live = number_of(path.read_bytes().splitlines(keepends=True)[0])
            wanted = max(n for n in (*begins, live) if n <= since) if since else live
            assert first == wanted, since
    finally:
        trail.close()


def test_what_retention_removed_while_a_reader_was_away_is_a_gap(tmp_path: Path) -> None:
    """It begins with the oldest segment that is left."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path, rotate=4000, keep=2)
    fill(trail, 60)
    notes = Notes()
    reader, writer = os.pipe()
    feed = Feed(path, lambda: trail.head, writer, notes, unexpected, 2)
    drain = Drain(reader)
    try:
        until(lambda: feed.fed == trail.head.n)
        assert notes.gaps == [(3, first_kept(path) - 1)]
    finally:
        feed.close()
        trail.close()
    assert drain.join() == b"".join(read_lines(path))


def test_a_trail_that_its_writer_does_not_write_any_more_is_told(tmp_path: Path) -> None:
    """Another file in its place keeps the feed from nothing that is there; what is not, is said."""
    path = tmp_path / "audit.log"
    trail = AuditTrail.open(path)
    fill(trail, 3)
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    reader, writer = os.pipe()
    notes = Notes()
    feed = Feed(path, lambda: trail.head, writer, notes, unexpected)
    drain = Drain(reader)
    try:
        until(lambda: feed.fed == 3)
        time.sleep(0.2)
        assert notes.events == [], "the control: nothing is missing yet"
        copy.rename(path)

        def is_told() -> bool:
            fill(trail, 1)
            return bool(feed.failure)

        until(is_told)
        assert feed.failure.startswith("what was recorded after ")
        assert notes.events == ["replica-unfed"]
    finally:
        feed.close()
        trail.close()
        drain.join()


def test_a_feed_without_a_trail_says_so_and_waits_for_one(tmp_path: Path) -> None:
    """Its reader stands meanwhile."""
    path = tmp_path / "audit.log"
    notes = Notes()
    reader, writer = os.pipe()
    feed = Feed(path, lambda: Link(1, ""), writer, notes, unexpected)
    until(lambda: "no audit trail" in feed.failure)
    path.write_bytes(b'{"n":1,"x":1}\n')
    until(lambda: feed.fed == 1)
    feed.close()
    assert notes.events == ["replica-unfed", "replica-fed"]
    assert os.read(reader, 100) == path.read_bytes()
    os.close(reader)
