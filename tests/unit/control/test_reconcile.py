"""`up` on a running system: the difference only, what takes away first, by the caller's rights."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from skerry.control.calls import MAX_UPLOADS
from skerry.control.server import Session
from skerry.errors import Denied, InputError, NotFound, SkerryError, StateError, WireError
from skerry.label import Label
from skerry.machine.simulator.machine import SimulatedMachine
from skerry.monitor.domain import State
from skerry.monitor.protocols import Machine
from skerry.node.reconcile import Reconciler
from skerry.policy.compile import compile_policy
from skerry.policy.signature import new_key, public_key, sign
from skerry.system.model import DomainSpec, System
from skerry.wire import control as wire
from skerry.wire.system_files import (
    KeyFile,
    PolicyFile,
    SystemFiles,
    decode_files,
    encode_files,
)
from tests.unit.control.test_calls import (
    LOCKDOWN,
    OWNER,
    PERMITTED,
    POLICY,
    SYSTEM,
    UNBRIDGED,
    Client,
    FlaskClient,
    Host,
    load,
    play,
    ticks,
)

HELPER = 4_000_000
"""The uid of an operator who may see and start what is red, and may not load a policy."""

OPERATED = f'{SYSTEM}[operators]\n"uid:{os.getuid()}" = "op"\n"uid:{HELPER}" = "helper"\n'
APART = POLICY.replace('ste = ["blue", "all"]', 'ste = ["blue"]')
"""A policy under which `blue` shares with nobody, so that only the owner may start it."""

MORE = '[domains.c]\nlabel = "red"\nmachine = "simulator"\n'
ALONE = SYSTEM[: SYSTEM.index("[[channels]]")]


class Caller(Client):
    """A client with the credentials of a user."""

    def __init__(self, uid: int) -> None:
        super().__init__("op" if uid == os.getuid() else "helper")
        self.uid = uid

    def events(self) -> list[dict[str, Any]]:
        """Return what the node told of its steps."""
        return [json.loads(line) for line in self.shown.splitlines()]


class Result:
    """What a call answered, and the events before it."""

    def __init__(self, answer: object, events: list[dict[str, Any]]) -> None:
        self.answer = cast(Mapping[str, Any], answer)
        self.plan = [f"{e['action']} {e['what']}" for e in events if e["event"] == "plan"]
        self.done = [e for e in events if e["event"] != "plan"]

    @property
    def refused(self) -> list[str]:
        """What was refused."""
        return [refusal["what"] for refusal in self.answer["refused"]]


async def up(
    host: Host, system: str, policy: str = POLICY, *, uid: int | None = None, **options: bool
) -> Result:
    """Give the node another file, as the command does."""
    caller = Caller(os.getuid() if uid is None else uid)
    path = host.node.setup.system.path
    files = SystemFiles(
        str(path), system, (PolicyFile(str(path.parent / "policy.toml"), policy.encode()),)
    )
    caller.type(encode_files(files))
    caller.type(b"")
    return Result(await host.handle(wire.Reconcile(**options), caller), caller.events())


def states(host: Host) -> dict[str, str]:
    """Return each defined domain's state."""
    found = {}
    for name in host.node.setup.system.domains:
        domain = host.monitor.domains.get(name)
        found[name] = domain.state.value if domain else "defined"
    return found


def ports(host: Host) -> dict[str, int]:
    """Return the live channels by port."""
    return {channel.port: channel.number for channel in host.monitor.channels}


def test_the_same_file_again_changes_nothing_and_says_so(tmp_path: Path) -> None:
    """Neither domain nor channel nor generation; no step is planned, none recorded."""

    async def scene(host: Host) -> None:
        await host.up()
        domains, channels = dict(host.monitor.domains), ports(host)
        records = len(host.audit.records)
        result = await up(host, SYSTEM)
        assert (result.plan, result.done) == ([], [])
        assert result.answer["changed"] is False
        assert (result.answer["domains"], result.answer["channels"]) == (2, 1)
        assert host.monitor.domains == domains
        assert ports(host) == channels
        assert len(host.audit.records) == records

    play(tmp_path, scene)


