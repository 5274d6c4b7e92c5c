"""A switch is for a coalition: who may join, and who is cut when a pair may not talk any more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
import pytest

from skerry.channel.transport import TcpPairs
from skerry.device.switch import engine
from skerry.device.switch.uses import ENDED, OUTLAW, SwitchUses
from skerry.errors import LimitReached, SupervisorError, TransportError
from skerry.label import Label
from skerry.monitor.protocols import Side
from skerry.monitor.table import Channel
from skerry.xsm.explain import Refused
from skerry.xsm.request import Verdict
from tests.support.monitor import ToyDecider, World, label, play
from tests.support.switches import BareSwitches, add_switch
from tests.unit.device.test_switch_engine import ALL, frame, mac

THREE = "a", "b", "c"


class Net:
    """A world with domains, all of which may use the switch `lan`, and pairs that may talk."""

    def __init__(self, world: World, switches: BareSwitches, uses: SwitchUses) -> None:
        self.world = world
        self.switches = switches
        self.uses = uses

    async def join(self, name: str) -> Channel:
        """Bind a use."""
        return await self.world.monitor.bind(name, "lan")

    def live(self) -> set[str]:
        """Return the domains that use the switch."""
        return {channel.source.name for channel in self.uses.coalition.members()}

    async def hears(self, sender: str, listener: str) -> bool:
        """Say whether a broadcast of one arrives at the other soon."""
        ends = [next(iter(self.world.machines[name].ends.values())) for name in (sender, listener)]
        data = frame(ALL, mac(1), os.urandom(8))
        os.write(ends[0], data)
        os.set_blocking(ends[1], False)
        got = b""
        for _ in range(1000):
            try:
                piece = os.read(ends[1], 1 << 20)
                got += piece
                if data in got or not piece:
                    break
            except BlockingIOError:
                await asyncio.sleep(0.01)
        return data in got

    def why(self) -> dict[str, str]:
        """Return why members were cut, by domain."""
        return {str(cut["source"]): str(cut["why"]) for cut in self.world.audit.events("cut")}


def run(scene: Callable[[Net], Awaitable[None]], *apart: tuple[str, str]) -> None:
    """Play a scene in which all domains may talk with one another, but for some pairs."""

    async def main(world: World) -> None:
        switches = BareSwitches()
        uses = add_switch(world, "lan", switches)
        allow(world, *apart)
        await world.run(*THREE)
        try:
            await scene(Net(world, switches, uses))
        finally:
            world.close()
            await world.monitor.settle()
            await switches.ended()
            uses.close()

    play(main)


def allowed(*apart: tuple[str, str]) -> set[frozenset[str]]:
    """Return what a policy allows that keeps these pairs apart."""
    names = (*THREE, "d")
    pairs = {frozenset((x, y)) for x in names for y in (*names, "lan")}
    return pairs - {frozenset(pair) for pair in apart}


def allow(world: World, *apart: tuple[str, str]) -> None:
    """Let the policy in force be that one."""
    world.decider.allowed = allowed(*apart)


async def load(net: Net, *apart: tuple[str, str]) -> dict[int, str]:
    """Change the policy as a node does: install it, then judge the coalition."""
    net.world.decider.load(allowed(*apart))
    return await net.uses.coalition.judge()


def test_all_who_may_talk_join_and_hear_one_another() -> None:
    """One process serves them; it is started with the first and ends with the last."""

    async def scene(net: Net) -> None:
        for name in THREE:
            await net.join(name)
        assert len(net.switches.started) == 1
        for sender in THREE:
            for listener in set(THREE) - {sender}:
                assert await net.hears(sender, listener)
        allows = net.world.audit.events("allow")
        asked = [entry for entry in allows if entry["hook"] == "channel_two_way"]
        asked_of = [(entry["source"], entry["sink"], entry["switch"]) for entry in asked]
        assert asked_of == [("b", "a", "lan"), ("c", "a", "lan"), ("c", "b", "lan")]
        for channel in net.uses.coalition.members():
            net.world.monitor.cut(channel.number)
        await net.switches.ended()
        await net.join("a")
        assert len(net.switches.started) == 2

    run(scene)


def test_who_may_not_talk_with_one_member_does_not_join() -> None:
    """The refusal is on record with its reason; the members go on. The control: a may join c."""

    async def scene(net: Net) -> None:
        await net.join("a")
        await net.join("c")
        with pytest.raises(Refused):
            await net.join("b")
        assert net.live() == {"a", "c"}
        (deny,) = net.world.audit.events("deny")
        assert (deny["source"], deny["sink"], deny["switch"]) == ("b", "a", "lan")
        assert "TOY-NO" in str(deny["why"])
        assert not net.world.machines["b"].ends
        assert await net.hears("a", "c")

    run(scene, ("a", "b"))


def test_a_wall_between_two_members_keeps_the_second_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question of history is asked of each pair as of any channel. The control: a third."""

    async def scene(net: Net) -> None:
        decider = net.world.decider
        admit_bind, asked = decider.admit_bind, list[bool]()

        async def walled(*labels: Label) -> Verdict:
            verdict = await admit_bind(*labels)
            # Of the two it is asked first for the use of the switch, which has been a's to write.
            asked.append({label("a"), label("b")} <= set(labels))
            return msgspec.structs.replace(verdict, allowed=not asked[-1] or sum(asked) == 1)

        await net.join("a")
        monkeypatch.setattr(decider, "admit_bind", walled)
        with pytest.raises(Refused):
            await net.join("b")
        assert net.world.audit.events("deny")[-1]["switch"] == "lan"
        await net.join("c")
        assert net.live() == {"a", "c"}

    run(scene)


