"""Guests that attack by their port: time, floods, garbage. Each with the layer off as a control."""

from __future__ import annotations

import asyncio
import bisect
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.node import caller, denials, hypercalls
from skerry.wire import hypercall as wire
from tests.support.hypercalls import Services, play, play_in_no_time, slowly

ASKED = ("ledger", "spare", "no-such-name")
"""Hidden from `stranger`, not offered, unknown."""

SAMPLES = 60
LOST = 1.63
"""By Kolmogorov and Smirnov: samples of one distribution differ by more in 1 % of all cases."""


def measure(folder: Path, quantum_s: float) -> dict[str, list[float]]:
    """Return how long `stranger` waits for the answer to each name, in turn."""
    found: dict[str, list[float]] = {name: [] for name in ASKED}

    async def scene(host: Services) -> None:
        assert (await host.guest("ledger").call("offer ledger")).end == "ok"
        slowly(host)
        stranger, loop = host.guest("stranger"), asyncio.get_running_loop()
        for _ in range(SAMPLES):
            for name in ASKED:
                await asyncio.sleep(1 / caller.RATE)
                began = loop.time()
                said = await stranger.call(f"connect {name}")
                found[name].append(loop.time() - began)
                assert said.code == denials.NO_SERVICE

    play_in_no_time(folder, scene, quantum_s=quantum_s)
    return found


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the Kolmogorov-Smirnov statistic, scaled to be compared with `LOST`."""
    ordered = sorted(one), sorted(other)
    apart = max(
        abs(bisect.bisect_right(ordered[0], at) - bisect.bisect_right(ordered[1], at)) / SAMPLES
        for at in (*one, *other)
    )
    return float(apart * (SAMPLES / 2) ** 0.5)


def test_the_time_of_an_answer_does_not_tell_a_hidden_name_from_an_unknown_one(
    tmp_path: Path,
) -> None:
    """Quantised, the three are one distribution; the control: without it, they are told apart."""
    timed = measure(tmp_path, denials.QUANTUM_S)
    for name in ASKED[1:]:
        assert distance(timed["ledger"], timed[name]) < LOST
    plain = measure(tmp_path, 0.0)
    assert distance(plain["ledger"], plain["no-such-name"]) > LOST


def flooded(folder: Path, seconds: float, data: bytes) -> int:
    """Keep a guest's port full for so long; return how many records it left."""
    left: list[int] = []

    async def scene(host: Services) -> None:
        flooder, loop = host.guest("stranger").machine.guest, asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            while flooder.call(data * 64) == len(data) * 64:
                pass
            while flooder.answers():
                pass
            asked = loop.time()
            assert (await host.guest("bank").call("label")).end == "ok"
            assert loop.time() - asked < 0.1
            await asyncio.sleep(1.0)
        left.append(len(host.audit.events("deny")))

    play_in_no_time(folder, scene)
    return left[0]


@pytest.mark.parametrize("garbage", [b"\xff" * 100 + b"\n", b"x" * 100, b"\n", b"1 a label\n"])
def test_a_flood_that_asks_for_nothing_leaves_no_record(tmp_path: Path, garbage: bytes) -> None:
    """And others are answered at once. The control is the flood of calls below."""
    assert flooded(tmp_path, 60.0, garbage) == 0


def test_a_flood_of_calls_is_taken_at_the_rate(tmp_path: Path) -> None:
    """It leaves as many records as the limit says; the control: at another rate that many more."""
    line, seconds = b"1 f connect no-such-name\n", 60.0
    most = caller.BURST + caller.RATE * seconds
    slow = flooded(tmp_path, seconds, line)
    assert 0.9 * most < slow <= most + caller.CALLS_MAX
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caller, "RATE", 10 * caller.RATE)
        assert flooded(tmp_path, seconds, line) > 5 * slow