def test_what_is_the_same_in_both_files_is_not_touched(tmp_path: Path) -> None:
    """One domain goes and one comes; the other two and their channel are the very same."""

    async def scene(host: Host) -> None:
        await host.up()
        same = [host.monitor.domain(name) for name in ("a", "b")]
        number = ports(host)["orders"]
        new = SYSTEM + MORE.replace("domains.c", "domains.d")
        new += '[[channels]]\nkind = "stream"\nfrom = "a"\nto = "d"\nname = "more"\n'
        dry = await up(host, new, dry_run=True)
        assert states(host) == {"a": "running", "b": "running", "c": "running"}
        result = await up(host, new)
        assert result.plan == dry.plan == ["remove c", "start d", "bind a ↔ d (more)"]
        assert states(host) == {"a": "running", "b": "running", "d": "running"}
        assert [host.monitor.domain(name) for name in ("a", "b")] == same
        assert ports(host)["orders"] == number
        assert set(ports(host)) == {"orders", "more"}
        assert "c" not in host.monitor.domains
        assert result.answer["left"] == []
        assert (await up(host, new)).answer["changed"] is False

    play(tmp_path, scene, system=SYSTEM + MORE)


def test_what_takes_away_comes_before_the_policy_and_that_before_what_gives(
    tmp_path: Path,
) -> None:
    """Cut, stop, load, relabel, start, bind: in the trail as in the events."""

    async def scene(host: Host) -> None:
        await host.up()
        new = ALONE.replace('[domains.b]\nlabel = "red"', '[domains.b]\nlabel = "helper"')
        new += MORE.replace("domains.c", "domains.d")
        new += '[[channels]]\nkind = "stream"\nfrom = "a"\nto = "d"\nname = "late"\n'
        result = await up(host, new, POLICY.replace('"1.0"', '"1.1"'))
        assert [e["event"] for e in result.done] == [
            "cut", "stopped", "loaded", "relabelled", "starting", "bound", "running",
        ]  # fmt: skip
        assert host.monitor.mediator.decider.generation == 2
        assert str(host.monitor.domain("b").label) == "helper"
        assert result.refused == []

    play(tmp_path, scene, system=SYSTEM + MORE)


@pytest.mark.parametrize("key", ['memory = "256M"', "cpus = 2", 'board = "q35"', 'accel = "tcg"'])
def test_what_a_machine_cannot_change_starts_it_anew(tmp_path: Path, key: str) -> None:
    """And its channels are bound again; the domain at their other end goes on."""

    async def scene(host: Host) -> None:
        await host.up()
        a, b = (host.monitor.domain(name) for name in ("a", "b"))
        result = await up(host, SYSTEM.replace("[domains.a]", f"[domains.a]\n{key}"))
        assert result.plan[0] == "restart a"
        assert a.state is State.ENDED
        assert host.monitor.domain("a") is not a
        assert host.monitor.domain("b") is b
        assert states(host) == {"a": "running", "b": "running"}
        assert list(ports(host)) == ["orders"]
        assert result.answer["domains"] == 1

    play(tmp_path, scene)


def test_another_label_is_a_relabel_of_the_running_domain(tmp_path: Path) -> None:
    """The machine stays; its channels are judged; one that the new label may not have is cut."""

    async def scene(host: Host) -> None:
        await host.up()
        domain = host.monitor.domain("a")
        new = system.replace('[domains.a]\nlabel = "red"', '[domains.a]\nlabel = "helper"')
        result = await up(host, new)
        assert result.plan == ["relabel a from red to helper", "cut channel 1: a ↔ b (orders)"]
        assert host.monitor.domain("a") is domain
        assert str(domain.label) == "helper"
        assert ports(host) == {}
        assert result.refused == ["channel orders between a and b"]
        assert result.answer["left"] == ["bind a ↔ b (orders)"]

    system = SYSTEM.replace('[domains.b]\nlabel = "red"', '[domains.b]\nlabel = "blue"')
    play(tmp_path, scene, system=system)