def test_a_policy_that_keeps_two_members_apart_cuts_both_and_only_them() -> None:
    """What one had sent may wait for the other, so both are emptied; the third goes on."""

    async def scene(net: Net) -> None:
        numbers = {name: (await net.join(name)).number for name in THREE}
        foretold = await net.uses.coalition.foretold(_policy(("a", "b")), lambda same: same)
        assert net.live() == set(THREE), "to foretell changes nothing"
        assert not net.world.audit.events("deny")
        cut = await load(net, ("a", "b"))
        assert set(cut) == set(foretold) == {numbers["a"], numbers["b"]}
        assert net.live() == {"c"}
        assert "with b, with which it may not talk" in net.why()["a"]
        assert "with a, with which it may not talk" in net.why()["b"]
        assert net.world.audit.events("deny")[-1]["switch"] == "lan"
        await net.world.monitor.settle()
        await net.join("a")
        assert await net.hears("a", "c")
        with pytest.raises(Refused):
            await net.join("b")

    run(scene)


def _policy(*apart: tuple[str, str]) -> ToyDecider:
    """Return a policy that is not in force."""
    other = ToyDecider()
    other.allowed = allowed(*apart)
    return other


def test_a_policy_that_keeps_nobody_apart_cuts_nobody() -> None:
    """The control; what stays counts in the walls."""

    async def scene(net: Net) -> None:
        for name in THREE:
            await net.join(name)
        net.world.decider.touched.clear()
        assert not await load(net, ("a", "d"))
        assert net.live() == set(THREE)
        assert {("a", "b"), ("a", "c"), ("b", "c")} <= set(net.world.decider.touched)

    run(scene)


def test_what_fails_in_judging_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody stays on a switch because nobody could say that he must not."""

    async def scene(net: Net) -> None:
        for name in THREE:
            await net.join(name)

        async def broken(*_: object) -> object:
            raise RuntimeError("no answer")

        monkeypatch.setattr(net.world.decider, "decide", broken)
        await net.uses.coalition.judge()
        assert not net.live()
        assert "no answer" in net.why()["a"]

    run(scene)


async def relabel(net: Net, name: str, new: str, *, foreseen: bool = True) -> None:
    """Relabel as a node does."""
    monitor = net.world.monitor
    if foreseen:
        await net.uses.coalition.foresee(monitor.domain(name), label(new))
    await monitor.relabel(net.world.operator, name, label(new))
    net.uses.coalition.forget()


def test_who_becomes_what_may_not_talk_with_a_member_leaves() -> None:
    """Only he does, in the step of the relabel; the control: with another label he stays."""

    async def scene(net: Net) -> None:
        for name in THREE:
            await net.join(name)
        await relabel(net, "a", "b")
        assert net.live() == set(THREE), "whoever is b may talk with c, and with b"
        await relabel(net, "a", "d")
        assert net.live() == {"b", "c"}
        assert "it may not talk" in net.why()["a"]
        assert await net.hears("b", "c")

    run(scene, ("d", "b"))


def test_who_is_relabelled_without_having_been_judged_leaves() -> None:
    """Also where the new label is allowed: nothing was asked, so nothing stays."""

    async def scene(net: Net) -> None:
        for name in THREE:
            await net.join(name)
        await relabel(net, "a", "d", foreseen=False)
        assert net.live() == {"b", "c"}

    run(scene)


@pytest.mark.parametrize("what", ["policy", "member"])
def test_what_was_foreseen_does_not_hold_once_something_changed(what: str) -> None:
    """Another policy, or another member's label: then who is relabelled leaves."""

    async def scene(net: Net) -> None:
        for name in THREE:
            await net.join(name)
        monitor = net.world.monitor
        await net.uses.coalition.foresee(monitor.domain("a"), label("d"))
        if what == "policy":
            net.world.decider.load(allowed())
        else:
            monitor.domain("b").label = label("d")
        await monitor.relabel(net.world.operator, "a", label("d"))
        assert net.live() == {"b", "c"}

    run(scene)


