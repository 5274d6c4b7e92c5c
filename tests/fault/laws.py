"""The laws of recovery, seen from outside of the node that came back.

The rule: a node is believed in nothing that can be seen at the machines, the sockets, the store or
the disk.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from skerry.machine.qemu.launch import KEPT
from skerry.machine.simulator.disk import SimulatedDisk
from skerry.monitor.domain import ALIVE, Domain, Resource
from skerry.monitor.table import Channel, Phase
from skerry.node.opening import Opened
from skerry.node.recover import Recovered
from tests.fault.oracle import (
    DOMAINS,
    RESOURCE,
    RESOURCE_LABEL,
    Ledger,
    may_talk,
    possible,
    rivals,
)
from tests.fault.outside import KeptMachine, Outside
from tests.fault.serving import HelperProcess
from tests.support.trail import Broken, all_allowed, hold, proven

TOLERANCE_S = 2.0
"""By how much a grant's end may be off in these tests, in seconds: the machine is busy."""


class Line(NamedTuple):
    """A live channel: its two ends' incarnations, and when its time is over."""

    ends: tuple[str, str]
    over: float | None


class Stood(NamedTuple):
    """What stood when everything was checked last."""

    policy: str
    generation: int
    labels: dict[str, str]  # of each incarnation
    states: dict[str, str]
    names: dict[str, str]  # of each domain that runs: its incarnation
    channels: dict[int, Line]