def test_the_file_rules_over_what_was_done_by_hand(tmp_path: Path) -> None:
    """Stopped is started, cut is bound, relabelled is relabelled back; `autostart = false` is not
    started, and a channel bound by hand stays while its ends do."""

    async def scene(host: Host) -> None:
        await host.up()
        await host.monitor.connect(Label((("acm", "op"),)), "b", "c", port="by-hand")
        by_hand = ports(host)["by-hand"]
        await host.handle(wire.Stop("a", 0.1), Client("op"))
        await host.handle(wire.Relabel("b", "helper"), Client("op"))
        result = await up(host, system)
        assert result.plan == ["relabel b from helper to red", "start a", "bind a ↔ b (orders)"]
        assert states(host) == {"a": "running", "b": "running", "c": "running", "d": "defined"}
        assert ports(host)["by-hand"] == by_hand
        host.monitor.cut(ports(host)["orders"])
        assert (await up(host, system)).plan == ["bind a ↔ b (orders)"]
        gone = system.replace(MORE, "")
        await up(host, gone)
        assert list(ports(host)) == ["orders"]

    idle = MORE.replace("domains.c", "domains.d") + "autostart = false\n"
    system = SYSTEM + MORE + idle
    play(tmp_path, scene, system=system)


def test_a_renamed_end_is_another_domain_and_another_channel(tmp_path: Path) -> None:
    """Everything of the old name goes, everything of the new one comes."""

    async def scene(host: Host) -> None:
        await host.up()
        new = SYSTEM.replace("domains.b", "domains.z").replace('to = "b"', 'to = "z"')
        result = await up(host, new)
        assert result.plan == ["cut channel 1: a ↔ b (orders)", "remove b", "start z",
                               "bind a ↔ z (orders)"]  # fmt: skip
        assert states(host) == {"a": "running", "z": "running"}
        assert list(ports(host)) == ["orders"]

    play(tmp_path, scene)


def test_a_domain_whose_label_the_new_policy_lacks_is_started_anew(tmp_path: Path) -> None:
    """No order of load and relabel could keep it; nothing needs --evict for that."""

    async def scene(host: Host) -> None:
        await host.up()
        policy, system = (text.replace("red", "crimson") for text in (POLICY, SYSTEM))
        result = await up(host, system, policy)
        assert [line for line in result.plan if "restart" in line] == ["restart a", "restart b"]
        assert {str(host.monitor.domain(name).label) for name in "ab"} == {"crimson"}
        assert list(ports(host)) == ["orders"]

    play(tmp_path, scene)


def test_another_policy_cuts_what_it_refuses(tmp_path: Path) -> None:
    """The plan says so before, with the reason; the file's channel is then refused."""

    async def scene(host: Host) -> None:
        await host.up()
        apart = POLICY.replace('[labels.red]\nste = ["red", "all"]', "[labels.red]\nste = []")
        result = await up(host, SYSTEM, apart)
        assert result.plan[:2] == ["load the policy", "cut channel 1"]
        assert ports(host) == {}
        assert result.refused == ["channel orders between a and b"]
        assert result.answer["refused"][0]["exit_code"] == 3

    play(tmp_path, scene)


RIVALS = (
    POLICY
    + """
[chinese-wall]
types = ["x", "y"]
[[chinese-wall.conflicts]]
name = "rivals"
types = ["x", "y"]
"""
)


def test_who_cannot_stay_under_the_new_policy_is_ended_only_when_told(tmp_path: Path) -> None:
    """Without --evict nothing at all is touched, also not what the file removes."""

    async def scene(host: Host) -> None:
        await host.up()
        policy = RIVALS.replace("[labels.red]", '[labels.red]\ncw = ["x"]').replace(
            "[labels.helper]", '[labels.helper]\ncw = ["y"]'
        )
        gone = system.replace(MORE, "")
        with pytest.raises(SkerryError, match="--evict"):
            await up(host, gone, policy)
        assert set(states(host).values()) == {"running"}
        assert host.monitor.mediator.decider.generation == 1
        result = await up(host, gone, policy, evict=True)
        assert "stop b" in result.plan
        assert states(host) == {"a": "running", "b": "ended"}
        again = await up(host, gone, policy)
        assert again.refused == ["domain b"]

    system = SYSTEM.replace('[domains.b]\nlabel = "red"', '[domains.b]\nlabel = "helper"') + MORE
    play(tmp_path, scene, RIVALS, system)


