"""Binding channels and cutting them: the lower half of the monitor.

The rules this module keeps (laws 2 to 4): a channel stands in the table from before it is decided;
its twins are in safe hands before a machine gets an end; a cut never asks, waits for nobody, and
when it returns no byte can cross. What stands between two `await`s is atomic.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

from skerry.errors import Denied, LimitReached, NotFound, StaleGeneration, StateError
from skerry.label import Label
from skerry.monitor.domain import ALIVE, Domain, Resource
from skerry.monitor.ends import Detaching, lent
from skerry.monitor.journal import Journal
from skerry.monitor.mediate import Grant, Mediator, failure
from skerry.monitor.protocols import AuditLog, Bridges, Decider, Kind, Overflow
from skerry.monitor.table import MAX_CHANNELS, Channel, ChannelTable, Phase


class Binder:
    """The domains and channels of one node; `Monitor` adds the life of domains and policies.

    `withdrawn` is called with a domain's name and the reason in the very step in which what was
    granted over it ends (relabel, stop, kill, end), so that sessions end with the channels. `most`
    says how many channels a domain may have.
    """

    def __init__(
        self,
        decider: Decider,
        audit: AuditLog,
        bridges: Mapping[Kind, Bridges],
        clock: Callable[[], float],
        *,
        journal: Journal | None = None,
        max_channels: int = MAX_CHANNELS,
    ) -> None:
        self.mediator = Mediator(decider, audit)
        self.domains: dict[str, Domain] = {}
        self.resources: dict[str, Resource] = {}
        self.channels = ChannelTable(max_channels, lambda: self.mediator.decider.remembers)
        self.withdrawn: Callable[[str, str], object] = lambda name, why: None
        self.most: Callable[[str], int] = lambda name: MAX_CHANNELS
        self._audit = audit
        self._journal = journal or Journal()
        self._bridges = bridges
        self._clock = clock
        self._calm = asyncio.Event()  # not set while a policy is being changed
        self._calm.set()
        self._detaching = Detaching(audit)

    def domain(self, name: str) -> Domain:
        """Return the last incarnation of a domain. Raises `NotFound` if it was never started."""
        try:
            return self.domains[name]
        except KeyError:
            raise NotFound(
                f"domain {name} has not been started", fix="`skerry ps` lists the domains"
            ) from None

    async def use(self, hook: str, operator: Label, name: str, **about: object) -> Grant:
        """Ask a hook between the operator and a domain (exec, console, pause …)."""
        domain = self.domain(name)
        return await self.mediator.permit(
            hook,
            lambda: {"operator": operator, "domain": domain.label},
            {"domain": name, **about},
        )

    async def connect(
        self,
        operator: Label,
        source: str,
        sink: str,
        kind: Kind = "stream",
        port: str = "",
        one_way: bool = False,
        for_s: float | None = None,
        overflow: Overflow = "block",
        size: int = 0,
    ) -> Channel:
        """Bind a channel at an operator's wish, who must be allowed to see both domains, or to
        give the resource."""
        await self.use("domain_getdomaininfo", operator, source, channel_to=sink)
        if sink in self.resources:
            await self.use("resource_attach", operator, source, resource=sink)
        else:
            await self.use("domain_getdomaininfo", operator, sink, channel_from=source)
        return await self.bind(source, sink, kind, port, one_way, for_s, overflow, size)

    async def bind(
        self,
        source: str,
        sink: str,
        kind: Kind = "stream",
        port: str = "",
        one_way: bool = False,
        for_s: float | None = None,
        overflow: Overflow = "block",
        size: int = 0,
        asked: str = "",
    ) -> Channel:
        """Bind a channel between two domains that run or are paused, and return it live.

        The sink may be a resource: then the channel is the source's use of it, `one_way` a use
        that only reads, and its kind the resource's. `port` is its name in the guests; empty, it
        is the resource's or `ch<number>`. `for_s` bounds its life; `size`: see `Bridges.mint`;
        `asked`: see `Channel`. Raises `Refused` and other `Denied`s, `StateError`, `MachineError`;
        then no machine holds anything of it.
        """
        first, second = self.domain(source), self.resources.get(sink) or self.domain(sink)
        if first is second:
            raise StateError(f"domain {source} cannot have a channel to itself")
        if isinstance(second, Resource):
            kind, one_way = second.kind, one_way and second.kind == "disk"
            port = port or second.name
        elif kind not in self._bridges:
            raise StateError(f"this node makes no channels of the kind {kind}", fix="use stream")
        for old in self.channels.of(first):
            if old.stranded and old.port == port:
                self._cut(old, "its port is bound anew")
                await self.settle()
        channel = self.channels.made(kind, first, second, port, one_way)
        channel.for_s, channel.overflow, channel.size, channel.asked = for_s, overflow, size, asked
        for domain in channel.machines:
            domain.require(channel.states, "bind a channel to it")
            if len(self.channels.of(domain)) >= self.most(domain.name):
                full = f"domain {domain.name} has its {self.most(domain.name)} channels"
                raise LimitReached(full, fix="cut one, or raise its `channels`")
            if self.channels.port_taken(domain, channel.port):
                taken = f"domain {domain.name} already has a port {channel.port}"
                raise StateError(taken, fix="name another")
        self.channels.enter(channel)
        try:
            await self._journal.numbered(channel)
            await self._mint(channel)
            await self._journal.minted(channel)
            await self._attach(channel)
            await self._journal.live(channel)
            self._still_wanted(channel)
        except BaseException as error:
            if channel.phase is Phase.LIVE:
                self._cut(channel, f"it could not be attached: {error}")
            else:
                self._drop(channel)
            # Where it was allowed, and came to nothing, nobody has recorded that yet.
            if isinstance(error, Denied) and channel.record and not error.record:
                error.record = await self.mediator.deny(failure(channel.hook, error, channel.about))
            raise
        return channel

    async def _mint(self, channel: Channel) -> None:
        about = channel.about | ({} if channel.for_s is None else {"for_s": channel.for_s})
        await self._calm.wait()
        grant = await self.mediator.permit(
            channel.hook, lambda: self.channels.parties(channel), about
        )
        channel.generation, channel.record = grant.generation, grant.record
        sink = channel.sink
        makers = sink.bridges if isinstance(sink, Resource) else self._bridges[channel.kind]
        self._still_wanted(channel)
        how = channel.one_way, channel.overflow
        channel.bridge = makers.mint(*how, size=channel.size, source=channel.source.name)
        channel.phase = Phase.LIVE
        channel.since = self._clock()
        self._bound(channel)

    def _bound(self, channel: Channel) -> None:
        if channel.for_s is not None:
            left = channel.since + channel.for_s - self._clock()
            channel.timer = asyncio.get_running_loop().call_later(left, self._expire, channel)

    def readmit_channel(self, channel: Channel) -> None:
        """Go on with a channel that was live before a restart; its bridge has both twins."""
        self.channels.enter(channel)
        channel.phase = Phase.LIVE
        channel.wrote(channel.source.label)
        self._bound(channel)

    @contextlib.asynccontextmanager
    async def _no_binding(self) -> AsyncIterator[None]:
        """Let nobody begin to be asked for a channel, so that what stands is soon known."""
        self._calm.clear()
        try:
            yield
        finally:
            self._calm.set()

    def _expire(self, channel: Channel) -> None:
        """End a bounded grant when its time is over, also while machines take their ends."""
        if channel.phase is Phase.LIVE:
            self._cut(channel, "its time is over")

    def _still_wanted(self, channel: Channel) -> None:
        if channel.phase is Phase.CUT:
            raise StaleGeneration(
                f"channel {channel.number} was cut while it was being bound", fix="try again"
            )
        for domain in channel.machines:
            domain.require(channel.states, "bind a channel to it")

    async def _attach(self, channel: Channel) -> None:
        self._still_wanted(channel)
        bridge = channel.bridge
        assert bridge is not None  # it was minted, and not cut
        machines = [d.require(channel.states, "attach a channel") for d in channel.machines]
        what = channel.number, channel.kind, channel.port
        await bridge.open(channel.number)
        self._still_wanted(channel)
        channel.wrote(channel.source.label)  # it will have it; until here it may yet be refused
        await self._journal.lending(channel)
        self._still_wanted(channel)
        channel.attaching = True
        try:
            with lent(bridge) as ends:
                results = await asyncio.gather(
                    *(m.attach(*what, *end) for m, end in zip(machines, ends, strict=False)),
                    return_exceptions=True,
                )
        finally:
            channel.attaching = False
            if channel.phase is Phase.CUT:  # meanwhile, so what was taken since must go too
                self._detach(channel)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        bridge.handed_over()

    def cut(self, number: int, why: str = "cut by the operator") -> int:
        """Revoke one channel: when this returns, no byte can cross. Returns bytes drained."""
        return self._cut(self.channels.get(number), why)

    def _cut(self, channel: Channel, why: str) -> int:
        drained = self._drop(channel)
        self._audit.note("cut", channel.about | {"drained": drained, "why": why})
        return drained

    def _cut_all(self, domain: Domain, why: str, *, uses: bool = True) -> list[int]:
        """Cut a domain's channels; its `uses` of resources too, without which it can't end well."""
        self.withdrawn(domain.name, why)
        ending = (c for c in self.channels.of(domain) if c.ends_with(domain))
        channels = [c for c in ending if uses or c.machines == c.ends]
        for channel in channels:
            self._cut(channel, why)
        return [channel.number for channel in channels]

    def _drop(self, channel: Channel) -> int:
        """Sever a channel in whatever phase, and let both machines drop their ends later."""
        self.channels.remove(channel)
        channel.phase = Phase.CUT
        if channel.timer is not None:
            channel.timer.cancel()
        bridge, channel.bridge = channel.bridge, None
        if bridge is None:
            return 0
        drained = bridge.cut()
        self._journal.gone(channel)
        if not channel.attaching:
            self._detach(channel)
        return drained

    def _detach(self, channel: Channel) -> None:
        for domain in channel.machines:
            if domain.machine is not None and domain.state in ALIVE:
                self._detaching.later(domain.machine, channel.number)

    async def settle(self) -> None:
        """Wait until both machines of every cut channel have dropped their ends."""
        await self._detaching.settle()
