"""After the node was killed: adopt what stands, undo what was half done, cut what is doubtful.

The rules (law 7): only what the journal calls standing is adopted, and only if it is all there;
everything else that the supervisor holds is ended; all that was adopted is judged again by the
policy in force before anything new is allowed. None of that asks anybody. Where nobody judges it,
nothing goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from skerry.channel.stream import StreamBridge
from skerry.errors import SkerryError
from skerry.machine.qemu.launch import KEPT, kept_names
from skerry.monitor.domain import Domain, State
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Candidate, Machine, Side
from skerry.monitor.revise import UNDECIDED, Fall
from skerry.monitor.table import Channel
from skerry.node.journal import SIDES, NodeJournal, twin_name
from skerry.node.standing import ChannelEntry, DomainEntry, Footprint
from skerry.supervisor.client import Inherited, Process

ADOPT_S = 15.0
"""How long a machine may take to answer its new node; one that does not is ended."""

JUDGE_TRIES, JUDGE_PAUSE_S = 6, 0.5
"""How often, and how far apart, what was adopted is put to a policy manager that does not answer:
long enough for another one to be started. After that the node ends, and everything with it."""


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
    ) -> None:
        self.found = Recovered()
        self._monitor = monitor
        self._journal = journal
        self._processes = dict(inherited.processes)
        self._kept = {n: fd for n, fd in inherited.kept.items() if not n.startswith("n/")}
        self._heir = heir
        self._forget = forget
        self._machines: dict[str, Heir] = {}
        self._domains: dict[str, Domain] = {}

    async def run(self, in_force: Callable[[], Candidate]) -> Recovered:
        """Adopt, undo, cut, judge. Raises nothing that one machine or channel is the cause of.

        `in_force` gives the policy that judges. Raises `DeciderUnavailable` where nobody does; the
        node must end then, because what was adopted runs unjudged.
        """
        entries = dict(self._journal.standing.domains)
        await asyncio.gather(*(self._adopt(entry) for entry in entries.values()))
        for channel in list(self._journal.standing.channels.values()):
            self._readmit_channel(channel)
        await self._undo()
        await self._detach_the_rest()
        fall = await self._judge(in_force)
        for refused, why in fall.channels.items():
            self.found.channels.remove(refused.number)
            self.found.cut[refused.number] = why
        for domain, why in fall.domains.items():
            self.found.domains.remove(domain.name)
            self.found.ended[domain.name] = why
        return self.found

    async def _judge(self, in_force: Callable[[], Candidate]) -> Fall:
        for _ in range(JUDGE_TRIES - 1):
            with contextlib.suppress(*UNDECIDED):
                return await self._monitor.judge_again(in_force())
            await asyncio.sleep(JUDGE_PAUSE_S)
        return await self._monitor.judge_again(in_force())

    async def _adopt(self, entry: DomainEntry) -> None:
        incarnation = entry.footprint.incarnation
        process = self._processes.pop(incarnation, None)
        kept = {
            name: self._kept.pop(name)
            for name in (f"{incarnation}.{part}" for part in KEPT)
            if name in self._kept
        }
        try:
            if process is None or process.exited.done():
                how = "unknown" if process is None else str(process.exited.result())
                raise SkerryError(f"it ended while there was no node, with status {how}")
            machine = self._heir(entry, process, kept)
            kept = {}
        except SkerryError as error:
            for descriptor in kept.values():
                os.close(descriptor)
            self._lost(entry, process, str(error))
            return
        try:
            async with asyncio.timeout(ADOPT_S):
                await machine.adopt()
        except (SkerryError, TimeoutError) as error:
            machine.kill()
            self._lost(entry, process, f"it does not answer: {error}")
            return
        domain = Domain(entry.name, entry.label, entry.started)
        self._monitor.readmit(domain, machine, State.RUNNING if machine.running else State.PAUSED)
        self._machines[incarnation], self._domains[incarnation] = machine, domain
        self.found.domains.append(entry.name)

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
        if len(twins) < len(SIDES):
            for descriptor in twins.values():
                os.close(descriptor)
            self._doubtful(entry, "it was being cut")
            return
        bridge = StreamBridge.adopt(twins)
        why = self._doubt(entry, bridge)
        if why:
            bridge.cut()
            self._doubtful(entry, why)
            return
        channel = Channel(
            entry.number,
            entry.kind,
            self._domains[entry.source],
            self._domains[entry.sink],
            entry.port,
            entry.one_way,
        )
        channel.generation, channel.record = entry.generation, entry.record
        channel.since, channel.for_s, channel.bridge = entry.since, entry.for_s, bridge
        self._monitor.readmit_channel(channel)
        self.found.channels.append(entry.number)

    def _doubt(self, entry: ChannelEntry, bridge: StreamBridge) -> str:
        """Return why a channel can't go on; nothing if it can."""
        ends = entry.source, entry.sink
        if not all(end in self._machines for end in ends):
            return "one of its domains does not go on"
        if not all(entry.number in self._machines[end].attached for end in ends):
            return "one of its machines does not have its end"
        return "" if bridge.is_whole() else "it was being cut"

    def _doubtful(self, entry: ChannelEntry, why: str) -> None:
        self._journal.note("gone", {"channels": [entry.number]})
        self._journal.drop(*(twin_name(entry.number, side) for side in SIDES))
        self._monitor.mediator.audit.note("cut", {"channel": entry.number, "why": why})
        self.found.cut[entry.number] = why

    async def _undo(self) -> None:
        """End what is held and not standing: starts and binds that were under way."""
        for number in sorted({found for name in self._kept if (found := _twin_of(name))}):
            self._sever(number)
            self.found.undone.append(f"channel {number}")
        for descriptor in self._kept.values():
            os.close(descriptor)
        for name, process in self._processes.items():
            process.kill()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(process.exited), ADOPT_S)
            if name.startswith("d/"):
                self.found.undone.append(f"domain {name.split('/')[1]}")
        self._journal.drop(*self._kept, *self._processes)
        self._kept, self._processes = {}, {}

    def _sever(self, number: int) -> None:
        """Cut a channel that was being bound."""
        twins = self._twins(number)
        if len(twins) == len(SIDES):
            StreamBridge.adopt(twins).cut()
        else:
            for descriptor in twins.values():
                os.close(descriptor)
        self._journal.drop(*(twin_name(number, side) for side in SIDES))
        self._monitor.channels.skip(number)

    def _twins(self, number: int) -> dict[Side, int]:
        """Take the twins that the supervisor had of a channel."""
        names = {side: twin_name(number, side) for side in SIDES}
        return {side: self._kept.pop(name) for side, name in names.items() if name in self._kept}

    async def _detach_the_rest(self) -> None:
        """Have every machine drop the ends of what does not go on."""
        live = set(self.found.channels)

        async def detach(machine: Heir, number: int) -> None:
            with contextlib.suppress(SkerryError):  # severed it is all the same
                await machine.detach(number)

        await asyncio.gather(
            *(
                detach(machine, number)
                for machine in self._machines.values()
                for number in machine.attached - live
            )
        )


def _twin_of(name: str) -> int:
    """Return the number of the channel whose twin has this name, 0 if it is no twin's."""
    kind, _, rest = name.partition("/")
    number = rest.partition(".")[0]
    return int(number) if kind == "c" and number.isdecimal() else 0
