"""What guests may ask of their node: every call, what is refused, and what is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

from skerry.label import Label
from skerry.monitor.mediate import Parties
from skerry.node import caller, hypercalls, offers
from skerry.wire import control as wire
from skerry.xsm.request import Verdict
from tests.support.hypercalls import POLICY, SYSTEM, Services, play
from tests.support.reconciling import up
from tests.unit.control.test_calls import Client


def test_a_guest_is_told_what_it_is_and_whenever_that_changes(tmp_path: Path) -> None:
    """The first word comes unasked; a relabel and a load are told, and what is asked is so."""

    async def scene(host: Services) -> None:
        bank = host.guest("bank")
        first = await bank.told("-label")
        assert (first["name"], first["label"], first["generation"]) == ("bank", "bank", "1")
        assert first["policy"] == host.node.setup.stack.digest
        assert (await bank.call("label")) == ("ok", "", first)
        await host.node.relabel(host.node.setup.owner, "bank", "ledger")
        assert (await bank.told("-label"))["label"] == "ledger"
        assert (await bank.call("label")).fields["label"] == "ledger"
        other = POLICY.replace('version = "1.0"', 'version = "1.1"')
        await up(host, SYSTEM, other)
        loaded = await bank.told("-label")
        assert loaded["generation"] == "2"
        assert loaded["policy"] == host.node.setup.stack.digest != first["policy"]
        while loaded["label"] != "bank":  # which the file gives it again, after the policy
            loaded = await bank.told("-label")

    play(tmp_path, scene)


def test_a_connected_pair_has_a_two_way_stream_by_one_name(tmp_path: Path) -> None:
    """Both get a port of the name that both are told; bytes cross both ways; the row says who."""

    async def scene(host: Services) -> None:
        bank, ledger = host.guest("bank"), host.guest("ledger")
        assert (await ledger.call("offer ledger")).end == "ok"
        said = await bank.call("connect ledger")
        port, number = said.fields["port"], int(said.fields["channel"])
        assert (said.end, port) == ("ok", f"ledger.{number}")
        told = await ledger.told("-connected")
        assert told == {
            "service": "ledger",
            "channel": str(number),
            "port": port,
            "peer": "bank",
            "label": "bank",
        }
        for one, other in ((bank, ledger), (ledger, bank)):
            assert one.machine.guest.write(port, b"hello") == 5
            assert other.machine.guest.read(port) == b"hello"
        rows = await host.node.channels(host.node.setup.owner)
        assert [(r["source"], r["sink"], r["asked"]) for r in rows] == [
            ("bank", "ledger", "ledger")
        ]
        allow = host.audit.events("allow")[-1]
        assert (allow["hook"], allow["asked"]) == ("channel_two_way", "ledger")

    play(tmp_path, scene)


def test_a_server_is_told_no_label_that_came_while_its_sight_was_asked(tmp_path: Path) -> None:
    """Who may be seen as it was is not told as what it has become. The control: it stays."""

    async def scene(host: Services) -> None:
        ledger, decider = host.guest("ledger"), host.monitor.mediator.decider
        await ledger.call("offer ledger")
        decide = decider.decide
        for now, told in (("bank", {"peer": "bank", "label": "bank"}), ("stranger", {})):
            other = host.monitor.domain(now).label

            async def late(hook: str, parties: Parties, other: Label = other) -> Verdict:
                verdict = await decide(hook, parties)
                if hook == "domain_getdomaininfo":
                    host.monitor.domain("bank").label = other
                return verdict

            decider.decide = late  # type: ignore[method-assign]
            host.guest("bank").send("connect ledger")
            said = await ledger.told("-connected")
            assert {key: said[key] for key in said if key in ("peer", "label")} == told

    play(tmp_path, scene)


def test_a_refused_stream_leaves_no_port_in_either_guest(tmp_path: Path) -> None:
    """Nothing is bound and the server hears nothing. The control: one that is allowed."""

    async def scene(host: Services) -> None:
        ledger = host.guest("ledger")
        await ledger.call("offer ledger")
        said = await host.guest("stranger").call("connect ledger")
        assert said.end == "denied"
        assert len(host.monitor.channels) == 0
        assert host.machines["stranger"].guest.ports() == ledger.machine.guest.ports() == []
        assert (await host.guest("bank").call("connect ledger")).end == "ok"
        assert len(ledger.machine.guest.ports()) == 1
        await ledger.told("-connected")
        assert [event for event, _ in ledger.unasked if event == "-connected"] == []

    play(tmp_path, scene)


def test_no_guest_takes_a_name_that_is_not_its_labels(tmp_path: Path) -> None:
    """Before the right one has come and after; the control: the right one, from either domain."""

    async def scene(host: Services) -> None:
        for name in ("bank", "stranger", "north"):
            said = await host.guest(name).call("offer ledger")
            assert (said.end, said.code) == ("denied", "NO-SERVICE")
        assert (await host.guest("bank").call("connect ledger")).code == "NO-SERVICE"
        assert (await host.guest("ledger-2").call("offer ledger")).end == "ok"
        assert (await host.guest("ledger").call("offer ledger")).code == "SERVICE-TAKEN"
        assert (await host.guest("ledger-2").call("offer ledger")).end == "ok", "idempotent"
        assert (await host.guest("ledger-2").call("close ledger")).end == "ok"
        assert (await host.guest("ledger").call("offer ledger")).end == "ok"

    play(tmp_path, scene)


def test_who_may_not_see_is_told_nothing_and_who_may_is_told_why(tmp_path: Path) -> None:
    """A hidden name is as an unknown one; a public one says code and sentence; a seen one all."""

    async def scene(host: Services) -> None:
        ledger, stranger = host.guest("ledger"), host.guest("stranger")
        await ledger.call("offer ledger")
        await ledger.call("offer board")
        answers = [
            await stranger.call(f"connect {name}") for name in ("ledger", "spare", "no-such-name")
        ]
        records = [said.fields["record"] for said in answers]
        assert len(set(records)) == 3
        texts = [{**said.fields, "record": ""} for said in answers]
        assert texts[0] == texts[1] == texts[2]
        assert {said.code for said in answers} == {"NO-SERVICE"}
        # What the owner reads of the first one is why.
        denied = host.audit.records[int(records[0]) - 1][1]
        assert denied["why"]["code"] == "STE-NO-SHARED-TYPE"  # type: ignore[index] # a record's
        public = await stranger.call("connect board")
        assert (public.end, public.code) == ("denied", "STE-NO-SHARED-TYPE")
        assert set(public.fields) == {"code", "sentence", "record"}
        assert "ledger" not in public.fields["sentence"]

        bank, north = host.guest("bank"), host.guest("north")
        await north.call("offer north")
        assert (await bank.call("connect north")).end == "ok"
        await host.node.kill("north")
        await host.node.start(host.node.setup.owner, "south")
        assert (await host.guest("south").call("offer south")).end == "ok"
        seen = await bank.call("connect south")
        assert (seen.end, seen.code) == ("denied", "CW-HISTORY-CONFLICT")
        assert (seen.fields["subject"], seen.fields["target"]) == ("bank", "south")
        assert seen.fields["rule"]

    play(tmp_path, scene)


def test_why_says_a_refusal_again_to_whom_it_was_said_and_to_nobody_else(tmp_path: Path) -> None:
    """Also the one that says nothing; another guest's record, or an allow's, is no record."""

    async def scene(host: Services) -> None:
        stranger, bank = host.guest("stranger"), host.guest("bank")
        await host.guest("ledger").call("offer board")
        public = await stranger.call("connect board")
        hidden = await stranger.call("connect no-such-name")
        assert (await bank.call("connect board")).end == "ok"
        for said in (public, hidden):
            again = await stranger.call(f"why {said.fields['record']}")
            assert again == ("ok", "", said.fields)
            other = await bank.call(f"why {said.fields['record']}")
            assert other == ("failed", "NO-RECORD", {})
        assert (await stranger.call("why 1")).code == "NO-RECORD"

    play(tmp_path, scene)


def test_why_hides_the_labels_again_from_who_may_see_no_more(tmp_path: Path) -> None:
    """What is told depends on who asks now, and not on who asked first."""

    async def scene(host: Services) -> None:
        bank = host.guest("bank")
        await host.guest("north").call("offer north")
        await bank.call("connect north")
        await host.node.kill("north")
        await host.node.start(host.node.setup.owner, "south")
        await host.guest("south").call("offer south")
        said = await bank.call("connect south")
        assert "target" in (await bank.call(f"why {said.fields['record']}")).fields
        await host.node.relabel(host.node.setup.owner, "bank", "ledger")
        again = await bank.call(f"why {said.fields['record']}")
        assert set(again.fields) == {"code", "sentence", "record"}

    play(tmp_path, scene)


def test_why_never_tells_a_label_that_the_guest_might_not_see_then(tmp_path: Path) -> None:
    """Though it may see the domain by now, which has another label. The control: it may see it."""

    async def scene(host: Services) -> None:
        stranger, owner = host.guest("stranger"), host.node.setup.owner
        await host.guest("ledger").call("offer board")
        said = await stranger.call("connect board")
        await host.node.relabel(owner, "ledger", "op")
        again = await stranger.call(f"why {said.fields['record']}")
        assert set(again.fields) == {"code", "sentence", "record"}
        await host.node.relabel(owner, "stranger", "op")
        again = await stranger.call(f"why {said.fields['record']}")
        assert "ledger" in str(again.fields["rule"] + again.fields["target"])

    play(tmp_path, scene)


def test_a_stream_is_closed_from_either_end_and_by_nobody_else(tmp_path: Path) -> None:
    """A stranger's number, an unknown one and a declared channel are one answer."""

    async def scene(host: Services) -> None:
        bank, ledger = host.guest("bank"), host.guest("ledger")
        await ledger.call("offer ledger")
        declared = await host.monitor.bind("bank", "ledger", port="declared")
        for closing in (bank, ledger):
            number = (await bank.call("connect ledger")).fields["channel"]
            for other in (host.guest("stranger"), host.guest("ledger-2")):
                assert await other.call(f"close {number}") == ("failed", "NO-CHANNEL", {})
            assert (await closing.call(f"close {number}")).end == "ok"
            assert await closing.call(f"close {number}") == ("failed", "NO-CHANNEL", {})
        assert (await bank.call(f"close {declared.number}")).code == "NO-CHANNEL"
        assert [channel.number for channel in host.monitor.channels] == [declared.number]
        await host.monitor.settle()
        assert bank.machine.guest.ports() == ledger.machine.guest.ports() == ["declared"]

    play(tmp_path, scene)