def test_who_may_not_load_a_policy_changes_nothing_of_what_the_owner_fixed(
    tmp_path: Path,
) -> None:
    """Policy, operators, limits, assertions, alarms, definitions: refused before any step, and on
    record. The control: the owner may."""

    async def scene(host: Host) -> None:
        await host.up()
        wider = APART.replace('"1.0"', '"1.1"')
        for what, new, policy in (
            ("the policy", system, wider),
            ("operators", system + '"uid:4000001" = "op"\n', APART),
            ("limits", system + "[limits]\ndomains = 3\n", APART),
            ("alarms", system + '[alarm.x]\nstop = ["a"]\n', APART),
            ("assertions", system + '[[assert]]\nnever = "a -> z"\n', APART),
            ("accept-missing", system + '[jail]\naccept-missing = ["uid"]\n', APART),
            ("the name", system.replace('name = "calls"', 'name = "other"'), APART),
            ("the definition of c", system + MORE + "autostart = false\n", APART),
        ):
            with pytest.raises(Denied, match="bootstrap"):
                await up(host, new + "\n", policy, uid=HELPER)
            event, fields = host.audit.records[-1]
            assert (event, fields["change"]) == ("deny", what)
            assert (await up(host, new, policy, dry_run=True)).answer["changed"] is True
        assert set(states(host).values()) == {"running"}
        assert host.node.setup.system.name == "calls"
        result = await up(host, system.replace('name = "calls"', 'name = "other"'), APART)
        assert result.refused == []
        assert host.node.setup.system.name == "other"

    isolated = MORE.replace("domains.c", "domains.z").replace('"red"', '"blue"')
    system = OPERATED.replace("[operators]", isolated + "[operators]")
    play(tmp_path, scene, APART, system)


def test_an_operator_may_what_each_step_lets_him(tmp_path: Path) -> None:
    """Without the right to load a policy he adds a domain that he may start, and its channel; one
    that he may not start is a definition, and refused as a whole."""

    async def scene(host: Host) -> None:
        await host.up()
        channel = '[[channels]]\nkind = "stream"\nfrom = "a"\nto = "c"\nname = "more"\n'
        more = MORE.replace('"red"', '"helper"') + channel
        result = await up(host, OPERATED + more, APART, uid=HELPER)
        assert result.refused == []
        assert set(ports(host)) == {"orders", "more"}
        blue = MORE.replace("domains.c", "domains.d").replace('"red"', '"blue"')
        with pytest.raises(Denied):
            await up(host, OPERATED + more + blue, APART, uid=HELPER)
        assert "d" not in host.node.setup.system.domains
        await up(host, OPERATED, APART, uid=HELPER)  # taking away asks nobody
        assert states(host) == {"a": "running", "b": "running"}

    play(tmp_path, scene, APART, OPERATED)


def test_a_step_that_fails_leaves_the_rest_to_the_next_up(tmp_path: Path) -> None:
    """It is reported with what is left; the same file again does exactly that."""

    async def scene(host: Host) -> None:
        await host.up()
        make = host.node._make
        broken = True

        def sometimes(spec: DomainSpec, label: Label) -> Machine:
            machine = cast(SimulatedMachine, make(spec, label))
            if spec.name == "c" and broken:
                machine.faults.fail.add("prepare")
            return machine

        host.node._make = sometimes  # type: ignore[assignment] # a maker of machines all the same
        new = SYSTEM + MORE + MORE.replace("domains.c", "domains.d")
        new += '[[channels]]\nkind = "stream"\nfrom = "a"\nto = "c"\nname = "more"\n'
        result = await up(host, new)
        assert result.refused == ["domain c"]
        assert result.answer["refused"][0]["exit_code"] == 1
        assert result.answer["left"] == ["start c", "bind a ↔ c (more)"]
        assert states(host)["d"] == "running"
        broken = False
        again = await up(host, new)
        assert again.plan == ["start c", "bind a ↔ c (more)"]
        assert again.answer["left"] == []
        assert set(ports(host)) == {"orders", "more"}

    play(tmp_path, scene)