def test_who_is_stopped_or_ends_leaves_at_once() -> None:
    """A use of a switch is a channel: it is not kept for the end of the machine, as a disk is."""

    async def scene(net: Net) -> None:
        for name in THREE:
            await net.join(name)
        monitor = net.world.monitor
        stopping = asyncio.ensure_future(monitor.stop("a", 1.0))
        await asyncio.sleep(0)
        assert net.live() == {"b", "c"}
        await stopping
        monitor.kill("b")
        assert net.live() == {"c"}
        net.world.machines["c"].die("by itself")
        await asyncio.sleep(0.01)
        assert not net.live()

    run(scene)


def test_two_who_may_not_talk_and_join_at_once_do_not_both_join() -> None:
    """They are asked one after the other, and the second with the first as a member."""

    async def scene(net: Net) -> None:
        results = await asyncio.gather(net.join("a"), net.join("b"), return_exceptions=True)
        assert [type(result) for result in results] == [Channel, Refused]
        assert net.live() == {"a"}

    run(scene, ("a", "b"))


def test_a_policy_that_comes_while_one_joins_costs_him_and_not_the_member() -> None:
    """Who has not joined yet has sent nothing, so there is nothing of his to take away."""

    async def scene(net: Net) -> None:
        await net.join("a")
        for started in net.switches.started:
            started.kill()
            await started.exited
        await asyncio.sleep(0.01)
        net.switches.gate = asyncio.Event()
        joining = [asyncio.ensure_future(net.join(name)) for name in ("b", "c")]
        await asyncio.sleep(0.05)
        await load(net, ("b", "c"))
        net.switches.gate.set()
        results = await asyncio.gather(*joining, return_exceptions=True)
        assert not any(isinstance(result, Channel) for result in results) or net.live() < {"b", "c"}
        assert net.live() != {"b", "c"}

    run(scene)


def test_a_switch_that_ends_cuts_its_members_and_another_serves_the_next() -> None:
    """It is on record; the domains live on."""

    async def scene(net: Net) -> None:
        for name in THREE:
            await net.join(name)
        net.switches.started[0].process.send_signal(signal.SIGKILL)
        await net.switches.started[0].exited
        await asyncio.sleep(0.01)
        assert not net.live()
        assert set(net.why().values()) == {ENDED}
        await net.world.monitor.settle()
        await net.join("a")
        await net.join("b")
        assert await net.hears("a", "b")

    run(scene)


def test_a_frozen_switch_is_cut_without_being_asked() -> None:
    """No cut waits for it, what is queued is taken, and a new member is refused by a limit."""

    async def scene(net: Net) -> None:
        numbers = {name: (await net.join(name)).number for name in ("a", "b")}
        assert await net.hears("a", "b")
        process = net.switches.started[0].process
        process.send_signal(signal.SIGSTOP)
        os.write(next(iter(net.world.machines["a"].ends.values())), frame(ALL, mac(1)))
        assert net.world.monitor.cut(numbers["a"]) == 64
        with pytest.raises(TransportError, match="takes no member"):
            for _ in range(2000):
                net.world.monitor.cut((await net.join("c")).number)
        process.send_signal(signal.SIGCONT)

    run(scene)


def test_a_switch_that_does_not_start_refuses_its_first_member() -> None:
    """Nothing is left, and the next try works."""

    async def scene(net: Net) -> None:
        net.switches.fails = True
        with pytest.raises(SupervisorError):
            await net.join("a")
        assert not net.live()
        net.switches.fails = False
        await net.join("a")

    run(scene)


def test_who_sends_no_frames_is_cut() -> None:
    """The process says so and the node cuts the use, with the reason; the others go on."""

    async def scene(net: Net) -> None:
        for name in THREE:
            await net.join(name)
        os.write(next(iter(net.world.machines["a"].ends.values())), b"\xff" * 100)
        for _ in range(1000):
            if net.live() == {"b", "c"}:
                break
            await asyncio.sleep(0.01)
        assert net.why()["a"] == OUTLAW
        assert await net.hears("b", "c")

    run(scene)


