"""One host: the monitor with its machines, channels, decider and trail, and a system on it.

The node gives the monitor what the system file says; it decides nothing itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, Protocol, cast
from weakref import WeakKeyDictionary

import msgspec

from skerry.channel.one_way import BACK_BITS_S
from skerry.errors import (
    Denied,
    MachineError,
    NotFound,
    SkerryError,
    StaleGeneration,
    StateError,
)
from skerry.label import Label
from skerry.monitor.domain import ALIVE, Domain, State
from skerry.monitor.mediate import MAX_TRIES
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Machine
from skerry.monitor.table import Channel
from skerry.node.assertions import violations
from skerry.node.guest import Guest, guest_of
from skerry.node.kept import SetupKeeper
from skerry.node.sessions import Sessions
from skerry.node.setup import Setup, carried, carry
from skerry.policy.fitness import check_fitness
from skerry.policy.signature import require_signed
from skerry.policy.source import Change, NewBooleans, NewPolicy, Policy, changed
from skerry.system.model import ChannelSpec, DomainSpec
from skerry.xsm.explain import explain_error

Report = Callable[[Mapping[str, object]], None]
"""Takes one event of a start (an object with `event`) and shows or drops it."""


GREETING_S = 86_400.0
"""How long a guest may take to answer for the first time; a paused one is waited for."""


class MachineMaker(Protocol):
    """Makes the machine of a domain; called after the start was allowed."""

    def __call__(self, domain: DomainSpec, label: Label) -> Machine:
        """Return a machine that is not prepared yet."""


class Helper(Protocol):
    """A process that serves the node."""

    @property
    def state(self) -> str:
        """`running`, or a word for why nothing new is allowed now."""


class Refusal(msgspec.Struct, frozen=True):
    """Something of the system file that the policy or the host refused."""

    what: str
    text: str
    error: SkerryError


class Started(msgspec.Struct, frozen=True):
    """What a start did: the channels it bound and what was refused."""

    bound: tuple[Channel, ...]
    refused: tuple[Refusal, ...]


class Adoption(NamedTuple):
    """A whole system's setup that comes into force with its policy.

    `merged` makes the node's next setup of it, under a policy; `taken` is told the one before.
    """

    wanted: Setup
    merged: Callable[[Policy], Setup]
    taken: Callable[[Setup], None]


class Node:
    """A running system."""

    def __init__(
        self,
        setup: Setup,
        monitor: Monitor,
        make: MachineMaker,
        clock: Callable[[], float],
        keeper: SetupKeeper | None = None,
    ) -> None:
        self.setup = setup
        self.monitor = monitor
        self.sessions = Sessions()
        monitor.withdrawn = self.sessions.cut
        self.helpers: dict[str, Helper] = {}
        self._make = make
        self._keeper = keeper
        self._changing = asyncio.Lock()  # held from what is written down until it is in force
        self._clock = clock
        self._greetings: WeakKeyDictionary[Guest, asyncio.Future[None]] = WeakKeyDictionary()

    async def up(self, report: Report) -> list[Refusal]:
        """Start every domain that starts by itself, bind the channels, let them run.

        A refusal stops only what was refused; all of them are returned.
        """
        domains = self.setup.system.domains.items()
        starting = [name for name, domain in domains if domain.autostart]
        return await self.raise_up(self.setup.owner, starting, report)

    async def raise_up(
        self, operator: Label, names: Iterable[str], report: Report
    ) -> list[Refusal]:
        """Start these domains, bind what the file declares and is not bound, let them run."""
        refused: list[Refusal] = []
        ready: list[str] = []
        for name in names:
            report({"event": "starting", "domain": name})
            try:
                await self._start_paused(operator, name)
                ready.append(name)
            except SkerryError as error:
                refused.append(refusal_of(f"domain {name}", error))
                report({"event": "refused", "what": f"domain {name}", "text": refused[-1].text})
        started = await self._bind_declared(self.setup.system.domains)
        for channel in started.bound:
            report({"event": "bound", **self._channel_row(channel)})
        for refusal in started.refused:
            report({"event": "refused", "what": refusal.what, "text": refusal.text})
        for name in ready:
            try:
                await self.monitor.resume(operator, name)
                report({"event": "running", "domain": name})
            except StateError:
                continue  # it died meanwhile, which `ps` shows
            except SkerryError as error:
                refused.append(refusal_of(f"domain {name}", error))
                report({"event": "refused", "what": f"domain {name}", "text": refused[-1].text})
        return refused + list(started.refused)

    async def start(self, operator: Label, name: str) -> Started:
        """Start one domain of the file and bind the channels declared for it."""
        self.known(name)
        await self._start_paused(operator, name)
        started = await self._bind_declared({name})
        await self.monitor.resume(operator, name)
        return started

    async def _start_paused(self, operator: Label, name: str) -> None:
        spec, label = self.known(name), self.setup.labels[name]
        await self.monitor.start(operator, name, label, lambda: self._make(spec, label))

    async def _bind_declared(self, names: Collection[str]) -> Started:
        """Bind the file's channels with an end in `names`, where both are alive and it is not."""
        bound: list[Channel] = []
        refused: list[Refusal] = []
        stranded = {channel.number for channel in self.monitor.channels if channel.stranded}
        live = {spec for number, spec in self.bound().items() if number not in stranded}
        for spec in self.setup.system.channels:
            wanted = spec not in live and (spec.source in names or spec.sink in names)
            if wanted and self._can_bind(spec):
                try:
                    bound.append(
                        await self.monitor.bind(
                            spec.source,
                            spec.sink,
                            spec.kind,
                            spec.name,
                            spec.one_way,
                            overflow=spec.overflow,
                        )
                    )
                except SkerryError as error:
                    what = f"channel {spec.name} between {spec.source} and {spec.sink}"
                    refused.append(refusal_of(what, error))
        return Started(tuple(bound), tuple(refused))

    def _can_bind(self, spec: ChannelSpec) -> bool:
        domains = [self.monitor.domains.get(name) for name in (spec.source, spec.sink)]
        return all(domain is not None and domain.state in ALIVE for domain in domains)

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
            )
            for channel in self.monitor.channels
        }

    def known(self, name: str) -> DomainSpec:
        """Return a domain of the file. Raises `NotFound`."""
        try:
            return self.setup.system.domains[name]
        except KeyError:
            known = ", ".join(self.setup.system.domains)
            raise NotFound(f"there is no domain {name}", fix=f"the file has: {known}") from None

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
        done = await self.monitor.relabel(operator, name, label)
        return {
            "domain": name,
            "label": str(label),
            "record": done.record,
            "kept": done.kept,
            "cut": done.cut,
        }

    async def load(
        self,
        hook: str,
        operator: Label,
        change: Change,
        *,
        what: str,
        evict: bool = False,
        dry_run: bool = False,
        adopting: Adoption | None = None,
    ) -> dict[str, object]:
        """Bring another policy into force, or say what that would do (see `Monitor.load`).

        `change` is applied to the policy in force, in a thread, and again if another one came
        into force meanwhile: no change is ever undone by one that did not know it. `what` names
        it in the trail. With `adopting`, a whole system's setup comes into force in the same step,
        and it is its assertions that must hold.
        """
        began = self._clock()
        await self.require(hook, operator, what)
        for _ in range(MAX_TRIES):
            setup = self.setup
            after = adopting.wanted if adopting else setup
            policy = await asyncio.to_thread(_checked, setup, change, after)
            if self.setup is not setup:
                continue
            try:
                done = await self._load(hook, operator, policy, what, evict, dry_run, adopting)
            except StaleGeneration:
                if self.setup is setup:  # it was not another policy that came in between
                    raise
                continue
            return {**done, "seconds": self._clock() - began}
        raise StaleGeneration("other policies kept coming into force", fix="try again")

    async def require(self, hook: str, operator: Label, what: str) -> None:
        """Refuse whom the policy does not let, on record, before any work is done for him."""
        parties = {"operator": operator, "security": self.security()}
        mediator = self.monitor.mediator
        try:
            allowed = (await mediator.judge(hook, parties)).allowed
        except Denied:
            allowed = False
        if not allowed:
            await mediator.permit(hook, lambda: parties, {"change": what})

    def security(self) -> Label:
        """Return the label that stands for the policy itself."""
        return Label(tuple((name, "security") for name in sorted(self.setup.stack.names)))

    async def _load(
        self,
        hook: str,
        operator: Label,
        policy: Policy,
        what: str,
        evict: bool,
        dry_run: bool,
        adopting: Adoption | None,
    ) -> dict[str, object]:
        stack = policy.stack
        candidate = self.monitor.mediator.decider.candidate(stack, policy.sources)
        lost = {} if adopting else self._operators_without(policy)
        if operator in lost.values():
            raise StateError(
                f"your own label {operator} is none of this policy's, so you could not go back",
                fix="give the policy that label, or let another operator load it",
            )
        if lost and not evict and not dry_run:
            shown = ", ".join(f"uid {uid} ({label})" for uid, label in lost.items())
            raise StateError(
                f"under this policy operators have no label: {shown}",
                fix="--evict shuts them out",
            )
        cut = 0
        new: Setup | None = None
        changing = contextlib.AsyncExitStack()

        async def durable(labels: Mapping[Domain, Label]) -> None:
            nonlocal new
            if new is None:
                await changing.enter_async_context(self._changing)
            new = adopting.merged(policy) if adopting else carried(self.setup, policy)
            if self._keeper is not None:
                await self._keeper.keep(new, candidate.generation, labels)

        async def installed() -> None:
            nonlocal cut
            # First of all: from here on this is what the next change is made of.
            assert new is not None  # it was made durable
            before, self.setup = self.setup, new
            if adopting:
                adopting.taken(before)
            await changing.aclose()
            cut = await self._judge_sessions()

        about = {"change": what, "policy": stack.digest, "evict": evict, "dry_run": dry_run}
        try:
            done = await self.monitor.load(
                hook,
                operator,
                self.security(),
                candidate,
                about,
                evict=evict,
                dry_run=dry_run,
                durable=durable,
                installed=installed,
            )
        finally:
            async with changing:  # the next change may go on, also where this can't be undone
                if new is not None:
                    await self._settle(new)
        return {
            "dry_run": dry_run,
            "generation": done.generation,
            "record": done.record,
            "policy": stack.digest,
            "cut": [{"channel": fallen.what, "why": fallen.why} for fallen in done.cut],
            "evicted": [{"domain": fallen.what, "why": fallen.why} for fallen in done.evicted],
            "operators": {str(uid): str(label) for uid, label in lost.items()},
            "kept": len(done.kept),
            "sessions_cut": cut,
            "warnings": [problem.message for problem in check_fitness(stack)],
        }

    async def adopt(self, adopting: Adoption) -> None:
        """Let a setup come into force under the policy that is. Raises `Denied` if it can't."""
        async with self._changing:
            new = adopting.merged(self.setup.policy)
            if self._keeper is not None:
                await self._keeper.keep(new, self.monitor.mediator.decider.generation)
            before, self.setup = self.setup, new
            adopting.taken(before)
            await self._settle(new)

    async def _settle(self, new: Setup) -> None:
        """Leave written down what is in force, whether or not the new setup came into it."""
        if self._keeper is not None:
            labels = {domain: domain.label for domain in self.monitor.domains.values()}
            generation = self.monitor.mediator.decider.generation
            await self._keeper.settle(new, self.setup, generation, labels)

    async def alarm(self, operator: Label, name: str) -> dict[str, object]:
        """Apply an emergency set of the file: its domains end, then its booleans are set.

        The domains end first and whatever becomes of the booleans: taking away never asks, and
        waits for nothing. What kept the booleans from being set is in the result as `failed`.
        """
        alarm = self.setup.system.alarms.get(name)
        if alarm is None:
            known = ", ".join(self.setup.system.alarms) or "none"
            raise NotFound(f"there is no alarm {name}", fix=f"the system file has: {known}")
        why = f"the alarm {name}"
        ended = self._end(alarm.stop, why)
        evicted: list[object] = [{"domain": domain, "why": why} for domain in ended]
        result: dict[str, object] = {"alarm": why}
        try:
            if alarm.booleans:
                result = await self.load(
                    "policy_setbool",
                    operator,
                    NewBooleans(alarm.booleans),
                    what=f"alarm {name}",
                    evict=True,
                )
                fallen = cast(list[dict[str, object]], result["evicted"])
                evicted += [row for row in fallen if row["domain"] not in ended]
        except SkerryError as error:
            refusal = refusal_of(f"alarm {name}", error)
            result["failed"] = {"text": refusal.text, "exit_code": error.exit_code}
        for domain in ended:
            await self.monitor.domain(domain).gone.wait()
        return {**result, "evicted": evicted}

    def _end(self, names: Iterable[str], why: str) -> list[str]:
        """End domains without asking and name them; those that don't run are passed over."""
        ended = []
        for name in names:
            with contextlib.suppress(SkerryError):
                self.monitor.kill(name)
                ended.append(name)
                self.monitor.mediator.audit.note("evicted", {"domain": name, "why": why})
        return ended

    def _operators_without(self, policy: Policy) -> dict[int, Label]:
        """Return the operators whose label a policy lacks."""
        return {
            uid: label
            for uid, label in self.setup.operators.items()
            if carry(policy.stack, label, self.setup.stack) is None
        }

    async def _judge_sessions(self) -> int:
        """End the open sessions that the policy in force refuses; return how many."""
        cut = 0
        for session in self.sessions:
            try:
                domain = self.monitor.domain(session.domain)
                parties = {"operator": session.operator, "domain": domain.label}
                verdict = await self.monitor.mediator.judge(session.hook, parties)
                allowed = verdict.allowed
            except Exception:  # whatever fails in deciding is a refusal
                allowed = False
            if not allowed:
                session.end("the policy changed")
                cut += 1
        return cut

    async def down(self, deadline_s: float) -> list[str]:
        """Stop every domain at once, cleanly where the guest does it in time; name them."""

        alive = self.alive()
        await asyncio.gather(*(self.end(name, deadline_s) for name in alive))
        return alive

    def alive(self) -> list[str]:
        """Return the domains that have not ended, those that are starting or stopping too."""
        return [d.name for d in self.monitor.domains.values() if d.state is not State.ENDED]

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

    async def may_see(self, operator: Label, label: Label) -> bool:
        """Say whether the operator may list a domain with this label. Not recorded."""
        try:
            parties = {"operator": operator, "domain": label}
            verdict = await self.monitor.mediator.judge("domain_getdomaininfo", parties)
        except Denied:
            return False
        return verdict.allowed

    async def ps(self, operator: Label) -> list[dict[str, object]]:
        """List the domains of the file that the operator may see."""
        rows: list[dict[str, object]] = []
        for name, spec in self.setup.system.domains.items():
            domain = self.monitor.domains.get(name)
            label = domain.label if domain else self.setup.labels[name]
            if not await self.may_see(operator, label):
                continue
            machine = domain.machine if domain else None
            rows.append(
                {
                    "name": name,
                    "label": str(label),
                    "machine": machine.kind if machine else spec.machine,
                    "state": domain.state.value if domain else "defined",
                    "memory": spec.memory,
                    "seconds": self._clock() - domain.since if domain else None,
                    "reason": domain.end.reason if domain and domain.end else None,
                }
            )
        return rows

    def health(self) -> list[dict[str, str]]:
        """Say of each process that serves the node in which state it is."""
        return [{"helper": name, "state": h.state} for name, h in self.helpers.items()]

    async def channels(self, operator: Label) -> list[dict[str, object]]:
        """List the channels both of whose domains the operator may see."""
        return [
            self._channel_row(channel)
            for channel in self.monitor.channels
            if await self.may_see(operator, channel.source.label)
            and await self.may_see(operator, channel.sink.label)
        ]

    def _channel_row(self, channel: Channel) -> dict[str, object]:
        return channel_row(channel, self._clock())