def test_what_a_server_no_longer_offers_goes_on_until_it_is_cut(tmp_path: Path) -> None:
    """Closing a name keeps who is there and lets nobody new in."""

    async def scene(host: Services) -> None:
        bank, ledger = host.guest("bank"), host.guest("ledger")
        await ledger.call("offer ledger")
        number = int((await bank.call("connect ledger")).fields["channel"])
        assert (await ledger.call("close ledger")).end == "ok"
        assert await ledger.call("close ledger") == ("failed", "NO-OFFER", {})
        assert (await bank.call("connect ledger")).code == "NO-SERVICE"
        assert number in host.open_channels()

    play(tmp_path, scene)


def test_a_relabelled_server_loses_its_names_and_their_streams(tmp_path: Path) -> None:
    """Though the policy would let the two go on: the client asked for a name, not for whoever."""

    async def scene(host: Services) -> None:
        bank, ledger = host.guest("bank"), host.guest("ledger")
        await ledger.call("offer ledger")
        await bank.call("connect ledger")
        kept = await host.monitor.bind("bank", "ledger", port="declared")
        done = await host.node.relabel(host.node.setup.owner, "ledger", "bank")
        assert (done["kept"], len(done["cut"])) == ((kept.number,), 1)  # type: ignore[arg-type] # a tuple
        assert host.open_channels() == {}
        assert (await bank.call("connect ledger")).code == "NO-SERVICE"
        assert (await ledger.call("offer ledger")).code == "NO-SERVICE"
        assert (await host.guest("ledger-2").call("offer ledger")).end == "ok"

    play(tmp_path, scene)


