"""One host: the monitor with its machines, channels, decider and trail, and a system on it.

The node gives the monitor what the system file says; it decides nothing itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary

import msgspec

from skerry.errors import Denied, MachineError, NotFound, SkerryError, StateError
from skerry.label import Label
from skerry.machine.qemu.template import TemplateUnusable
from skerry.monitor.domain import ALIVE, Domain, State
from skerry.monitor.monitor import Monitor, Relabelled
from skerry.monitor.protocols import COLD, Machine
from skerry.monitor.table import Channel
from skerry.node.changing import Changing, Refusal, refusal_of
from skerry.node.guest import Guest, guest_of
from skerry.node.journal import NodeJournal
from skerry.node.kept import SetupKeeper
from skerry.node.live_labels import Still
from skerry.node.on_record import bind_on_record
from skerry.node.resources import Resources
from skerry.node.rows import channel_row, domain_row
from skerry.node.setup import Setup
from skerry.node.sight import may_see
from skerry.system.model import ChannelSpec, DomainSpec

Report = Callable[[Mapping[str, object]], None]
"""Takes one event of a start (an object with `event`) and shows or drops it."""


GREETING_S = 86_400.0
"""How long a guest may take to answer for the first time; a paused one is waited for."""


UNDER_WAY = frozenset({State.STARTING, State.RUNNING, State.STOPPING})
"""The states of a domain for which a start of the system has nothing to do."""


class MachineMaker(Protocol):
    """Makes the machine of a domain; called after the start was allowed."""

    def __call__(self, domain: DomainSpec, label: Label) -> Machine:
        """Return a machine that is not prepared yet."""


class Helper(Protocol):
    """A process that serves the node."""

    @property
    def state(self) -> str:
        """`running`, or a word for why nothing new is allowed now."""


log = logging.getLogger("skerry.node")

MAX_REASON = 300
"""Characters of an unforeseen error that are kept."""


class Started(msgspec.Struct, frozen=True):
    """What a start did: the channels it bound and what was refused."""

    bound: tuple[Channel, ...]
    refused: tuple[Refusal, ...]


class Node(Changing):
    """A running system."""

    def __init__(
        self,
        setup: Setup,
        monitor: Monitor,
        make: MachineMaker,
        clock: Callable[[], float],
        keeper: SetupKeeper | None = None,
        resources: Resources | None = None,
        journal: NodeJournal | None = None,
    ) -> None:
        super().__init__(setup, monitor, clock, keeper, resources, journal)
        self.helpers: dict[str, Helper] = {}
        self.services = setup.system.services
        """The node's own domains; they are no part of the file's, and end with the node alone."""
        self._make = make
        self.measured: Callable[[DomainSpec], Mapping[str, object]] = lambda _spec: {}
        self._greetings: WeakKeyDictionary[Guest, asyncio.Future[None]] = WeakKeyDictionary()

    async def up(self, report: Report) -> list[Refusal]:
        """Start every domain that starts by itself, bind the channels, let them run.

        What an earlier node had begun of it is finished. A refusal stops only what was refused; all
        of them are returned.
        """
        alive = {d.name for d in self.monitor.domains.values() if d.state in UNDER_WAY}
        domains = self.setup.system.domains.items()
        starting = [name for name, domain in domains if domain.autostart and name not in alive]
        return await self.raise_up(self.setup.owner, starting, report)

    async def raise_up(
        self, operator: Label, names: Iterable[str], report: Report
    ) -> list[Refusal]:
        """Start these domains, bind what the file declares and is not bound, let them run.

        One that is paused is not started, but bound and let run as the others.
        """
        refused: list[Refusal] = []
        ready: list[str] = []

        def refuse(name: str, error: Exception) -> None:
            refused.append(self.refusal(f"domain {name}", error))
            report({"event": "refused", "what": f"domain {name}", "text": refused[-1].text})

        for name in names:
            report({"event": "starting", "domain": name})
            try:
                if not self._is_paused(name):
                    started = await self._start_paused(operator, name)
                    refused += self._tell(started, report)
                ready.append(name)
            except Exception as error:
                refuse(name, error)
        declared = await self._bind_declared(operator, self.setup.system.domains)
        refused += self._tell(declared, report)
        for name in ready:
            try:
                await self.monitor.resume(operator, name)
                report({"event": "running", "domain": name})
            except StateError:
                continue  # it died meanwhile, which `ps` shows
            except Exception as error:
                refuse(name, error)
        return refused

    def _tell(self, started: Started, report: Report) -> tuple[Refusal, ...]:
        """Report what was bound and refused, and return the latter."""
        for channel in started.bound:
            report({"event": "bound", **self._channel_row(channel)})
        for refusal in started.refused:
            report({"event": "refused", "what": refusal.what, "text": refusal.text})
        return started.refused

    async def start_own(self, spec: DomainSpec, label: Label) -> Domain:
        """Start one of the node's own domains, as itself, as far as *paused*."""
        make = partial(self._make, spec, label)
        about = self.measured(spec)
        return await self.monitor.start(label, spec.name, label, make, about=about)

    async def start(self, operator: Label, name: str) -> Started:
        """Start one domain of the file and bind the channels declared for it."""
        if self.known(name) is self.services.get(name):
            raise StateError(f"{name} is the node's own domain, which it starts by itself")
        cold = await self._start_paused(operator, name)
        started = await self._bind_declared(operator, {name})
        await self.monitor.resume(operator, name)
        return Started(cold.bound + started.bound, cold.refused + started.refused)

    def _is_paused(self, name: str) -> bool:
        domain = self.monitor.domains.get(name)
        return domain is not None and domain.state is State.PAUSED

    async def _start_paused(self, operator: Label, name: str) -> Started:
        """Start a domain, from its template if it can be, with what it takes only before."""
        spec = self.known(name)
        try:
            return await self._start_as(operator, spec)
        except TemplateUnusable:  # the trail says why
            await self.monitor.domain(name).gone.wait()
            return await self._start_as(operator, msgspec.structs.replace(spec, template=False))

    async def _start_as(self, operator: Label, spec: DomainSpec) -> Started:
        name, label = spec.name, self.setup.labels[spec.name]
        started = Started((), ())

        async def bind_cold() -> None:
            nonlocal started
            started = await self._bind_declared(operator, {name}, cold=True)

        await self.labels.require_start(operator, name, label)
        make = partial(self._make, spec, label)
        about = self.measured(spec)
        domain = await self.monitor.start(operator, name, label, make, bind_cold, about)
        self.hypercalls.attend(domain)
        return started

    async def _bind_declared(
        self, operator: Label, names: Collection[str], *, cold: bool = False
    ) -> Started:
        """Bind the file's channels with an end in `names`, where both are alive and it is not.

        `cold`: those, and only those, that a machine takes before it is made. Who is not the owner
        must be allowed to see both ends, as for `connect`.
        """
        bind = self.monitor.bind
        if operator != self.setup.owner:
            bind = partial(self.monitor.connect, operator)
        bound: list[Channel] = []
        refused: list[Refusal] = []
        stranded = {channel.number for channel in self.monitor.channels if channel.stranded}
        live = {spec for number, spec in self.bound().items() if number not in stranded}
        for spec in self.setup.system.channels:
            wanted = spec not in live and (spec.source in names or spec.sink in names)
            wanted = wanted and (spec.kind in COLD) is cold
            if wanted and self._can_bind(spec):
                try:
                    self._require_boot_disk(spec)
                    bound.append(
                        await bind_on_record(
                            self.monitor.mediator,
                            bind,
                            spec.source,
                            spec.sink,
                            spec.kind,
                            spec.name,
                            spec.one_way,
                            overflow=spec.overflow,
                            size=spec.size,
                        )
                    )
                except Exception as error:
                    what = f"channel {spec.name} between {spec.source} and {spec.sink}"
                    if spec.sink in self.setup.system.resources:
                        what = f"{spec.kind} {spec.sink} for {spec.source}"
                    refused.append(self.refusal(what, error))
        return Started(tuple(bound), tuple(refused))

    def refusal(self, what: str, error: Exception) -> Refusal:
        """Return an error, foreseen or not, as the refusal of one thing: the others go on."""
        if not isinstance(error, SkerryError):
            log.error("%s failed", what, exc_info=error)
            reason = f"{type(error).__name__}: {error}"[:MAX_REASON]
            self.monitor.mediator.audit.note("not-started", {"what": what, "reason": reason})
            error = SkerryError(f"it failed: {reason}", fix="look into the service's log")
        return refusal_of(what, error)

    def _require_boot_disk(self, spec: ChannelSpec) -> None:
        """Raise `StateError` for a further disk of a domain that has not got the one it boots.

        Its firmware boots the first disk that is there, whichever that is.
        """
        disks = [
            c for c in self.setup.system.channels if (c.source, c.kind) == (spec.source, "disk")
        ]
        if spec not in disks[1:] or self.has_agent(spec.source) or not self._is_paused(spec.source):
            return
        if disks[0] not in self.bound().values():
            raise StateError(
                f"{spec.source} has not got {disks[0].sink}, the disk that it boots",
                fix=f"let it have that, or name {spec.sink} first in its `uses`",
            )

    def _can_bind(self, spec: ChannelSpec) -> bool:
        states = {State.STARTING} if spec.kind in COLD else ALIVE
        names = [name for name in (spec.source, spec.sink) if name not in self.monitor.resources]
        domains = [self.monitor.domains.get(name) for name in names]
        return all(domain is not None and domain.state in states for domain in domains)

    def bound(self) -> dict[int, ChannelSpec]:
        """Return every channel by number, in the words of a system file."""
        return {
            channel.number: ChannelSpec(
                channel.kind,
                channel.source.name,
                channel.sink.name,
                channel.port,
                channel.one_way,
                channel.overflow,
                channel.size,
            )
            for channel in self.monitor.channels
        }

    def known(self, name: str, *, or_resource: bool = False) -> DomainSpec:
        """Return a domain of the file, or one of the node's own.

        Raises `NotFound`; `or_resource`: it could have been a resource, so those are named too.
        """
        try:
            return self.services.get(name) or self.setup.system.domains[name]
        except KeyError:
            system, what = self.setup.system, "domain or resource" if or_resource else "domain"
            known = ", ".join(system.domains)
            if or_resource and system.resources:
                known += f", and the resources {', '.join(system.resources)}"
            raise NotFound(f"there is no {what} {name}", fix=f"the file has: {known}") from None

    def share(self, channel: int) -> int:
        """Return what the domain that a channel begins at may use of the processors.

        In hundredths of a core; 0 is all, also for a channel that was cut meanwhile.
        """
        with contextlib.suppress(NotFound):
            return self.known(self.monitor.channels.get(channel).source.name).cpu
        return 0

    async def stop(self, name: str, deadline_s: float) -> str:
        """Stop a domain; returns how it ended."""
        self.known(name)
        await self.monitor.stop(name, deadline_s)
        end = self.monitor.domain(name).end
        return end.reason if end else "ended"

    async def kill(self, name: str) -> None:
        """End a domain at once and wait until its process is gone."""
        self.known(name)
        domain = self.monitor.domain(name)
        self.monitor.kill(name)
        await domain.gone.wait()

    async def relabel(self, operator: Label, name: str, text: str) -> dict[str, object]:
        """Give a running domain another label; its channels are judged, its sessions end."""
        self.known(name)
        try:
            label = self.setup.stack.label(text, "domain")
        except Denied as error:
            self.monitor.mediator.failed("domain_relabel", error, domain=name)
            raise
        done = await self.labels.relabel(operator, name, label, self.relabel_to)
        live = {channel.number for channel in self.monitor.channels}
        left = tuple(number for number in done.kept if number not in live)
        return {
            "domain": name,
            "label": str(label),
            "record": done.record,
            "kept": tuple(number for number in done.kept if number in live),
            "cut": done.cut + left,
        }

    async def relabel_to(
        self, operator: Label, name: str, label: Label, still: Still = lambda: None
    ) -> Relabelled:
        """Relabel a domain; what it uses of switches is judged before, pair by pair."""
        async with self.coalitions.relabelling(operator, name, label):
            done = await self.monitor.relabel(operator, name, label, still)
        self.hypercalls.follow()
        return done

    async def down(self, deadline_s: float) -> list[str]:
        """Stop every domain at once, cleanly where the guest does it in time; name them."""

        alive = self.alive()
        await asyncio.gather(*(self.end(name, deadline_s) for name in alive))
        return alive

    def alive(self) -> list[str]:
        """Return the domains that have not ended, those that are starting or stopping too.

        The node's own are not among them.
        """
        domains = [d for d in self.monitor.domains.values() if d.name not in self.services]
        return [d.name for d in domains if d.state is not State.ENDED]

    async def end(self, name: str, deadline_s: float) -> None:
        """Stop a domain, whatever it is doing, and return when it has ended."""
        domain = self.monitor.domain(name)
        try:
            await self.monitor.stop(name, deadline_s)
        except SkerryError:
            if domain.state is not State.ENDED:
                self.monitor.kill(name)
        await domain.gone.wait()

    async def answered(self, name: str, timeout_s: float) -> None:
        """Wait until a domain's agent answers. Raises `MachineError` when the time is over.

        One wait for each incarnation is shared by all who ask.
        """
        guest = guest_of(self.monitor.domain(name))
        greeting = self._greetings.get(guest)
        if greeting is None:
            greeting = asyncio.ensure_future(guest.agent.ready(GREETING_S))
            self._greetings[guest] = greeting
        done, _ = await asyncio.wait({greeting}, timeout=timeout_s)
        if not done:
            raise MachineError(
                f"the agent of {name} did not answer in {timeout_s:g} s",
                fix=f"`skerry console {name}` shows what it does",
            )
        await greeting

    def has_agent(self, name: str) -> bool:
        """Say whether a domain runs an image of ours, with an agent in it."""
        return self.known(name).boot == "kernel"

    async def may_see(self, operator: Label, label: Label) -> bool:
        """Say whether the operator may list a domain with this label. Not recorded."""
        return await may_see(self.monitor.mediator, operator, label)

    async def ps(self, operator: Label) -> list[dict[str, object]]:
        """List the domains of the file that the operator may see, and the node's own.

        Those stand in no policy that could hide them, and `health` tells every operator of them.
        """
        now, domains = self._clock(), self.monitor.domains
        rows = []
        for name, spec in self.setup.system.domains.items():
            domain = domains.get(name)
            label = domain.label if domain else self.setup.labels[name]
            if await self.may_see(operator, label):
                offers = self.hypercalls.offers.of(domain)
                rows.append(domain_row(spec, str(label), domain, now, offers))
        own = self.services.values()
        return rows + [domain_row(s, str(s.label), domains.get(s.name), now) for s in own]

    def health(self) -> list[dict[str, str]]:
        """Say of each process that serves the node in which state it is."""
        return [{"helper": name, "state": h.state} for name, h in self.helpers.items()]

    async def channels(self, operator: Label) -> list[dict[str, object]]:
        """List the channels both of whose domains the operator may see."""
        return [
            self._channel_row(channel)
            for channel in self.monitor.channels
            if all([await self.may_see(operator, end.label) for end in channel.machines])
        ]

    def _channel_row(self, channel: Channel) -> dict[str, object]:
        return channel_row(channel, self._clock())
