"""The reference monitor: domains, bind, cut, relabel, and changes of policy.

Giving authority goes through `Mediator.permit`; taking it away (`cut`, `stop`, `kill`) never asks,
takes effect first and is recorded after. All methods run on one event loop; what stands between
two `await`s is atomic, and that is the lock under which a generation is compared and a channel
minted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial

import msgspec

from skerry.errors import Denied, LimitReached, StaleGeneration, StateError
from skerry.label import Label
from skerry.monitor.bind import Binder
from skerry.monitor.domain import ALIVE, Domain, State, end_of
from skerry.monitor.journal import Journal
from skerry.monitor.mediate import MAX_TRIES, SERVICES, exchanged
from skerry.monitor.protocols import (
    AuditLog,
    Bridges,
    Candidate,
    Decider,
    Exit,
    Kind,
    Machine,
)
from skerry.monitor.revise import EvictionNeeded, Fall, Fallen, Loaded, Standing, find_fall
from skerry.monitor.table import MAX_CHANNELS, Channel, Phase

MAX_DOMAINS = 1_000
"""Most domains of one node that run at once. At the limit a start is refused."""


class Relabelled(msgspec.Struct, frozen=True):
    """What a relabel did: its record and the channels that were kept and cut."""

    record: int
    kept: tuple[int, ...]
    cut: tuple[int, ...]


class Monitor(Binder):
    """All domains and channels of one node, and everything that may happen to them."""

    def __init__(
        self,
        decider: Decider,
        audit: AuditLog,
        bridges: Mapping[Kind, Bridges],
        clock: Callable[[], float],
        *,
        journal: Journal | None = None,
        max_domains: int = MAX_DOMAINS,
        max_channels: int = MAX_CHANNELS,
    ) -> None:
        super().__init__(decider, audit, bridges, clock, journal=journal, max_channels=max_channels)
        self._max_domains = max_domains
        self._admission = asyncio.Lock()

    def limit(self, domains: int, channels: int) -> None:
        """Set how many there may be from now on; what is over it stays."""
        self._max_domains, self.channels.limit = domains, channels

    def running(self, *, beside: Domain | None = None) -> tuple[Label, ...]:
        """Return the label of every admitted domain but one, sorted: what a wall counts."""
        return tuple(
            sorted(d.label for d in self.domains.values() if d.admitted and d is not beside)
        )

    async def start(
        self,
        operator: Label,
        name: str,
        label: Label,
        make: Callable[[], Machine],
        cold: Callable[[], Awaitable[object]] | None = None,
        about: Mapping[str, object] = {},
    ) -> Domain:
        """Start a domain as far as *paused*: admitted, jailed, its processors not yet running.

        `make` is called only after the allow is on disk, and `cold` then, to bind what a machine
        takes before it is prepared; `about` is what the record says of it besides. Raises
        `StateError` if it runs already, `Refused` or another `Denied`, `MachineError`; then no
        trace of it counts as running.
        """
        old = self.domains.get(name)
        if old is not None and old.state is not State.ENDED:
            raise StateError(f"domain {name} is already {old.state.value}")
        domain = Domain(name, label, self._clock())
        self.domains[name] = domain
        try:
            await self._admit(operator, domain, about)
            self._watch(domain, make())
            if cold is not None:
                await cold()
            await self._prepare(domain)
        except BaseException as error:
            self._never_ran(domain, old, error)
            raise
        return domain

    async def _admit(self, operator: Label, domain: Domain, about: Mapping[str, object]) -> None:
        # One start at a time is decided, so that two competitors can't pass the wall together.
        async with self._admission:
            if domain.label not in SERVICES and len(self.running()) >= self._max_domains:
                full = f"the node has its {self._max_domains} domains"
                raise LimitReached(full, fix="stop one of them")
            await self.mediator.permit(
                "domain_create",
                lambda: {"operator": operator, "domain": domain.label},
                {"domain": domain.name, **about},
                lambda: self.running(beside=domain),
            )
            if domain.state is not State.STARTING:
                raise StateError(f"domain {domain.name} was ended while it was being started")
            domain.admitted = domain.label not in SERVICES

    async def _prepare(self, domain: Domain) -> None:
        machine = domain.require({State.STARTING}, "prepare it")
        await machine.prepare()
        await self._journal.ready(domain)
        if domain.state is not State.STARTING:
            machine.kill()
            raise StateError(f"domain {domain.name} was ended while it was being started")
        domain.move(State.PAUSED, self._clock())

    def _watch(self, domain: Domain, machine: Machine) -> None:
        domain.machine = machine
        machine.exited.add_done_callback(lambda future: self._exited(domain, end_of(future)))

    def readmit(self, domain: Domain, machine: Machine) -> None:
        """Let a domain that stood before a restart count, and be ended; `adopted` must follow."""
        self.domains[domain.name] = domain
        domain.admitted = domain.label not in SERVICES
        self._watch(domain, machine)

    def adopted(self, domain: Domain, state: State) -> None:
        """Go on with a readmitted domain whose machine was found in this state."""
        domain.move(State.PAUSED, domain.started)
        if state is State.RUNNING:
            domain.move(state, domain.started)

    def _never_ran(self, domain: Domain, old: Domain | None, error: BaseException) -> None:
        if isinstance(error, LimitReached) or (isinstance(error, Denied) and domain.admitted):
            # What was asked of the modules is recorded already.
            self.mediator.failed("domain_create", error, domain=domain.name)
        if domain.machine is None:
            # Nothing was made: the earlier incarnation, if any, is again what `ps` shows.
            domain.admitted = False
            if domain.state is not State.ENDED:
                domain.move(State.ENDED, self._clock())
            domain.gone.set()
            if self.domains.get(domain.name) is not domain:
                return  # it was ended, and started again, while it waited
            if old is None:
                del self.domains[domain.name]
            else:
                self.domains[domain.name] = old
        else:
            domain.machine.kill()

    def _exited(self, domain: Domain, end: Exit) -> None:
        """Take note of a machine that ended, whoever ended it: cut, release the wall, record."""
        asked = domain.state is State.STOPPING
        domain.end = end
        if domain.machine is not None:
            domain.machine.kill()  # in case it only lost sight of its process
        cut = self._cut_all(domain, "its domain ended")
        domain.admitted = False
        if domain.state is not State.ENDED:
            domain.move(State.ENDED, self._clock())
        domain.gone.set()
        self._journal.ended(domain)
        self._audit.note(
            "ended",
            {
                "domain": domain.name,
                "label": str(domain.label),
                "asked": asked,
                "status": end.status,
                "reason": end.reason,
                "cut": cut,
            },
        )

    async def resume(self, operator: Label, name: str) -> None:
        """Let a domain's processors run, for the first time or after a pause."""
        await self._switch("domain_unpause", operator, name, State.PAUSED, State.RUNNING)

    async def pause(self, operator: Label, name: str) -> None:
        """Stop a domain's processors; it keeps its memory and its channels."""
        await self._switch("domain_pause", operator, name, State.RUNNING, State.PAUSED)

    async def _switch(self, hook: str, operator: Label, name: str, old: State, new: State) -> None:
        domain, what = self.domain(name), "resume it" if new is State.RUNNING else "pause it"
        domain.require({old}, what)
        await self.use(hook, operator, name)
        machine = domain.require({old}, what)
        await (machine.resume() if new is State.RUNNING else machine.pause())
        if domain.state is old:
            domain.move(new, self._clock())

    async def stop(self, name: str, deadline_s: float) -> None:
        """Cut a domain's channels, ask its guest to end, and end it when the deadline passes."""
        domain = self.domain(name)
        if domain.state is State.STARTING and domain.machine is None:
            self.kill(name)
            return
        machine = domain.require({State.STARTING, *ALIVE}, "stop it")
        domain.move(State.STOPPING, self._clock())
        self._cut_all(domain, "its domain is being stopped", uses=False)
        try:
            await machine.shutdown(deadline_s)
        except Exception as error:  # it is ended all the same, below
            why = {"domain": name, "reason": f"{error!r:.200}"}
            self._audit.note("shutdown-failed", why)
        finally:
            machine.kill()
        await domain.gone.wait()

    def kill(self, name: str) -> None:
        """End a domain at once. Works in every state but `ended`; nothing is asked."""
        domain = self.domain(name)
        if domain.state is State.ENDED:
            raise StateError(f"domain {name} has already ended")
        if domain.state is not State.STOPPING:
            domain.move(State.STOPPING, self._clock())
        self._cut_all(domain, "its domain was killed")
        if domain.machine is not None:
            domain.machine.kill()
        else:  # its start waits for an answer, which it does not outlive
            self._exited(domain, Exit(0, "it was ended before it had a machine"))

    async def relabel(
        self, operator: Label, name: str, new: Label, still: Callable[[], object] = lambda: None
    ) -> Relabelled:
        """Give a running domain another label; every channel is judged before it is visible.

        Admission is asked again. Channels that the policy refuses under the new label are cut.
        `still` is called in the step in which the label is given; what it raises refuses that.
        """
        domain = self.domain(name)
        domain.require(ALIVE, "relabel it")
        for _ in range(MAX_TRIES):
            async with self._admission, self._no_binding():
                grant = await self.mediator.permit(
                    "domain_relabel",
                    lambda: {"operator": operator, "domain": domain.label, "new": new},
                    {"domain": name},
                    lambda: self.running(beside=domain),
                )
                before = self.channels.of(domain)
                refused = await self._refused_under(before, domain, new)
                try:
                    await self._journal.labelled(domain, new)
                    # Again: what the old label has learnt meanwhile crosses too.
                    await self.mediator.decider.touch(domain.label, new)
                    domain.require(ALIVE, "relabel it")
                    same = self.mediator.decider.generation == grant.generation
                    if not same or self.channels.of(domain) != before:
                        continue
                    still()
                    why = f"its domain was relabelled to {new}"
                    self.withdrawn(name, why)
                    for channel in refused:
                        self._cut(channel, why)
                    domain.label = new
                finally:
                    if domain.label != new:  # before it is asked again, which may be refused
                        await self._journal.labelled(domain, domain.label)
            await self.settle()
            cut = tuple(c.number for c in refused)
            kept = tuple(c.number for c in before if c.number not in cut)
            return Relabelled(grant.record, kept, cut)
        raise StaleGeneration(f"domain {name} kept changing while it was relabelled", fix="retry")

    async def load(
        self,
        hook: str,
        operator: Label,
        security: Label,
        candidate: Candidate,
        about: Mapping[str, object],
        *,
        evict: bool = False,
        dry_run: bool = False,
        durable: Callable[[Mapping[Domain, Label]], Awaitable[object]] | None = None,
        installed: Callable[[], Awaitable[object]] | None = None,
    ) -> Loaded:
        """Bring a policy into force and end at once what it does not allow.

        `hook` is asked of the policy in force, with the policy itself (`security`) as target. When
        this returns, no byte crosses a channel that the new policy refuses. Domains whose label it
        lacks, or that it lets not run beside each other, are ended with `evict` and otherwise
        raise `EvictionNeeded`. A dry run only says what would happen. `durable` is called before
        the policy comes into force, with the labels under it; `installed` in the step in which it
        does, before anything is waited for. Binding waits meanwhile.
        """
        parties = {"operator": operator, "security": security}
        async with self._admission, self._no_binding():
            for _ in range(MAX_TRIES):
                grant = await self.mediator.permit(hook, lambda: parties, about)
                standing = self._standing()
                try:
                    fall = (await find_fall(candidate, standing)).of(self._standing())
                except Denied as failure:
                    self.mediator.failed(hook, failure, undone=grant.record)
                    raise
                needed = bool(fall.domains) and not evict
                if durable is not None and not dry_run and not needed:
                    await durable(fall.labels)
                now = self._standing()  # what has gone needs no judgement
                if standing.covers(now) and self.mediator.decider.generation == grant.generation:
                    fall = fall.of(now)
                    break
            else:
                raise StaleGeneration("domains and channels kept changing", fix="try again")
            loaded = _loaded(grant.record, candidate.generation, fall)
            if dry_run:
                return loaded
            if needed:
                error = EvictionNeeded(loaded.evicted)
                self._audit.note("not-loaded", {"record": grant.record, "reason": str(error)})
                raise error
            try:
                self._install(candidate, fall)
            except Denied as error:
                self.mediator.failed(hook, error, undone=grant.record)
                raise
            if installed is not None:
                await installed()
        fall = await self._remember(fall)
        await self.settle()
        for domain in fall.domains:
            await domain.gone.wait()
        return _loaded(grant.record, candidate.generation, fall)

    def _standing(self) -> Standing:
        domains = sorted(self.domains.values(), key=lambda domain: domain.started)
        return Standing(
            tuple(channel for channel in self.channels if channel.phase is Phase.LIVE),
            tuple((domain, domain.label) for domain in domains if domain.admitted),
        )

    def _install(self, candidate: Candidate, fall: Fall) -> None:
        """Raise the generation and take everything away that falls, in one step."""
        generation = self.mediator.decider.install(candidate)
        self._end(fall, f"the policy of generation {generation} refuses it")
        for domain, label in fall.labels.items():
            domain.label = label
        for resource in self.resources.values():
            resource.carry(candidate.carry)
        self._audit.note(
            "loaded",
            {
                "generation": generation,
                "cut": len(fall.channels),
                "kept": len(fall.kept),
                "evicted": [domain.name for domain in fall.domains],
            },
        )

    def _end(self, fall: Fall, cause: str) -> None:
        for channel, why in fall.channels.items():
            self._cut(channel, f"{cause}: {why}")
        for domain, why in fall.domains.items():
            if domain.state is not State.ENDED:
                self.kill(domain.name)
            self._audit.note("evicted", {"domain": domain.name, "why": why})

    async def judge_again(self, candidate: Candidate) -> Fall:
        """Judge what was readmitted by the policy in force, and remember it in its walls, which a
        kill may have left undone; end at once what it refuses or what can't be remembered.

        Raises what `find_fall` does, and then nothing was judged: the caller must end it all.
        """
        fall = (await find_fall(candidate, self._standing())).of(self._standing())
        self._end(fall, "after a restart the policy refuses it")
        return await self._remember(fall)

    async def _remember(self, fall: Fall) -> Fall:
        """Let what goes on count in the new policy's walls; what can't be remembered is cut.

        Returns the fall with what was cut.
        """
        groups = {tuple(exchanged(c.hook, c.parties())) for c in fall.kept} - {()}
        cut = await self._touch_all(sorted(groups | {(each,) for each in fall.labels.values()}))
        groups, seen = set(), set[Domain]()
        for channel in fall.kept:  # and all who are joined over what is left, as one
            if channel not in cut and channel.source not in seen:
                seen |= (joined := self.channels.joined(channel))
                groups.add(tuple(sorted({domain.label for domain in joined})))
        cut |= await self._touch_all(sorted(groups))
        kept = tuple(channel for channel in fall.kept if channel not in cut)
        return fall._replace(channels={**fall.channels, **cut}, kept=kept)

    async def _touch_all(self, groups: Collection[tuple[Label, ...]]) -> dict[Channel, str]:
        """Let exchanges count in the walls, and cut what can't be remembered: return that."""
        cut: dict[Channel, str] = {}
        # All at once: what waits for the disk must not keep the rest from counting.
        touches = (self.mediator.decider.touch(*group) for group in groups)
        done = await asyncio.gather(*touches, return_exceptions=True)
        for group, error in zip(groups, done, strict=True):
            if error is not None:
                why = f"what it exchanged can't be remembered: {error}"
                for channel in self.channels:
                    if channel.phase is Phase.LIVE and {*channel.parties().values()} & set(group):
                        self._cut(channel, why)
                        cut[channel] = why
        return cut

    async def _refused_under(
        self, channels: Collection[Channel], domain: Domain, new: Label
    ) -> list[Channel]:
        """Return the live channels that the policy refuses if the domain has the new label.

        Binding ones are not asked here: they compare their parties' labels before they mint.
        """

        def under(end: Domain) -> Label:
            return new if end is domain else end.label

        refused = []
        for channel in channels:
            ask = partial(self.channels.parties, channel, under)
            try:
                asked = ask()
                allowed = (await self.mediator.judge(channel.hook, asked)).allowed
                if allowed:
                    await self.mediator.touch(channel.hook, asked, ask)
            except Exception:  # whatever fails in deciding is a refusal
                allowed = False
            if allowed:
                channel.wrote(under(channel.source))
            else:
                refused.append(channel)
        return refused


def _loaded(record: int, generation: int, fall: Fall) -> Loaded:
    cut = tuple(Fallen(channel.number, why) for channel, why in fall.channels.items())
    evicted = tuple(Fallen(domain.name, why) for domain, why in fall.domains.items())
    kept = tuple(channel.number for channel in fall.kept)
    return Loaded(record, generation, cut, evicted, kept)