def test_a_server_is_told_what_it_serves_and_whenever_that_changes(tmp_path: Path) -> None:
    """At first nothing; and what it lost is told though it has its old label again by then."""

    async def scene(host: Services) -> None:
        ledger, owner = host.guest("ledger"), host.node.setup.owner
        assert await ledger.told("-offers") == {}
        for name, served in (("spare", "spare"), ("ledger", "ledger spare")):
            await ledger.call(f"offer {name}")
            assert await ledger.told("-offers") == {"services": served}
        await ledger.call("close spare")
        assert await ledger.told("-offers") == {"services": "ledger"}
        ledger.unasked.clear()
        await host.monitor.pause(owner, "ledger")
        await host.node.relabel(owner, "ledger", "bank")
        await host.node.relabel(owner, "ledger", "ledger")
        await host.monitor.resume(owner, "ledger")
        assert await ledger.told("-offers") == {}
        await ledger.call("label")
        assert [event for event, _ in ledger.unasked if event == "-offers"] == []

    play(tmp_path, scene)


def test_a_server_that_keeps_its_label_keeps_its_names(tmp_path: Path) -> None:
    """And their streams, where it is relabelled to what it is. The control: to another."""

    async def scene(host: Services) -> None:
        bank, ledger, owner = host.guest("bank"), host.guest("ledger"), host.node.setup.owner
        await ledger.call("offer ledger")
        await bank.call("connect ledger")
        await host.node.relabel(owner, "ledger", "ledger")
        await asyncio.sleep(0.01)
        assert list(host.open_channels().values()) == ["ledger"]
        assert (await bank.call("connect ledger")).end == "ok"
        assert host.audit.events("withdrawn") == []
        await host.node.relabel(owner, "ledger", "bank")
        assert (host.open_channels(), len(host.audit.events("withdrawn"))) == ({}, 1)

    play(tmp_path, scene)