def test_a_restart_that_would_be_refused_leaves_the_domain_as_it_is(tmp_path: Path) -> None:
    """It is not stopped for nothing; the refusal is on record, and the old definition stays."""

    async def scene(host: Host) -> None:
        await host.up()
        domain = host.monitor.domain("b")
        new = system.replace("[domains.b]", "[domains.b]\ncpus = 2")
        result = await up(host, new, APART, uid=HELPER)
        assert result.refused == ["restart b"]
        assert host.monitor.domain("b") is domain
        assert domain.state is State.RUNNING
        assert host.node.setup.system.domains["b"].cpus == 1
        assert ("deny", "b") in [(e, fields.get("what")) for e, fields in host.audit.records]
        assert (await up(host, new, APART)).refused == []
        assert host.node.setup.system.domains["b"].cpus == 2

    system = ALONE.replace('[domains.b]\nlabel = "red"', '[domains.b]\nlabel = "blue"')
    system += OPERATED[OPERATED.index("[operators]") :]
    play(tmp_path, scene, APART, system)


def test_what_takes_away_needs_no_trail_and_what_gives_does(tmp_path: Path) -> None:
    """With a trail that can't be written, a domain goes and another does not come; when it can be
    again, the same file does the rest."""

    async def scene(host: Host) -> None:
        await host.up()
        host.audit.dead = True
        new = ALONE.replace("domains.b", "domains.d")
        result = await up(host, new)
        assert states(host) == {"a": "running", "d": "defined"}
        assert ports(host) == {}
        assert result.refused == ["domain d"]
        assert "AUDIT-UNAVAILABLE" in result.answer["refused"][0]["text"]
        limited = await up(host, new + "[limits]\ndomains = 3\n")
        assert limited.refused == ["the policy and what the owner fixed"]
        assert limited.answer["left"] == ["change limits", "start d"]
        host.audit.dead = False
        assert (await up(host, new)).plan == ["start d"]
        assert states(host) == {"a": "running", "d": "running"}

    play(tmp_path, scene)


def test_assertions_are_proven_before_anything_is_touched(tmp_path: Path) -> None:
    """Those of the new file, under the new policy and with its labels."""

    async def scene(host: Host) -> None:
        await host.up()
        with pytest.raises(InputError, match="never a -> b does not hold"):
            await up(host, ALONE + '[[assert]]\nnever = "a -> b"\n')
        assert list(ports(host)) == ["orders"]

    play(tmp_path, scene)


def test_nobody_writes_himself_out_of_the_operators(tmp_path: Path) -> None:
    """Nobody could put him back; the owner is always one of them."""

    async def scene(host: Host) -> None:
        await host.up()
        with pytest.raises(StateError, match="does not name uid 4000000"):
            await up(host, SYSTEM, uid=HELPER)
        told: list[set[int]] = []
        host.calls.reconciler.operators_changed = lambda uids: told.append(set(uids))
        await up(host, SYSTEM)
        assert told == [{HELPER}]
        assert set(host.node.setup.operators) == {os.getuid()}

    play(tmp_path, scene, system=OPERATED)


def test_other_modules_need_a_new_start(tmp_path: Path) -> None:
    """Every label would be another one; the file is refused as a whole."""

    async def scene(host: Host) -> None:
        await host.up()
        new = SYSTEM.replace('policy = "policy.toml"', 'policy = ["policy.toml", "dummy"]')
        with pytest.raises(StateError, match="modules change from acm to acm, dummy"):
            await up(host, new)

    play(tmp_path, scene)


def test_what_the_domains_need_is_found_out_before_anything_is_touched(tmp_path: Path) -> None:
    """A missing image, a missing layer: the old system goes on as it is."""

    async def scene(host: Host) -> None:
        await host.up()

        async def missing(system: System, report: object) -> None:
            raise NotFound("no image x")

        host.calls.reconciler = Reconciler(host.node, missing)
        with pytest.raises(NotFound):
            await up(host, ALONE)
        assert list(ports(host)) == ["orders"]

    play(tmp_path, scene)


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    """The second is told so at once; a call that is still being sent holds nobody off."""

    async def scene(host: Host) -> None:
        await host.up()
        half = Caller(os.getuid())
        half.type(b"begun")
        waiting = asyncio.create_task(host.handle(wire.Reconcile(), half))
        await ticks()
        first = asyncio.create_task(up(host, SYSTEM + MORE))
        await ticks(1)
        with pytest.raises(StateError, match="another `up`"):
            await up(host, ALONE)
        assert (await first).refused == []
        half.type(None)
        with pytest.raises(WireError, match="malformed"):
            await waiting

    play(tmp_path, scene)


