"""After the node was killed: adopt what stands, undo what was half done, cut what is doubtful.

The rules (law 7): only what the journal calls standing is adopted, and only if it is all there;
everything else that the supervisor holds is ended; all that stands is judged again by the policy in
force before anything new is allowed, and where nobody judges it, nothing goes on. None of that asks
anybody, or waits for a machine: what stands can be taken away before its machine has answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from skerry.channel.memory import MemoryBridge, Twin
from skerry.device.helper import Process as Serving
from skerry.errors import SkerryError
from skerry.machine.qemu.launch import KEPT, kept_names
from skerry.monitor.domain import ALIVE, Domain, State
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Bridge, Candidate, Machine
from skerry.monitor.revise import UNDECIDED, Fall
from skerry.monitor.table import Channel
from skerry.node import prefixes
from skerry.node.journal import PARTS, NodeJournal, twin_name
from skerry.node.relays import relay_name, take_relay
from skerry.node.standing import RESOURCE, ChannelEntry, DomainEntry, Footprint, Standing
from skerry.supervisor.client import Inherited, Process
from skerry.wire.memory import Identity

ADOPT_S = 15.0
"""How long a machine may take to answer its new node; one that does not is ended."""

JUDGE_S, JUDGE_PAUSE_S = 2.5, 0.5
"""How long, and how far apart, what was adopted is put to a policy manager that does not answer:
long enough for another process to be started. Then the node ends, and everything with it."""

END_S = 2.0
"""How long killed processes may take to end; then they are dying, and act no more."""

CUTTING = "it was being cut"
UNBRIDGED = "it was being cut, or its relay or helper has ended"
GONE = "one of its domains does not go on"
MEANWHILE = "it was ended before its machines were adopted"


class Heir(Machine, Protocol):
    """A machine that an earlier node started: see `QemuMachine.heir`."""

    @property
    def running(self) -> bool:
        """Whether its processors run; known once it is adopted, as is `attached`."""

    @property
    def attached(self) -> frozenset[int]:
        """The channels of which it may hold an end."""

    async def adopt(self) -> None:
        """Take up its control."""

    def expect(self, channel: int, memory: Identity) -> None:
        """Learn which file the memory of a channel is that goes on."""

    async def verify(self) -> None:
        """End it if it holds any other memory."""


class Adopted(Bridge, Protocol):
    """A bridge that was made anew from what the supervisor kept."""

    def is_whole(self) -> bool:
        """Say whether the machines may still use it."""


Adopt = Callable[[Mapping[Twin, int], Serving | None, ChannelEntry | None], Adopted | None]
"""Makes a channel's bridge of its twins, which it takes over, and of its relay or helper.