def test_what_ends_serves_nothing_in_the_same_step(tmp_path: Path) -> None:
    """Before anything else is done: a name is nobody's while its server has still to be told."""

    async def scene(host: Services) -> None:
        await host.guest("ledger").call("offer ledger")
        offered, domain = host.node.hypercalls.offers, host.monitor.domain("ledger")
        label, domain.label = domain.label, host.monitor.domain("bank").label
        assert offered.server("ledger") is None
        domain.label = label
        assert offered.server("ledger") is domain
        host.monitor.kill("ledger")
        assert offered.server("ledger") is None
        assert offered.of(domain) == ["ledger"]
        await domain.gone.wait()
        await asyncio.sleep(0)
        assert offered.of(domain) == []

    play(tmp_path, scene)


def test_the_streams_of_a_domain_that_ends_are_cut_and_its_names_are_free(tmp_path: Path) -> None:
    """Whichever end dies; then another may serve the name."""

    async def scene(host: Services) -> None:
        bank, ledger = host.guest("bank"), host.guest("ledger")
        await ledger.call("offer ledger")
        await bank.call("connect ledger")
        host.machines["ledger"].die()
        await host.monitor.domain("ledger").gone.wait()
        assert host.open_channels() == {}
        assert (await host.guest("ledger-2").call("offer ledger")).end == "ok"
        await bank.call("connect ledger")
        await host.node.kill("bank")
        assert host.open_channels() == {}
        await host.monitor.settle()
        assert host.machines["ledger-2"].guest.ports() == []

    play(tmp_path, scene)


def test_a_policy_that_refuses_a_stream_cuts_it_before_the_load_returns(tmp_path: Path) -> None:
    """And the next call gets what the new policy says. The control: what it allows goes on."""

    async def scene(host: Services) -> None:
        bank, ledger = host.guest("bank"), host.guest("ledger")
        await ledger.call("offer ledger")
        await bank.call("connect ledger")
        same = POLICY.replace('version = "1.0"', 'version = "1.1"')
        await up(host, SYSTEM, same)
        assert len(host.open_channels()) == 1
        apart = same.replace('ste = ["books", "mail"]', 'ste = ["mail"]')
        await up(host, SYSTEM, apart)
        assert host.open_channels() == {}
        assert (await bank.call("connect ledger")).code == "NO-SERVICE"

    play(tmp_path, scene)