def test_an_operator_sends_only_so_many_systems_at_once(tmp_path: Path) -> None:
    """What waits in memory is bounded; another operator is not held off, nor is a later call."""

    async def scene(host: Host) -> None:
        await host.up()
        half = [Caller(HELPER) for _ in range(MAX_UPLOADS)]
        calls = [asyncio.create_task(host.handle(wire.Reconcile(), client)) for client in half]
        await ticks()
        with pytest.raises(Denied, match="4 systems already"):
            await up(host, OPERATED, uid=HELPER)
        assert (await up(host, OPERATED)).refused == []
        for client in half:
            client.type(None)
        await asyncio.gather(*calls, return_exceptions=True)
        assert (await up(host, OPERATED, uid=HELPER)).refused == []

    play(tmp_path, scene, system=OPERATED)


def test_a_client_that_goes_stops_no_step(tmp_path: Path) -> None:
    """What was begun is finished; nobody is told."""

    class Gone(Caller):
        async def output(self, stream: str, data: bytes) -> None:
            raise WireError("the client is gone")

    async def scene(host: Host) -> None:
        await host.up()
        path = host.node.setup.system.path
        policy = PolicyFile(str(path.parent / "policy.toml"), POLICY.encode())
        gone = Gone(os.getuid())
        gone.type(encode_files(SystemFiles(str(path), SYSTEM + MORE, (policy,))))
        gone.type(b"")
        await host.calls.handle(wire.Reconcile(), cast(Session, gone))
        assert states(host)["c"] == "running"

    play(tmp_path, scene)


def test_limits_hold_from_then_on(tmp_path: Path) -> None:
    """What is over a lower limit stays; one more is refused."""

    async def scene(host: Host) -> None:
        await host.up()
        result = await up(host, SYSTEM + MORE + "[limits]\ndomains = 3\nchannels = 1\n")
        assert result.refused == []
        with pytest.raises(Denied, match="1 channels"):
            await host.monitor.bind("a", "c", "stream", "more")

    play(tmp_path, scene)


def test_files_that_are_not_those_of_the_system_are_refused(tmp_path: Path) -> None:
    """The node reads none itself; what is no message at all is malformed."""

    async def scene(host: Host) -> None:
        await host.up()
        path = host.node.setup.system.path
        caller = Caller(os.getuid())
        caller.type(encode_files(SystemFiles(str(path), SYSTEM)))
        caller.type(b"")
        with pytest.raises(InputError, match=r"without .*policy\.toml"):
            await host.handle(wire.Reconcile(), caller)

    play(tmp_path, scene)
    for untrusted in (b"", b"\x91" * 100_000, b"\x81\xa4path\x01", b"\xc1"):
        with pytest.raises(WireError, match="malformed"):
            decode_files(untrusted)


def test_a_restart_of_the_service_is_for_those_who_may_load_a_policy(tmp_path: Path) -> None:
    """The service is told only then."""

    async def scene(host: Host) -> None:
        await host.up()
        with pytest.raises(Denied):
            await host.handle(wire.Restart(), Client("helper"))
        assert not host.calls.restart.is_set()
        await host.handle(wire.Restart(), Client("op"))
        assert host.calls.restart.is_set()

    play(tmp_path, scene)


def test_a_channel_between_domains_that_the_caller_may_not_see_is_not_declared(
    tmp_path: Path,
) -> None:
    """Also if the domains' labels let it be; who may see both declares it."""

    async def scene(host: Host) -> None:
        await host.up()
        channel = '[[channels]]\nkind = "stream"\nfrom = "x"\nto = "y"\nname = "more"\n'
        result = await up(host, system + channel, APART, uid=HELPER)
        assert result.refused == ["bind x ↔ y (more)"]
        assert "more" not in {spec.name for spec in host.node.setup.system.channels}
        assert (await up(host, system + channel, APART)).refused == []
        assert "more" in ports(host)

    two = [MORE.replace("domains.c", f"domains.{n}").replace('"red"', '"blue"') for n in "xy"]
    system = OPERATED + "".join(two)
    play(tmp_path, scene, APART, system)


