"""What helpers report: told once, bounded, recorded at a bounded pace, and never believed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping

import msgspec
import pytest

from skerry.device.uplink import denials, report
from skerry.device.uplink.denials import BURST, Denials
from skerry.device.uplink.report import MAX_ASKED, Refused, Reports

Records = list[tuple[str, Mapping[str, object]]]


def pipe() -> tuple[int, int]:
    """Return both ends of a pipe in packet mode."""
    return os.pipe2(os.O_DIRECT | os.O_CLOEXEC)


def read(end: int) -> Refused:
    """Return the next report."""
    return msgspec.json.decode(os.read(end, 4096), type=Refused)


def test_the_same_refusal_is_told_once_and_then_counted() -> None:
    """Until its time is over; the count goes with the next report, or alone after some time."""
    reading, writing = pipe()
    reports = Reports(writing)
    for second in range(5):
        reports.tell("a:1", "no", 100.0 + second)
    reports.tell("b:1", "no", 106.0)
    assert read(reading) == Refused("a:1", "no", 0)
    assert read(reading) == Refused("b:1", "no", 4)
    reports.tell("b:1", "no", 107.0)
    reports.settle(108.0)
    reports.settle(107.0 + report.AGAIN_S)
    assert read(reading) == Refused("", "", 1)
    reports.tell("a:1", "no", 101.0 + report.AGAIN_S)
    assert read(reading) == Refused("a:1", "no", 0)
    os.close(reading)
    os.close(writing)


def test_what_finds_no_room_is_counted_and_nobody_waits() -> None:
    """A thousand different refusals that nobody reads: it returns, and knows how many are lost."""
    reading, writing = pipe()
    reports = Reports(writing)
    began = time.monotonic()
    for number in range(1000):
        reports.tell(f"{number}:1", "no", 100.0)
    assert time.monotonic() - began < 2
    told = 0
    os.set_blocking(reading, False)
    while True:
        try:
            read(reading)
            told += 1
        except BlockingIOError:
            break
    reports.tell("last:1", "no", 100.0)
    assert read(reading) == Refused("last:1", "no", 1000 - told)
    assert len(reports._told) <= report.REMEMBERED
    os.close(reading)
    os.close(writing)


def recorded(messages: list[bytes], wait_s: float = 0.3) -> Records:
    """Send these to the node, and return what it records in this time."""
    records: Records = []

    async def run() -> None:
        reading, writing = pipe()
        about = {"channel": 7, "domain": "agent"}
        made = Denials(reading, lambda event, fields: records.append((event, fields)), about)
        os.set_blocking(writing, False)
        for message in messages:
            os.write(writing, message)
            await asyncio.sleep(0)
        await asyncio.sleep(wait_s)
        os.close(writing)
        await asyncio.sleep(0.05)
        made.close()
        os.close(reading)

    asyncio.run(run())
    return records


def test_a_report_is_recorded_with_the_use() -> None:
    """What was asked, why not and how many more, of which channel and domain."""
    said = msgspec.json.encode(Refused("evil.test", "no", 3))
    fields = {"channel": 7, "domain": "agent", "asked": "evil.test", "reason": "no", "more": 3}
    assert recorded([said]) == [(denials.EVENT, fields)]


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xfe",
        b"{}",
        b"[]",
        b'{"asked": 1, "reason": 2}',
        b'{"asked": "x"',
        b"\0" * 2000,
        b'{"asked": "a", "reason": "r", "more": "x"}',
    ],
)
def test_what_is_no_report_is_said_to_be_none(said: bytes) -> None:
    """A helper in an attacker's hands breaks nothing; what it says is not taken over."""
    ((event, fields),) = recorded([said])
    assert event == denials.EVENT
    assert fields["reason"] == "its helper says something that is no report"
    assert "asked" not in fields


def test_a_report_of_any_length_and_number_is_bounded() -> None:
    """Text is cut off; a count is no negative and no endless number."""
    long = msgspec.json.encode({"asked": "x" * 1500, "reason": "y" * 400, "more": -5})
    ((_, fields),) = recorded([long])
    assert (len(str(fields["asked"])), len(str(fields["reason"]))) == (MAX_ASKED, MAX_ASKED)
    assert "more" not in fields
    ((_, fields),) = recorded([msgspec.json.encode({"asked": "", "reason": "", "more": 1 << 60})])
    assert fields["more"] == denials.MAX_MORE


def test_a_flood_is_recorded_at_a_bounded_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many at once, then one in each while; the rest stays in the pipe."""
    monkeypatch.setattr(denials, "REFILL_S", 0.2)
    said = [msgspec.json.encode(Refused(f"{n}", "no")) for n in range(BURST + 10)]
    records = recorded(said, 0.5)
    assert BURST <= len(records) <= BURST + 4