def test_a_service_that_the_file_no_longer_has_ends_with_its_streams(tmp_path: Path) -> None:
    """What else there is stays; who may load no policy may not change a service."""

    async def scene(host: Services) -> None:
        bank, ledger = host.guest("bank"), host.guest("ledger")
        for name in ("ledger", "spare"):
            await ledger.call(f"offer {name}")
            await bank.call(f"connect {name}")
        less = SYSTEM.replace('[services.ledger]\noffered-by = "ledger"\n', "")
        done = await up(host, less, POLICY)
        assert "change services" in done.plan
        assert list(host.open_channels().values()) == ["spare"]
        assert (await bank.call("connect ledger")).code == "NO-SERVICE"
        assert (await ledger.call("offer ledger")).code == "NO-SERVICE"
        assert (await bank.call("connect spare")).end == "ok"

    play(tmp_path, scene)


def test_a_name_of_ones_own_a_busy_name_and_garbage_fail_by_name(tmp_path: Path) -> None:
    """None of it is a refusal, and the next call is answered."""

    async def scene(host: Services) -> None:
        ledger = host.guest("ledger")
        await ledger.call("offer ledger")
        assert await ledger.call("connect ledger") == ("failed", "OWN-SERVICE", {})
        assert await ledger.call("connect") == ("failed", "MALFORMED", {})
        assert await ledger.call("connect ../ledger") == ("failed", "MALFORMED", {})
        assert await ledger.call("shutdown") == ("failed", "MALFORMED", {})
        assert await ledger.call("offer " + "x" * 200) == ("failed", "TOO-LONG", {})
        ledger.machine.guest.call(b"2 t77 label\n")
        assert await ledger.answer("t77") == ("failed", "VERSION", {})
        assert (await ledger.call("label")).end == "ok"

    play(tmp_path, scene)


def test_nothing_is_offered_or_bound_that_cannot_be_recorded(tmp_path: Path) -> None:
    """A dead trail refuses both, and closing works. The control: it lives again."""

    async def scene(host: Services) -> None:
        bank, ledger = host.guest("bank"), host.guest("ledger")
        await ledger.call("offer ledger")
        number = (await bank.call("connect ledger")).fields["channel"]
        host.audit.dead = True
        assert (await ledger.call("offer spare")).code == "AUDIT-UNAVAILABLE"
        assert (await bank.call("connect spare")).code == "NO-SERVICE"
        assert (await bank.call("connect ledger")).code == "AUDIT-UNAVAILABLE"
        assert (await bank.call(f"close {number}")).end == "ok"
        assert len(host.open_channels()) == 0
        host.audit.dead = False
        assert (await ledger.call("offer spare")).end == "ok"
        assert (await bank.call("connect ledger")).end == "ok"

    play(tmp_path, scene)


def test_limits_refuse_by_name_and_come_back(tmp_path: Path) -> None:
    """Streams of one caller, and services of one domain; what is closed makes room."""

    async def scene(host: Services) -> None:
        bank, ledger = host.guest("bank"), host.guest("ledger")
        await ledger.call("offer ledger")
        numbers = []
        for _ in range(hypercalls.STREAMS_MAX):
            numbers.append((await bank.call("connect ledger")).fields["channel"])
        full = await bank.call("connect ledger")
        assert (full.end, full.code) == ("denied", "LIMIT-REACHED")
        assert len(host.open_channels()) == hypercalls.STREAMS_MAX
        await bank.call(f"close {numbers[0]}")
        assert (await bank.call("connect ledger")).end == "ok"

    play(tmp_path, scene)


