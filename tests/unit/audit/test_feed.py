"""A feed gives a pipe what the writer has acknowledged, and costs the writer nothing."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry.audit import feed as feed_module
from skerry.audit.chain import Link
from skerry.audit.feed import Feed
from skerry.audit.read import read_lines
from skerry.audit.writer import AuditTrail


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have feeds look for new records soon."""
    monkeypatch.setattr(feed_module, "PAUSE_S", 0.01)


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
        gaps: list[tuple[int, int]] = []
        feed = Feed(path, lambda: trail.head, writer, lambda a, b: gaps.append((a, b)), unexpected)
        drain = Drain(reader)
        fill(trail, 60)
        until(lambda: feed.fed == trail.head.n)
        assert feed.lag == 0
        feed.close()
        assert drain.join() == b"".join(read_lines(path))
        assert gaps == []
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
    gaps: list[tuple[int, int]] = []
    reader, writer = os.pipe()
    feed = Feed(path, lambda: trail.head, writer, lambda a, b: gaps.append((a, b)), unexpected)
    try:
        fill(trail, 300, size=1000)
        drain = Drain(reader)
        until(lambda: feed.fed == trail.head.n)
        feed.close()
        numbers = [int(line[5 : line.index(b",")]) for line in drain.join().splitlines()]
        missing = sorted(set(range(1, numbers[-1] + 1)) - set(numbers))
        assert missing
        assert [n for first, last in gaps for n in range(first, last + 1)] == missing
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


def test_a_feed_waits_for_a_trail_between_two_names_and_says_why_it_ends(tmp_path: Path) -> None:
    """For a moment of a rotation there is no live file; a file that is no trail ends it."""
    path = tmp_path / "audit.log"
    reader, writer = os.pipe()
    ended: list[str] = []
    feed = Feed(path, lambda: Link(1, ""), writer, unexpected, ended.append)
    time.sleep(0.05)
    assert ended == []
    path.write_bytes(b"no record\n")
    until(lambda: bool(ended))
    assert "cannot be fed" in ended[0]
    feed.close()
    assert os.read(reader, 10) == b""
    os.close(reader)