def test_who_has_left_a_switch_is_nobody_s_writer() -> None:
    """Nothing lives on in it, unlike on a disk; who is on it is asked of each pair."""

    async def scene(net: Net) -> None:
        resource = net.world.monitor.resources["lan"]
        await net.join("a")
        number = (await net.join("b")).number
        assert resource.written == {label("a"), label("b")}
        net.world.monitor.cut(number)
        assert resource.written == {label("a")}

    run(scene)


def test_one_member_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others stay."""
    monkeypatch.setattr("skerry.device.switch.uses.MAX_MEMBERS", 2)

    async def scene(net: Net) -> None:
        assert engine.MAX_MEMBERS > 2
        await net.join("a")
        await net.join("b")
        with pytest.raises(LimitReached, match="2 members"):
            await net.join("c")
        assert net.live() == {"a", "b"}

    run(scene)


def _left(net: Net, number: int, name: str) -> socket.socket:
    """Let a use stand that an earlier node had bound; return its machine's end."""
    one, other = socket.socketpair()
    machine = one.dup()
    machine.setblocking(False)
    monitor = net.world.monitor
    sink = monitor.resources["lan"]
    channel = Channel(number, "switch", monitor.domain(name), sink, "lan", one_way=False)
    channel.bridge = net.uses.adopt({"source": one.detach(), "sink": other.detach()}, None, name)
    monitor.readmit_channel(channel)
    return machine


def test_after_a_restart_the_members_go_on_with_another_process() -> None:
    """Their sockets were kept. Of two who may not talk any more both are cut."""

    async def scene(net: Net) -> None:
        names = "a", "a", "b", "c"
        ends = [_left(net, number, name) for number, name in enumerate(names, 1)]
        allow(net.world, ("b", "c"))
        data = frame(ALL, mac(1))
        ends[0].send(data)
        await net.uses.resume()
        assert net.live() == {"a"}
        for _ in range(1000):
            with contextlib.suppress(BlockingIOError):
                assert ends[1].recv(1000) == data
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("what was sent meanwhile never came")
        assert len(net.switches.started) == 1
        for end in ends:
            end.close()

    run(scene)


def test_after_a_restart_without_a_process_all_members_are_cut() -> None:
    """Nobody would carry their frames."""

    async def scene(net: Net) -> None:
        ends = [_left(net, number, name) for number, name in enumerate(THREE, 1)]
        net.switches.fails = True
        await net.uses.resume()
        assert not net.live()
        assert "could not be started anew" in net.why()["a"]
        for end in ends:
            end.close()

    run(scene)


def test_a_member_of_which_a_twin_is_missing_can_only_be_cut() -> None:
    """Whichever it is; the other is shut down."""

    async def scene(net: Net) -> None:
        sides: tuple[Side, Side] = "source", "sink"
        for side in sides:
            one, other = socket.socketpair()
            use = net.uses.adopt({side: one.detach()}, None, "a")
            assert not use.is_whole()
            use.cut()
            assert other.recv(1) == b""
            other.close()

    run(scene)


def test_who_joins_when_the_process_has_just_ended_is_alone() -> None:
    """Its members are cut first: the next process was never handed their sockets."""

    async def scene(net: Net) -> None:
        await net.join("a")
        (old,) = net.switches.started
        helper = net.uses._helper
        assert helper is not None
        dead: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        net.uses._helper = helper._replace(process=Dead(dead))
        dead.set_result(0)
        await net.join("b")
        assert net.live() == {"b"}
        assert net.why()["a"] == ENDED
        assert len(net.switches.started) == 2
        old.kill()

    run(scene)


class Dead(NamedTuple):
    """A process that has ended, of which nobody was told yet."""

    exited: asyncio.Future[int]

    def kill(self) -> None:
        """Nothing is left to kill."""


def test_a_tcp_pair_does_not_outlive_its_process() -> None:
    """It may have been left within a frame; the control is a Unix pair."""

    async def scene(net: Net) -> None:
        for transport, whole in (("unix", True), ("tcp", False)):
            maker = TcpPairs()
            one, other = maker.pair() if transport == "tcp" else socket.socketpair()
            twins: dict[Side, int] = {"source": one.detach(), "sink": other.detach()}
            use = net.uses.adopt(twins, None, "a")
            assert use.is_whole() is whole
            use.cut()
            maker.close()

    run(scene)