def test_a_guest_that_reads_nothing_costs_bounded_memory(tmp_path: Path) -> None:
    """Answers that it does not take are few, and then it is read no more."""

    async def scene(host: Services) -> None:
        deaf = host.guest("ledger").machine.guest
        held = host.node.hypercalls._callers[host.monitor.domain("ledger")]
        await host.guest("ledger").call("offer ledger")
        sent = peak = 0
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(300):
            sent += deaf.call(b"1 d label\n" * 100)
            await asyncio.sleep(60.0)
            bound = await host.guest("bank").call("connect ledger")
            await host.guest("bank").call(f"close {bound.fields['channel']}")
            assert len(held._answers) + len(held._calls) <= 2 * caller.CALLS_MAX
            assert len(held.connected) <= hypercalls.STREAMS_MAX
            host.audit.records.clear()
            peak = max(peak, tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert sent < 2 << 20, "the guest waits"
        assert peak - before < 4 << 20

    play_in_no_time(tmp_path, scene)


GUEST_BYTES = st.lists(
    st.one_of(
        st.binary(max_size=200),
        st.sampled_from(
            [
                b"1 a label\n",
                b"1 a offer ledger\n",
                b"1 a offer board\n",
                b"1 a connect ledger\n",
                b"1 a connect board\n",
                b"1 a connect north\n",
                b"1 a connect no\n",
                b"1 a close ledger\n",
                b"1 a close 1\n",
                b"1 a close 3\n",
                b"1 a why 9\n",
                b"1 a why 999999999999999999\n",
                b"1 a why 1",
                b"x" * wire.CALL_MAX,
                b"\n",
            ]
        ),
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(["ledger", "bank", "stranger"]), GUEST_BYTES), max_size=4)
)
def test_whatever_guests_send_every_next_call_is_answered_and_the_policy_holds(
    tmp_path_factory: pytest.TempPathFactory, sent: list[tuple[str, list[bytes]]]
) -> None:
    """The real server: nothing is logged as a defect, and nobody is bound who may not be."""

    async def scene(host: Services) -> None:
        for name, pieces in sent:
            for piece in pieces:
                host.guest(name).machine.guest.call(piece)
                await asyncio.sleep(0.5)
            host.guest(name).machine.guest.call(b"\n")
        for name in ("ledger", "bank", "stranger", "north"):
            guest = host.guest(name)
            guest.read()
            assert (await guest.call("label", 600.0)).end == "ok"
        for channel in host.monitor.channels:
            assert {channel.source.name, channel.sink.name} == {"bank", "ledger"}
            assert channel.asked in ("ledger", "board")

    with pytest.MonkeyPatch.context() as patch:
        defects: list[object] = []
        patch.setattr(caller.log, "exception", lambda *words: defects.append(words))
        play_in_no_time(tmp_path_factory.mktemp("fuzz"), scene)
        assert defects == []


def test_a_defect_in_one_call_is_a_failed_call(tmp_path: Path) -> None:
    """The control of the test above: what escapes is seen, and the next call is answered."""

    async def scene(host: Services) -> None:
        def broken(*_: object) -> bool:
            raise RuntimeError("a defect")

        host.node.hypercalls.offers.owns = broken  # type: ignore[assignment, method-assign]
        assert await host.guest("bank").call("offer ledger") == ("failed", "INTERNAL", {})
        assert (await host.guest("bank").call("label")).end == "ok"
        host.node.hypercalls._label = broken  # type: ignore[assignment, method-assign]
        host.node.hypercalls.follow()
        assert (await host.guest("bank").call("close 1")).code == "NO-CHANNEL"

    play(tmp_path, scene)


def test_who_calls_is_known_by_the_port_and_not_by_what_is_said(tmp_path: Path) -> None:
    """A guest that names another, its ID or its number, is answered as itself."""

    async def scene(host: Services) -> None:
        bank, stranger = host.guest("bank"), host.guest("stranger")
        identity = bank.send("label")
        stranger.machine.guest.call(f"1 {identity} label\n".encode())
        assert (await stranger.answer(identity)).fields["name"] == "stranger"
        assert (await bank.answer(identity)).fields["name"] == "bank"
        assert (await stranger.call("offer ledger")).end == "denied"
        assert (await host.guest("ledger").call("offer ledger")).end == "ok", "the control"

    play(tmp_path, scene)