def channel_row(channel: Channel, now: float) -> dict[str, object]:
    """Return a channel as `skerry channels` lists it."""
    return {
        "id": channel.number,
        "kind": channel.kind,
        "source": channel.source.name,
        "sink": channel.sink.name,
        "one_way": channel.one_way,
        "port": channel.port,
        "state": "stranded" if channel.stranded else channel.phase.value,
        "overflow": channel.overflow if channel.one_way else None,
        "back_bits_s": BACK_BITS_S[channel.overflow] if channel.one_way else None,
        "generation": channel.generation,
        "record": channel.record,
        "seconds": max(0.0, now - channel.since) if channel.since else 0.0,
        "left_s": None if channel.for_s is None else max(0.0, channel.since + channel.for_s - now),
    }


def _checked(setup: Setup, change: Change, after: Setup) -> Policy:
    """Make another policy. Raises `StateError` if the assertions of `after` do not hold under it,
    and `Unsigned` where it must be signed and is not."""
    if setup.policy_key and isinstance(change, NewPolicy):
        require_signed(setup.policy_key, change.content, change.signature, change.file)
    policy = changed(setup.policy, change)
    broken = violations(carried(after, policy))
    if broken:
        shown = "; ".join(violation.text for violation in broken)
        raise StateError(
            f"under this policy the system's assertions do not hold: {shown}",
            fix="first give `skerry up` a file that asserts something else",
        )
    return policy


def refusal_of(what: str, error: SkerryError) -> Refusal:
    """Return an error as a refusal, with a denial's explanation in its text."""
    text = explain_error(error).text() if isinstance(error, Denied) else f"error: {error}"
    return Refusal(what, text, error)