def test_a_domain_serves_no_more_names_than_it_may(tmp_path: Path) -> None:
    """One more is refused; one that is closed makes room."""
    names = [f"s{number}" for number in range(offers.OFFERS_MAX + 1)]
    more = "".join(f'[services.{name}]\noffered-by = "ledger"\n' for name in names)

    async def scene(host: Services) -> None:
        ledger = host.guest("ledger")
        said = [await ledger.call(f"offer {name}") for name in names]
        assert [one.end for one in said] == ["ok"] * offers.OFFERS_MAX + ["denied"]
        assert said[-1].code == "LIMIT-REACHED"
        await ledger.call(f"close {names[0]}")
        assert (await ledger.call(f"offer {names[-1]}")).end == "ok"

    play(tmp_path, scene, system=SYSTEM + more)


def test_the_oldest_refusals_are_forgotten(tmp_path: Path) -> None:
    """A guest that collects refusals costs bounded memory."""

    async def scene(host: Services) -> None:
        stranger = host.guest("stranger")
        records = [
            (await stranger.call(f"connect no-{number}")).fields["record"] for number in range(4)
        ]
        known = next(iter(host.node.hypercalls._callers[host.monitor.domain("stranger")].refusals))
        assert known == int(records[0])
        for number in range(caller.WHY_MAX):
            host.node.hypercalls._callers[host.monitor.domain("stranger")].refused(
                10_000 + number, caller.Refusal()
            )
        assert (await stranger.call(f"why {records[0]}")).code == "NO-RECORD"
        assert (await stranger.call("why 10000")).end == "ok"

    play(tmp_path, scene)


def test_a_paused_or_dead_server_holds_up_neither_the_node_nor_the_caller(tmp_path: Path) -> None:
    """A paused one gets its port and is told later; one that fails is a failed call."""

    async def scene(host: Services) -> None:
        bank, ledger = host.guest("bank"), host.guest("ledger")
        await ledger.call("offer ledger")
        await ledger.told("-label")
        owner = host.node.setup.owner
        await host.monitor.pause(owner, "ledger")
        said = await bank.call("connect ledger")
        assert said.end == "ok"
        assert ledger.machine.guest.answers() == b""
        await host.monitor.resume(owner, "ledger")
        assert (await ledger.told("-connected"))["port"] == said.fields["port"]
        ledger.machine.faults.fail.add("attach")
        assert await bank.call("connect ledger") == ("failed", "UNAVAILABLE", {})
        ledger.machine.faults.fail.clear()
        ledger.machine.faults.die.add("attach")
        assert (await bank.call("connect ledger")).end == "failed"
        await host.monitor.domain("ledger").gone.wait()
        assert (await bank.call("connect ledger")).code == "NO-SERVICE"
        assert host.open_channels() == {}

    play(tmp_path, scene)


def test_a_machine_that_never_takes_its_end_fails_the_call_in_time(tmp_path: Path) -> None:
    """The others are answered meanwhile, and nothing is left bound."""

    async def scene(host: Services) -> None:
        bank, ledger = host.guest("bank"), host.guest("ledger")
        await ledger.call("offer ledger")
        hangs = asyncio.Event()

        async def attach(*_: object) -> None:
            await hangs.wait()

        ledger.machine.attach = attach  # type: ignore[assignment, method-assign] # a machine that hangs
        hypercalls.CALL_S, before = 0.2, hypercalls.CALL_S
        try:
            asked = bank.send("connect ledger")
            assert (await host.guest("north").call("label", 0.1)).end == "ok"
            assert (await bank.call("label", 0.1)).end == "ok"
            assert await bank.answer(asked) == ("failed", "TIMEOUT", {})
        finally:
            hypercalls.CALL_S = before
        assert host.open_channels() == {}
        assert bank.machine.guest.ports() == []

    play(tmp_path, scene)


def test_a_guest_may_be_bound_and_cut_while_the_operator_does_the_same(tmp_path: Path) -> None:
    """A cut by the operator ends it; the guest's close then says that there is none."""

    async def scene(host: Services) -> None:
        bank = host.guest("bank")
        await host.guest("ledger").call("offer ledger")
        number = int((await bank.call("connect ledger")).fields["channel"])
        await host.handle(wire.Cut(number), Client("op"))
        assert (await bank.call(f"close {number}")).code == "NO-CHANNEL"

    play(tmp_path, scene)