class Laws:
    """Checks a node that has just come back against what was known before."""

    def __init__(self, outside: Outside, disk: SimulatedDisk, folder: Path) -> None:
        self.acknowledged: list[tuple[int, str]] = []
        self.seen: collections.Counter[str] = collections.Counter()
        self._outside = outside
        self._disk = disk
        self._trail = folder / "state/audit.log"
        self._before = Stood("wide", 1, {}, {}, {}, {})
        self._dead: set[int] = set()

    async def check(self, opened: Opened, ledger: Ledger, clock: Callable[[], float]) -> None:
        """Raise `Broken` for the first law that does not hold."""
        self.seen = collections.Counter()
        node, monitor = opened.node, opened.node.monitor
        await monitor.settle()
        await _settled(opened)
        await asyncio.sleep(0.003)  # what is overdue ends
        await monitor.settle()
        await _settled(opened)
        domains = {d.name: d for d in monitor.domains.values() if d.state in ALIVE}
        channels = {channel.number: channel for channel in monitor.channels}
        policy = Path(node.setup.policy.sources[0].file).stem
        now = Stood(
            policy,
            monitor.mediator.decider.generation,
            {_incarnation(d): str(d.label) for d in domains.values()},
            {_incarnation(d): d.state.value for d in domains.values()},
            {d.name: _incarnation(d) for d in domains.values()},
            {number: _line(channel) for number, channel in channels.items()},
        )
        self._live_channels(now, channels, clock)
        self._dead_channels(now)
        self._no_rivals(domains)
        self._store(now, channels, opened)
        self._policy(now, ledger)
        self._domains(now, ledger)
        self._channels(now, ledger, clock())
        self._records(channels)
        if opened.recovery is not None:
            self._told(now, opened.recovery.found, ledger)
        self._before = now

    def _live_channels(
        self, now: Stood, channels: dict[int, Channel], clock: Callable[[], float]
    ) -> None:
        """Live, allowed, bounded as before, and carrying both ways between just its two guests."""
        for number, channel in channels.items():
            hold(channel.phase is Phase.LIVE, f"channel {number} is {channel.phase}")
            hold(number not in self._dead, f"channel {number} came back")
            labels = [str(end.label) for end in channel.ends]
            hold(
                may_talk(now.policy, labels[0], labels[1]),
                f"channel {number} between {labels} is live under {now.policy}",
            )
            hold(
                all(end.state in ALIVE for end in channel.machines),
                f"channel {number} has an end that does not run",
            )
            ends = [_socket(end, number) for end in channel.machines]
            given = {end.incarnation: end.inode for end in self._outside.ends[number]}
            found = {
                _incarnation(machine): os.fstat(end).st_ino
                for machine, end in zip(channel.machines, ends, strict=True)
            }
            ends += self._helper_of(channel)
            hold(given == found, f"channel {number} has the ends {found}, was given {given}")
            for one, other in (ends, ends[::-1]):
                hold(_carries(one, other), f"channel {number} carries nothing")
            if channel.for_s is not None:
                left = channel.since + channel.for_s - clock()
                hold(left > -TOLERANCE_S, f"channel {number} outlives its time by {-left} s")
                hold(channel.timer is not None, f"channel {number} has no end")
                assert channel.timer is not None
                set_for = channel.timer.when() - asyncio.get_running_loop().time()
                hold(abs(set_for - left) < TOLERANCE_S, f"channel {number}: {left}, {set_for} s")
            self.seen["carried"] += 1

    def _helper_of(self, channel: Channel) -> list[int]:
        """Return the end of a use's helper, which must run."""
        if not isinstance(channel.sink, Resource):
            return []
        helper = self._outside.helpers[channel.number]
        assert isinstance(helper, HelperProcess)
        hold(helper.exit is None, f"the helper of {channel.number} has ended")
        self.seen["used"] += 1
        return [helper.held.fileno()]

    def _dead_channels(self, now: Stood) -> None:
        """Whatever machines got of other channels carries nothing, queued or new."""
        for number in self._outside.ends.keys() - now.channels.keys():
            ends = self._outside.ends.pop(number)
            for end in ends:
                got = _received(end.descriptor)
                hold(got == b"", f"channel {number} is not live, and its end gives {got!r:.40}")
                hold(not _sent(end.descriptor), f"channel {number} is not live, and takes bytes")
            for end in ends:
                os.close(end.descriptor)
            if number in self._before.channels:
                self._dead.add(number)
            self.seen["severed"] += 1

    def _no_rivals(self, domains: dict[str, Domain]) -> None:
        labels = [str(domain.label) for domain in domains.values()]
        hold(not rivals(labels), f"rivals run beside each other: {labels}")

    def _store(self, now: Stood, channels: dict[int, Channel], opened: Opened) -> None:
        """Nothing runs or is kept that is not accounted for, and nothing is missing."""
        running = set(now.labels)
        hold(
            self._outside.alive() == running,
            f"processes {self._outside.alive()}, domains {running}",
        )
        helpers = {n for n, helper in self._outside.helpers.items() if helper.exit is None}
        uses = {n for n, channel in channels.items() if isinstance(channel.sink, Resource)}
        hold(helpers == uses, f"helpers of {helpers} run, used are {uses}")
        held = {name for name in self._outside.processes if not name.startswith("r/")}
        hold(held == running, f"the store has the processes {held}, the domains are {running}")
        wanted = {f"n/{opened.journal.standing.token}"}
        wanted |= {f"c/{number}.source" for number in channels}
        wanted |= {f"c/{number}.sink" for number in channels.keys() - uses}
        wanted |= {f"{incarnation}.{part}" for incarnation in running for part in KEPT}
        kept = set(self._outside.kept)
        hold(kept == wanted, f"kept {sorted(kept - wanted)}, missing {sorted(wanted - kept)}")
        for domain in opened.node.monitor.domains.values():
            if domain.state in ALIVE:
                machine = domain.machine
                assert isinstance(machine, KeptMachine)
                mine = {channel.number for channel in opened.node.monitor.channels.of(domain)}
                hold(
                    machine.attached == mine,
                    f"{domain.name} holds {set(machine.attached)} and has {mine}",
                )

    def _policy(self, now: Stood, ledger: Ledger) -> None:
        """In force is what was acknowledged last, or something asked since."""
        loads = ledger.of("load")
        may = possible(self._before.policy, loads, "policy")
        hold(now.policy in may, f"{now.policy} is in force, not one of {may}")
        least = max([self._before.generation, *(f.answer for f in loads if f.acknowledged)])
        most = least + sum(fact.open for fact in loads)
        hold(
            least <= now.generation <= most,
            f"the generation is {now.generation}, not {least} to {most}",
        )

    def _domains(self, now: Stood, ledger: Ledger) -> None:
        """What was started runs, with its label and state; what was ended does not."""
        evicting = [f for f in ledger.of("load") if f.about["evict"] and not f.error]
        for name in DOMAINS:
            starts = ledger.of("start", name=name)
            began = max((f.begun for f in starts if f.acknowledged), default=-1)
            ends = [
                *ledger.of("stop", "kill", "die", name=name, since=began),
                *(f for f in ledger.of("alarm", since=began) if name in f.about["names"]),
                *(f for f in evicting if f.done is None or f.done > began),
            ]
            runs = name in now.names
            if (began >= 0 or name in self._before.names) and not ends:
                hold(runs, f"{name} was running and does not go on")
                self.seen["went on"] += 1
            ended = [f for f in ends if f.kind not in ("load", "alarm") and f.acknowledged]
            for end in ended:
                again = any(f.done is None or f.done > end.begun for f in starts)
                hold(again or not runs, f"{name} runs although it was ended: {end}")
            if runs:
                self._one_domain(name, now, ledger)

    def _one_domain(self, name: str, now: Stood, ledger: Ledger) -> None:
        incarnation = now.names[name]
        starts = ledger.of("start", name=name)
        new = self._before.names.get(name) != incarnation
        hold(not new or bool(starts), f"{name} runs, and nobody started it")
        label = str(self._outside.labels[incarnation]) if new else self._before.labels[incarnation]
        since = self._outside.begun[incarnation] if new else -1
        may = possible(label, ledger.of("relabel", name=name, since=since), "label")
        hold(now.labels[incarnation] in may, f"{name} is {now.labels[incarnation]}, not {may}")
        if not starts:
            states = ledger.of("pause", "resume", name=name)
            could = possible(self._before.states[incarnation], states, "state")
            hold(now.states[incarnation] in could, f"{name} is {now.states}, not {could}")

    def _channels(self, now: Stood, ledger: Ledger, moment: float) -> None:
        """What was bound is live unless something ended it; what was cut or refused is not."""
        bound: dict[int, tuple[tuple[str, str], int, float | None]] = {
            number: (self._names(line), -1, line.over)
            for number, line in self._before.channels.items()
        }
        for fact in ledger.of("connect"):
            if fact.acknowledged:
                number, over = fact.answer
                bound[number] = (fact.about["ends"], fact.begun, over)
        for fact in ledger.of("start"):
            if fact.acknowledged:
                bound |= {n: (ends, fact.begun, None) for n, ends in fact.answer.items()}
        for number, (ends, begun, over) in bound.items():
            cuts = ledger.of("cut", number=number)
            if number in now.channels:
                hold(
                    not any(fact.acknowledged for fact in cuts),
                    f"channel {number} was cut and is live",
                )
                found = now.channels[number].over
                hold(found == over, f"channel {number} ends at {found}, not at {over}")
            elif not cuts and not self._excused(
                ends, begun, now, ledger, over is not None and moment > over - TOLERANCE_S
            ):
                raise Broken(f"channel {number} between {ends} was live and does not go on")
        fresh = now.channels.keys() - bound.keys()
        unanswered = [f for f in ledger.of("connect", "start") if f.open]
        failed_starts = [f for f in ledger.of("start") if f.error]
        hold(
            len(fresh) <= len(unanswered) + len(failed_starts),
            f"channels {fresh} are live, and nobody asked for them: {unanswered}",
        )

    def _names(self, line: Line) -> tuple[str, str]:
        names = {incarnation: name for name, incarnation in self._before.names.items()}
        names[RESOURCE_LABEL] = RESOURCE
        return names[line.ends[0]], names[line.ends[1]]

    def _excused(
        self, ends: tuple[str, str], begun: int, now: Stood, ledger: Ledger, over: bool
    ) -> bool:
        """Say whether something that was asked since may have ended a channel."""
        if over:
            return True
        if ledger.of("stop", "kill", "die", "start", "alarm", since=begun) and any(
            end not in (*now.names, RESOURCE)
            or ledger.of("stop", "kill", "die", "start", since=begun, name=end)
            or ledger.of("alarm", since=begun)
            for end in ends
        ):
            return True
        policies = {self._before.policy} | {f.about["policy"] for f in ledger.of("load")}
        if ledger.of("load", "relabel", since=begun):
            labels = [self._labels(end, ledger) for end in ends]
            return any(
                not may_talk(policy, one, other)
                for policy in policies
                for one in labels[0]
                for other in labels[1]
            ) or any(f.about["evict"] for f in ledger.of("load", since=begun))
        return False

    def _labels(self, name: str, ledger: Ledger) -> set[str]:
        if name == RESOURCE:
            return {RESOURCE_LABEL}
        incarnation = self._before.names.get(name)
        labels = {DOMAINS[name]} | {f.about["label"] for f in ledger.of("relabel", name=name)}
        return labels | ({self._before.labels[incarnation]} if incarnation else set())

    def _records(self, channels: dict[int, Channel]) -> None:
        """The chain holds, and has every record that was acknowledged."""
        records = proven(self._disk.content(self._trail).splitlines(keepends=True))
        for number, event in self.acknowledged:
            hold(number <= len(records), f"record {number} {event} was acknowledged and is lost")
            found = records[number - 1]
            hold(found.event == event, f"record {number} is {found.event}, was {event}")
        all_allowed({c.number: c.record for c in channels.values()}, records)
        self.seen["records"] = len(self.acknowledged)

    def _told(self, now: Stood, found: Recovered, ledger: Ledger) -> None:
        """What the node says it found is so."""
        hold(set(found.domains) == set(now.names), f"{found} and {now.names}")
        over = {n for n in found.channels if n not in now.channels}
        hold(
            set(found.channels) - over == set(now.channels),
            f"it says {found.channels} go on; they are {set(now.channels)}",
        )
        hold(not set(found.cut) & set(now.channels), f"it says {found.cut} are cut")
        for what in found.undone:
            kind, _, name = what.partition(" ")
            hold(
                kind == "domain" or int(name) not in now.channels,
                f"it says {what} was undone",
            )
        for name in found.ended:
            before = self._before.names.get(name)
            hold(before is None or now.names.get(name) != before, f"it says {name} ended")
        self.seen["undone"] += len(found.undone)
        self.seen["cut"] += len(found.cut)