The entry is None for one that was being bound. None: the twins are not all there, and still the
caller's.
"""

MakeHeir = Callable[[DomainEntry, Process, Mapping[str, int]], Heir]


class Recovered(msgspec.Struct):
    """What a restart found, by name or number; each reason is for people."""

    domains: list[str] = []
    channels: list[int] = []
    ended: dict[str, str] = {}
    cut: dict[int, str] = {}
    undone: list[str] = []


class Recovery:
    """One restart. The descriptors of `inherited` are taken over, but for the node's own (`n/`)."""

    def __init__(
        self,
        monitor: Monitor,
        journal: NodeJournal,
        inherited: Inherited,
        heir: MakeHeir,
        forget: Callable[[Footprint], None],
        watch: Callable[[int, Serving], object],
        adopt: Adopt,
    ) -> None:
        """`watch` has the end of a relay or helper cut the channel of this number; `adopt` makes
        its bridge anew."""
        self.found = Recovered()
        self._monitor = monitor
        self._journal = journal
        self._processes = dict(inherited.processes)
        self._kept = {n: fd for n, fd in inherited.kept.items() if not n.startswith(prefixes.OWN)}
        self._heir = heir
        self._forget = forget
        self._watch = watch
        self._bridge_of = adopt
        self._machines: dict[str, tuple[Domain, Heir]] = {}
        self._adopting: dict[Domain, asyncio.Future[None]] = {}

    async def run(self, in_force: Callable[[], Candidate]) -> Recovered:
        """Take over what stands, and have it judged: `take_over`, then `judge`."""
        self.take_over()
        return await self.judge(in_force, JUDGE_S)

    def take_over(self) -> None:
        """Undo, cut, and let all else count; `judge` and `adopt` must follow. Asks nobody.

        From here on all that stands can be taken away. A domain is *starting* until it is adopted,
        so nothing new is given to it. Raises nothing that one machine or channel is the cause of.
        """
        for entry in list(self._journal.standing.domains.values()):
            self._readmit(entry)
        for channel in list(self._journal.standing.channels.values()):
            self._readmit_channel(channel)
        self._undo()

    async def judge(self, in_force: Callable[[], Candidate], within_s: float) -> Recovered:
        """Have what stands judged by the policy that `in_force` gives. Waits for no machine.

        Raises `DeciderUnavailable` where nobody judges for `within_s` seconds; the node must end
        then, because what was taken over runs unjudged.
        """
        fall = await self._judge(in_force, within_s)
        for refused, why in fall.channels.items():
            self.found.channels.remove(refused.number)
            self.found.cut[refused.number] = why
        for domain, why in fall.domains.items():
            self.found.ended[domain.name] = why
        return self.found

    async def _judge(self, in_force: Callable[[], Candidate], within_s: float) -> Fall:
        loop = asyncio.get_running_loop()
        last = loop.time() + within_s
        while loop.time() < last:
            with contextlib.suppress(*UNDECIDED):
                return await self._monitor.judge_again(in_force())
            await asyncio.sleep(JUDGE_PAUSE_S)
        return await self._monitor.judge_again(in_force())

    async def adopt_now(self, name: str) -> bool:
        """Take up one machine before the others; say whether there is one, and it goes on."""
        for domain, machine in self._machines.values():
            if domain.name == name:
                await self._adoption(domain, machine)
                return domain.state in ALIVE
        return False

    def _adoption(self, domain: Domain, machine: Heir) -> asyncio.Future[None]:
        """Take up one machine, once, whoever asks for it."""
        if domain not in self._adopting:
            self._adopting[domain] = asyncio.ensure_future(self._adopt(domain, machine))
        return self._adopting[domain]

    async def adopt(self) -> None:
        """Take up the control of every machine, and say in the trail what was found."""
        await asyncio.gather(*(self._adoption(*each) for each in self._machines.values()))
        live = {channel.number for channel in self._monitor.channels}
        for number in [number for number in self.found.channels if number not in live]:
            self.found.channels.remove(number)
            self.found.cut[number] = MEANWHILE
        found = msgspec.to_builtins(self.found, str_keys=True)
        self._monitor.mediator.audit.note("recovered-node", found)

    def _readmit(self, entry: DomainEntry) -> None:
        incarnation = entry.footprint.incarnation
        process = self._processes.pop(incarnation, None)
        kept = {
            name: self._kept.pop(name)
            for name in (f"{incarnation}.{part}" for part in KEPT)
            if name in self._kept
        }
        if process is None or process.exited.done():
            for descriptor in kept.values():
                os.close(descriptor)
            how = "unknown" if process is None else str(process.exited.result())
            self._lost(entry, process, f"it ended while there was no node, with status {how}")
            return
        try:
            machine = self._heir(entry, process, kept)
        except SkerryError as error:
            self._lost(entry, process, str(error))
            return
        domain = Domain(entry.name, entry.label, entry.started)
        self._monitor.readmit(domain, machine)
        self._machines[incarnation] = domain, machine

    async def _adopt(self, domain: Domain, machine: Heir) -> None:
        """Take up one machine; it goes on unless it does not answer or was ended meanwhile."""
        try:
            async with asyncio.timeout(ADOPT_S):
                await machine.adopt()
        except Exception as error:  # whatever it answered: the others go on
            self._give_up(domain, f"it does not answer: {error}")
            return
        for channel in self._monitor.channels.of(domain):
            if isinstance(channel.bridge, MemoryBridge):
                machine.expect(channel.number, channel.bridge.identity)
            if doubt := self._doubt(channel, machine):
                self._cut(channel, doubt)
        await self._detach_the_rest(domain, machine)
        await machine.verify()
        if domain.state is State.STARTING:
            self._monitor.adopted(domain, State.RUNNING if machine.running else State.PAUSED)
            self.found.domains.append(domain.name)
        else:
            self.found.ended.setdefault(domain.name, MEANWHILE)

    def _give_up(self, domain: Domain, why: str) -> None:
        """End a domain whose machine can't be adopted."""
        self.found.ended.setdefault(domain.name, why)
        for channel in self._monitor.channels.of(domain):
            if channel.ends_with(domain):
                self._cut(channel, GONE)
        if domain.state is not State.ENDED:
            self._monitor.kill(domain.name)

    def _cut(self, channel: Channel, why: str) -> None:
        self._monitor.cut(channel.number, why)
        self.found.cut[channel.number] = why
        if channel.number in self.found.channels:
            self.found.channels.remove(channel.number)

    def _lost(self, entry: DomainEntry, process: Process | None, why: str) -> None:
        """Note a domain that does not go on, and let the supervisor forget it once it is dead."""
        names = kept_names(entry.footprint.incarnation)
        if process is None:
            self._journal.drop(*names)
        else:
            process.kill()
            process.exited.add_done_callback(lambda _: self._journal.drop(*names))
        self._forget(entry.footprint)
        self._journal.note("ended", {"incarnation": entry.footprint.incarnation})
        self._monitor.mediator.audit.note(
            "ended", {"domain": entry.name, "label": str(entry.label), "reason": why}
        )
        self.found.ended[entry.name] = why

    def _readmit_channel(self, entry: ChannelEntry) -> None:
        twins = self._twins(entry.number)
        bridge = self._bridge(entry.number, twins, entry)
        if bridge is None:
            for descriptor in twins.values():
                os.close(descriptor)
            self._doubtful(entry, CUTTING)
            return
        source, sink = map(self._end, (entry.source, entry.sink))
        if source is None or sink is None or not bridge.is_whole():
            gone = source is None or sink is None
            bridge.cut()
            served = entry.one_way or entry.sink.startswith(RESOURCE)
            self._doubtful(entry, GONE if gone else UNBRIDGED if served else CUTTING)
            return
        channel = Channel(entry.number, entry.kind, source, sink, entry.port, entry.one_way)
        channel.generation, channel.record = entry.generation, entry.record
        channel.since, channel.for_s, channel.bridge = entry.since, entry.for_s, bridge
        channel.overflow, channel.size, channel.asked = entry.overflow, entry.size, entry.asked
        self._monitor.readmit_channel(channel)
        self.found.channels.append(entry.number)

    def _doubt(self, channel: Channel, machine: Heir) -> str:
        """Return why a channel can't go on with an adopted machine; nothing if it can."""
        held = channel.number in machine.attached
        return "" if held else "one of its machines does not have its end"

    def _doubtful(self, entry: ChannelEntry, why: str) -> None:
        self._journal.note("gone", {"channels": [entry.number]})
        self._journal.drop(*(twin_name(entry.number, side) for side in PARTS))
        self._monitor.mediator.audit.note("cut", {"channel": entry.number, "why": why})
        self.found.cut[entry.number] = why

    def _undo(self) -> None:
        """End what is held and not standing: starts and binds that were under way."""
        for number in sorted({found for name in self._kept if (found := _twin_of(name))}):
            self._sever(number)
            self.found.undone.append(f"channel {number}")
        for descriptor in self._kept.values():
            os.close(descriptor)
        for name, process in self._processes.items():
            process.kill()
            if name.startswith(prefixes.DOMAIN):
                self.found.undone.append(f"domain {name.split('/')[1]}")
        self._journal.drop(*self._kept, *self._processes)
        self._kept, self._processes = {}, {}

    def _sever(self, number: int) -> None:
        """Cut a channel that was being bound."""
        twins = self._twins(number)
        bridge = self._bridge(number, twins, None)
        if bridge is not None:
            bridge.cut()
        else:
            for descriptor in twins.values():
                os.close(descriptor)
        self._journal.drop(*(twin_name(number, side) for side in PARTS))
        self._monitor.channels.skip(number)

    def _bridge(
        self, number: int, twins: Mapping[Twin, int], entry: ChannelEntry | None
    ) -> Adopted | None:
        """Take over a channel, with the relay or helper that it has."""
        process = take_relay(self._processes, number)
        if process is not None:
            self._watch(number, process)
        return self._bridge_of(twins, process, entry)

    def _end(self, incarnation: str) -> Domain | None:
        """Return what goes on of an end."""
        if incarnation.startswith(RESOURCE):
            return self._monitor.resources.get(incarnation.removeprefix(RESOURCE))
        found = self._machines.get(incarnation)
        return found[0] if found else None

    def _twins(self, number: int) -> dict[Twin, int]:
        """Take the twins that the supervisor had of a channel."""
        names = {side: twin_name(number, side) for side in PARTS}
        return {side: self._kept.pop(name) for side, name in names.items() if name in self._kept}

    async def _detach_the_rest(self, domain: Domain, machine: Heir) -> None:
        """Have a machine drop the ends of what does not go on, also of what is cut meanwhile."""
        tried: set[int] = set()

        async def detach(number: int) -> None:
            with contextlib.suppress(SkerryError):  # severed it is all the same
                await machine.detach(number)

        while rest := machine.attached - tried - self._numbers(domain):
            tried |= rest
            await asyncio.gather(*(detach(number) for number in rest))

    def _numbers(self, domain: Domain) -> set[int]:
        return {channel.number for channel in self._monitor.channels.of(domain)}


async def end_unknown(inherited: Inherited, standing: Standing) -> None:
    """End every process that is not adopted, all at once, before its identity can be another's."""
    relays = {
        relay_name(entry.number)
        for entry in standing.channels.values()
        if entry.one_way or entry.sink.startswith(RESOURCE)
    }
    known = standing.domains.keys() | relays
    unknown = [
        process
        for name, process in inherited.processes.items()
        if name not in known and name.partition(".")[0] not in relays
    ]
    for process in unknown:
        process.kill()
    if unknown:
        await asyncio.wait({process.exited for process in unknown}, timeout=END_S)


def _twin_of(name: str) -> int:
    """Return the number of the channel whose twin has this name, 0 if it is no twin's."""
    number = name.removeprefix(prefixes.TWIN).partition(".")[0]
    return int(number) if name.startswith(prefixes.TWIN) and number.isdecimal() else 0
