"""What guests are denied: by what record, in which words, and what neither of them tells."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from skerry.errors import DeciderUnavailable, StaleGeneration
from skerry.monitor.mediate import Parties
from skerry.monitor.table import Channel
from skerry.node import denials, hypercalls, offers
from skerry.xsm.request import Verdict
from tests.support.hypercalls import Said, Services, play, play_in_no_time, slowly

PAIRS = 5
"""Pairs of calls for each order; any single one that is out of order tells."""


def recorded(host: Services, said: Said) -> Mapping[str, object]:
    """Return the denial that an answer gives the number of."""
    event, fields = host.audit.records[int(said.fields["record"]) - 1]
    assert event == "deny"
    return fields


def cause(host: Services, said: Said) -> object:
    """Return the code of what the owner reads of an answer."""
    why = recorded(host, said)["why"]
    assert isinstance(why, dict)
    return why["code"]


def gone(host: Services) -> None:
    """Let nobody decide any more."""

    async def decide(hook: str, parties: Parties) -> Verdict:
        raise DeciderUnavailable("the policy manager is gone")

    host.monitor.mediator.decider.decide = decide  # type: ignore[method-assign]


def in_order(folder: Path, quantum_s: float) -> dict[str, bool]:
    """Say of each name whether its record came before that of a name asked for after it."""
    found: dict[str, bool] = {}

    async def scene(host: Services) -> None:
        assert (await host.guest("ledger").call("offer ledger")).end == "ok"
        slowly(host)
        stranger = host.guest("stranger")
        for name in ("ledger", "spare", "no-such-name"):
            for _ in range(PAIRS):
                pair = stranger.send_all(f"connect {name}", "connect no-other-name")
                first, second = [await stranger.answer(identity) for identity in pair]
                assert {first.code, second.code} == {denials.NO_SERVICE}
                before = int(first.fields["record"]) < int(second.fields["record"])
                found[name] = found.get(name, True) and before
                await asyncio.sleep(1.0)

    play_in_no_time(folder, scene, quantum_s=quantum_s)
    return found


def test_the_records_number_does_not_tell_a_hidden_name_from_an_unknown_one(
    tmp_path: Path,
) -> None:
    """Records have the order of the calls. The control: without the quantum, they have not."""
    assert set(in_order(tmp_path, denials.QUANTUM_S).values()) == {True}
    plain = in_order(tmp_path, 0.0)
    assert (plain["ledger"], plain["no-such-name"]) == (False, True)


def test_while_nobody_decides_every_name_gets_one_answer_with_a_record(tmp_path: Path) -> None:
    """Its record says the real cause, also to a client that the policy would allow."""

    async def scene(host: Services) -> None:
        await host.guest("ledger").call("offer ledger")
        assert (await host.guest("bank").call("connect ledger")).end == "ok"
        gone(host)
        for name in ("stranger", "bank"):
            said = [await host.guest(name).call(f"connect {n}") for n in ("ledger", "no-such-name")]
            assert {one.code for one in said} == {denials.NO_SERVICE}
            assert [cause(host, one) for one in said] == [
                "DECIDER-UNAVAILABLE",
                denials.NO_SERVICE,
            ]

    play(tmp_path, scene)


def refused_meanwhile(host: Services) -> None:
    """Let `bank` get another label as soon as it was found that it may be bound to `ledger`."""
    bind = host.monitor.bind

    async def late(*ends: str, **how: str) -> object:
        host.monitor.domain("bank").label = host.monitor.domain("stranger").label
        return await bind(*ends, **how)  # type: ignore[arg-type] # as it was called

    host.monitor.bind = late  # type: ignore[assignment, method-assign]


def test_a_refusal_that_comes_while_a_stream_is_bound_is_hidden_too(tmp_path: Path) -> None:
    """It is answered as an unknown name is, at a quantum; its record is that of the binding."""

    async def scene(host: Services) -> None:
        bank, loop = host.guest("bank"), asyncio.get_running_loop()
        await host.guest("ledger").call("offer ledger")
        unknown = await bank.call("connect no-such-name")
        refused_meanwhile(host)
        began = loop.time()
        said = await bank.call("connect ledger")
        assert loop.time() - began >= denials.QUANTUM_S
        assert {**said.fields, "record": ""} == {**unknown.fields, "record": ""}
        assert cause(host, said) == "STE-NO-SHARED-TYPE"

    play_in_no_time(tmp_path, scene, quantum_s=denials.QUANTUM_S)


def test_a_stream_cut_while_it_was_bound_is_judged_again(tmp_path: Path) -> None:
    """Refused by now, it is hidden; still allowed, the caller hears that it may ask again."""

    async def scene(host: Services) -> None:
        bank = host.guest("bank")
        await host.guest("ledger").call("offer ledger")

        async def stale(*_: object, **__: object) -> object:
            raise StaleGeneration("it was cut while it was being bound")

        host.monitor.bind = stale  # type: ignore[assignment, method-assign]
        said = await bank.call("connect ledger")
        assert (said.end, said.code, cause(host, said)) == ("denied", *["GENERATION-STALE"] * 2)
        refused_meanwhile(host)
        hidden = await bank.call("connect ledger")
        assert (hidden.code, cause(host, hidden)) == (denials.NO_SERVICE, "STE-NO-SHARED-TYPE")

    play(tmp_path, scene)


def test_a_call_that_binds_nothing_is_never_on_record_as_allowed(tmp_path: Path) -> None:
    """Where the first question fails and a second would be allowed: no wall is touched either.

    The control: asked again, it is allowed, recorded, and the wall remembers it.
    """

    async def scene(host: Services) -> None:
        bank, decider = host.guest("bank"), host.monitor.mediator.decider
        await host.guest("north").call("offer north")
        allowed, touched = len(host.audit.events("allow")), []
        decide, touch = decider.decide, decider.touch

        async def once(hook: str, parties: Parties) -> Verdict:
            decider.decide = decide  # type: ignore[method-assign]
            raise DeciderUnavailable("the policy manager is being started again")

        async def remember(*pair: object) -> None:
            touched.append(pair)
            await touch(*pair)  # type: ignore[arg-type] # as it was called

        decider.decide, decider.touch = once, remember  # type: ignore[method-assign]
        said = await bank.call("connect north")
        assert cause(host, said) == "DECIDER-UNAVAILABLE"
        assert (len(host.audit.events("allow")), touched) == (allowed, [])
        assert (await bank.call("connect north")).end == "ok"
        assert len(host.audit.events("allow")) == allowed + 1
        assert touched

    play(tmp_path, scene)


def test_a_limit_is_denied_with_a_record(tmp_path: Path) -> None:
    """Streams of a caller, channels of a domain or of the node, offers: each says its number."""

    async def scene(host: Services) -> None:
        bank, ledger = host.guest("bank"), host.guest("ledger")
        await ledger.call("offer ledger")
        assert (await bank.call("connect ledger")).end == "ok"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hypercalls, "STREAMS_MAX", 1)
            await full(host, "bank", "connect ledger")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host.monitor, "most", lambda name: 1 if name == "ledger" else 9)
            await full(host, "bank", "connect ledger")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host.monitor.channels, "limit", 1)
            await full(host, "bank", "connect ledger")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(offers, "OFFERS_MAX", 1)
            await full(host, "ledger", "offer spare")
        assert (await bank.call("connect ledger")).end == "ok", "the control"

    play(tmp_path, scene)


async def full(host: Services, name: str, words: str) -> None:
    """Call something that meets a limit, and look into the one record that it leaves."""
    before = len(host.audit.records)
    said = await host.guest(name).call(words)
    assert (said.end, said.code) == ("denied", "LIMIT-REACHED")
    assert len(host.audit.records) == before + 1
    fields = recorded(host, said)
    assert cause(host, said) == "LIMIT-REACHED"
    assert (fields["domain"], f"{fields['call']} {fields['asked']}") == (name, words)
    assert (await host.guest(name).call(f"why {said.fields['record']}")).fields == said.fields


def test_what_a_stream_would_join_is_known_before_it_is_bound(tmp_path: Path) -> None:
    """A wall that only whoever is joined to the server closes: the denial is the call's own, at the
    time of any, and no bind was tried. The control: nobody is joined yet."""

    async def scene(host: Services) -> None:
        bank, decider = host.guest("bank"), host.monitor.mediator.decider
        ends = host.monitor.domain("ledger"), host.monitor.domain("stranger")
        stack = host.node.setup.stack
        north, south, label = (stack.label(n, "domain") for n in ("north", "south", "bank"))
        await host.guest("ledger").call("offer ledger")
        await decider.touch(label, north)
        assert (await bank.call("connect ledger")).end == "ok"
        for channel in host.monitor.channels:
            host.monitor.cut(channel.number)
        host.monitor.readmit_channel(Channel(99, "stream", *ends, "x", one_way=False))
        await decider.touch(ends[1].label, south)
        said = await bank.call("connect ledger")
        assert cause(host, said) == "CW-HISTORY-CONFLICT"
        assert host.audit.events("deny")[-1]["call"] == "connect"

    play(tmp_path, scene)
