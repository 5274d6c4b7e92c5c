"""What waits for the audit writer: each record is told once, notes stay in their order."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.audit.messages import MAX_PACKED, Entry
from skerry.audit.outbox import Item, Outbox
from skerry.audit.record import Record
from skerry.errors import AuditUnavailable, WireError


def entry(number: int, size: int = 0) -> Entry:
    """Return a record that is told apart by its time."""
    return Entry("cut", '{"x":"' + "y" * size + '"}', 0, number)


def as_record(number: int, event: str = "cut") -> Record:
    """Return how it stands in the trail."""
    return Record(1, "", number, "", event, {"x": ""}, "")


def in_loop(work: Callable[[asyncio.AbstractEventLoop], None]) -> None:
    """Run with a loop, which futures need."""

    async def main() -> None:
        work(asyncio.get_running_loop())

    asyncio.run(main())


def send_all(box: Outbox) -> list[int]:
    """Send everything and return it by time."""
    sent = []
    while items := box.take():
        box.sent(items)
        sent += [item.entry.mono_ns for item in items]
    return sent


def test_a_message_is_bounded() -> None:
    """No message holds more than `MAX_PACKED` bytes of records, unless it is a single one."""
    box = Outbox()
    for number in range(10):
        box.note(entry(number, 30_000))
    box.note(entry(10, MAX_PACKED))
    assert [len(box.take()) for _ in range(7)] == [2, 2, 2, 2, 2, 1, 0]


def test_refused_notes_stay_in_their_place() -> None:
    """They are sent again before what came later; a refused append is told and gone."""

    def work(loop: asyncio.AbstractEventLoop) -> None:
        box = Outbox()
        futures = [loop.create_future() for _ in range(2)]
        box.note(entry(1))
        box.append(entry(2), futures[0])
        box.note(entry(3))
        assert send_all(box) == [1, 2, 3]
        box.note(entry(4))
        box.append(entry(5), futures[1])
        box.refuse(3, "full")
        assert isinstance(futures[0].exception(), AuditUnavailable)
        assert (box.refused, futures[1].done()) == (1, False)
        assert send_all(box) == [1, 3, 4, 5]
        assert not box.written(7, 4)
        assert futures[1].result() == 10
        assert not box

    in_loop(work)


def test_a_probe_is_not_sent_again() -> None:
    """A refused probe is gone; one that was written is told."""
    box = Outbox()
    box.sent([Item(entry(1), "probe")])
    box.refuse(1, "full")
    assert not box
    box.sent([Item(entry(2), "probe")])
    assert box.written(1, 1)


def test_answers_to_nothing_are_refused() -> None:
    """More answers than questions are a broken writer."""
    box = Outbox()
    box.note(entry(1))
    for count in (1, -1):
        with pytest.raises(WireError):
            box.written(1, count)
        with pytest.raises(WireError):
            box.refuse(count, "")
    send_all(box)
    box.written(1, 1)


@given(st.integers(0, 12), st.integers(0, 12), st.lists(st.integers(0, 12)), st.data())
def test_after_a_death_the_trail_tells_what_was_written(
    sent: int, written: int, own: list[int], data: st.DataObject
) -> None:
    """Of what was sent a beginning is in the trail, the writer's own records between; the rest
    of the notes is sent again, in order, once, and no append is."""
    written = min(written, sent)
    kinds = data.draw(st.lists(st.booleans(), min_size=sent, max_size=sent))

    def work(loop: asyncio.AbstractEventLoop) -> None:
        box = Outbox()
        futures = []
        for number, append in enumerate(kinds):
            if append:
                futures.append(loop.create_future())
                box.append(entry(number), futures[-1])
            else:
                box.note(entry(number))
        send_all(box)
        box.refuse_appends("dead")
        there = [as_record(number) for number in range(written)]
        for where in own:
            there.insert(min(where, len(there)), as_record(99, "segment"))
        box.reconcile(there)
        assert send_all(box) == [n for n in range(written, sent) if not kinds[n]]
        assert all(isinstance(future.exception(), AuditUnavailable) for future in futures)
        assert not box.full()

    in_loop(work)


def test_a_waiter_that_was_cancelled_is_passed_over() -> None:
    """Its record may be written; nobody is told."""

    def work(loop: asyncio.AbstractEventLoop) -> None:
        box = Outbox()
        futures = [loop.create_future() for _ in range(3)]
        for number, future in enumerate(futures):
            box.append(entry(number), future)
        futures[0].cancel()
        futures[1].cancel()
        send_all(box)
        box.written(1, 1)
        box.refuse(1, "full")
        box.written(2, 1)
        assert futures[2].result() == 2

    in_loop(work)
