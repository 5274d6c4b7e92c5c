"""`up` on a running system: the difference only, and what takes away first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from skerry.control.failure import failed
from skerry.errors import Denied, NotFound, SkerryError, StateError
from skerry.label import Label
from skerry.machine.simulator.machine import SimulatedMachine
from skerry.monitor.domain import State
from skerry.monitor.protocols import Machine
from skerry.node.reconcile import Reconciler
from skerry.policy.compile import compile_policy
from skerry.system.model import DomainSpec, System
from skerry.wire import control as wire
from skerry.wire.system_files import (
    PolicyFile,
    SystemFiles,
    encode_files,
)
from skerry.xsm.explain import Refused
from tests.support.reconciling import (
    ALONE,
    MORE,
    Caller,
    ports,
    states,
    up,
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
    play,
)


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
    """Those of the new file, under the new policy and with its labels; a refusal is a load's, on
    record."""

    async def scene(host: Host) -> None:
        await host.up()
        for dry_run in (False, True):
            with pytest.raises(Refused, match="never a -> b does not hold") as caught:
                await up(host, ALONE + '[[assert]]\nnever = "a -> b"\n', dry_run=dry_run)
            reply = failed(caught.value)
            assert (reply.exit_code, reply.code) == (3, "ASSERTION-BROKEN")
            assert "flow: allows: a -> b: possible as" in reply.text
            assert "try:" in reply.text
        refused = host.audit.events("deny")
        assert [record["hook"] for record in refused] == ["policy_load", "policy_load"]
        assert "never a -> b does not hold" in str(refused[0]["why"])
        assert list(ports(host)) == ["orders"]

    play(tmp_path, scene)


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

        async def missing(system: System, report: object) -> Callable[[], None]:
            raise NotFound("no image x")

        host.calls.reconciler = Reconciler(host.node, missing)
        with pytest.raises(NotFound):
            await up(host, ALONE)
        assert list(ports(host)) == ["orders"]

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