async def _settled(opened: Opened) -> None:
    """Wait until the store has forgotten what it shall."""
    dropping = opened.journal._dropping
    if dropping is not None:
        await asyncio.wait({dropping})


def _incarnation(domain: Domain) -> str:
    if isinstance(domain, Resource):
        return RESOURCE_LABEL
    machine: Any = domain.machine
    return str(machine.incarnation)


def _line(channel: Channel) -> Line:
    source, sink = (_incarnation(end) for end in channel.ends)
    return Line((source, sink), None if channel.for_s is None else channel.since + channel.for_s)


def _socket(domain: Domain, number: int) -> int:
    """Return the descriptor that a machine has of a channel."""
    machine: Any = domain.machine
    held: dict[int, int] = machine.descriptors
    hold(number in held, f"{domain.name} has no end of channel {number}")
    return held[number]


def _carries(one: int, other: int) -> bool:
    """Send a word and say whether it, and nothing behind it, comes out at the other end."""
    word = secrets.token_bytes(16)
    _received(other)
    return _sent(one, word) and _received(other) == word


def _received(descriptor: int) -> bytes | None:
    """Take all that waits; empty at the end of the stream, None if it is open and empty."""
    got = bytearray()
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        while True:
            try:
                piece = sock.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return bytes(got) or None
            except OSError:
                return bytes(got)
            if not piece:
                return bytes(got)
            got += piece


def _sent(descriptor: int, word: bytes = b"late") -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as sock, contextlib.suppress(OSError):
        return sock.send(word, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(word)
    return False