KEYS = [new_key() for _ in range(2)]


def signed_files(host: Host, key: int | None, policy: str, by: int, endorsed: int | None) -> bytes:
    """Return a system whose key is one of `KEYS`, or none, its policy signed by one of them."""
    path = host.node.setup.system.path
    system = SYSTEM if key is None else f'policy-key = "key.pub"\n{SYSTEM}'
    content = policy.encode()
    signature = sign(KEYS[by][0], content, "key")
    named = None
    if key is not None:
        public = KEYS[key][1]
        by_old = b"" if endorsed is None else sign(KEYS[endorsed][0], public, "key")
        named = KeyFile(public, by_old)
    file = PolicyFile(str(path.parent / "policy.toml"), content, signature)
    return encode_files(SystemFiles(str(path), system, (file,), named))


async def up_signed(
    host: Host, key: int | None, policy: str = POLICY, by: int = 0, endorsed: int | None = None
) -> Mapping[str, Any]:
    """Give the node such a system."""
    caller = Caller(os.getuid())
    caller.type(signed_files(host, key, policy, by, endorsed))
    caller.type(b"")
    return cast(Mapping[str, Any], await host.handle(wire.Reconcile(), caller))


def test_a_key_in_force_is_required_of_every_policy_and_of_the_next_key(tmp_path: Path) -> None:
    """It comes by the owner's decision; then no load and no file passes without its signature, it
    can't be dropped, and another one follows only if this one signed it."""

    async def scene(host: Host) -> None:
        await host.up()
        newer = POLICY.replace('"1.0"', '"1.1"')
        with pytest.raises(InputError, match="does not verify"):
            await up_signed(host, 0, by=1)
        assert (await up_signed(host, 0))["refused"] == []
        with pytest.raises(InputError, match="not signed"):
            await load(host, newer)
        assert host.audit.records[-1][0] == "deny"
        assert "POLICY-UNSIGNED" in str(host.audit.records[-1][1])
        done = await load(host, newer, signature=sign(KEYS[0][0], newer.encode(), "key"))
        assert done["generation"] == 2
        with pytest.raises(InputError, match="names no policy-key"):
            await up_signed(host, None)
        assert "POLICY-UNSIGNED" in str(host.audit.records[-1][1])
        with pytest.raises(InputError, match=r"key\.pub: not signed"):
            await up_signed(host, 1, by=1)
        with pytest.raises(InputError, match=r"key\.pub.*does not verify"):
            await up_signed(host, 1, by=1, endorsed=1)
        assert host.node.setup.policy_key == public_key(KEYS[0][1], "")
        assert (await up_signed(host, 1, by=1, endorsed=0))["refused"] == []
        assert host.node.setup.policy_key == public_key(KEYS[1][1], "")

    play(tmp_path, scene)


def test_booleans_that_were_set_outlive_another_file(tmp_path: Path) -> None:
    """As with a reload in SELinux: an emergency set is not undone by a new policy."""

    async def scene(host: Host) -> None:
        await host.up()
        await host.handle(wire.SetBooleans({"bridged": False}), FlaskClient(OWNER))
        assert ports(host) == {}
        compiled = compile_policy(UNBRIDGED.encode(), "p", "conf")
        path = host.node.setup.system.path
        policy = PolicyFile(str(path.parent / "policy.toml"), compiled)
        caller = Caller(os.getuid())
        caller.type(encode_files(SystemFiles(str(path), LOCKDOWN, (policy,))))
        caller.type(b"")
        await host.handle(wire.Reconcile(), caller)
        assert host.node.setup.policy.sources[0].booleans == {"bridged": False}
        assert host.monitor.mediator.decider.generation == 3
        assert ports(host) == {}

    play(tmp_path, scene, PERMITTED, LOCKDOWN)
