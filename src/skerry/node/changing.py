"""Changes of a running system: the half of the node that lets them come into force.

The rules this module keeps: no change is undone by one that did not know it; what comes into force
is written down before; the node's setup and the policy in force change in one step, and open
sessions with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, cast

import msgspec

from skerry.errors import Denied, NotFound, SkerryError, StaleGeneration, StateError
from skerry.label import Label
from skerry.monitor.domain import Domain
from skerry.monitor.mediate import MAX_TRIES
from skerry.monitor.monitor import Monitor
from skerry.node.analyses import analysed
from skerry.node.assertions import AnalysisFailed
from skerry.node.coalitions import Coalitions
from skerry.node.consoles import asked_now, may_read, question
from skerry.node.hypercalls import Hypercalls
from skerry.node.journal import NodeJournal
from skerry.node.kept import SetupKeeper
from skerry.node.live_labels import LiveLabels
from skerry.node.proving import Proven, prove_change
from skerry.node.resources import Resources
from skerry.node.sessions import Sessions
from skerry.node.setup import Setup, Writers, carried, carry
from skerry.policy.fitness import check_fitness
from skerry.policy.source import Change, NewBooleans, Policy
from skerry.xsm.explain import Refused, explain_error

_MAX_BOOLEANS_NOTED = 16_000
"""Longest list of booleans in a record of a change, in characters of JSON; a longer one is left
out."""


class Refusal(msgspec.Struct, frozen=True):
    """Something of the system file that the policy or the host refused."""

    what: str
    text: str
    error: SkerryError


class Adoption(NamedTuple):
    """A whole system's setup that comes into force with its policy.

    `base` is the setup that it was compared with and checked against: under another one it does
    not come into force; nor where others have written than `wanted.written`, with which what it
    asserts was proven. `merged` makes the node's next setup of it, under a policy; `taken` is told
    the one before.
    """

    wanted: Setup
    base: Setup
    merged: Callable[[Policy], Setup]
    taken: Callable[[Setup], None]


class Changing:
    """A running system's setup, and what changes it; `Node` adds the domains and channels."""

    def __init__(
        self,
        setup: Setup,
        monitor: Monitor,
        clock: Callable[[], float],
        keeper: SetupKeeper | None = None,
        resources: Resources | None = None,
        journal: NodeJournal | None = None,
    ) -> None:
        self.setup = setup
        self.monitor = monitor
        self.resources = resources or Resources({})
        self.sessions = Sessions()
        self.coalitions = Coalitions(monitor, self.resources)
        self.hypercalls = Hypercalls(monitor, lambda: self.setup, journal)
        monitor.withdrawn = self._withdrawn
        monitor.most = self._most_channels
        self.labels = LiveLabels(monitor, lambda: self.setup, self.resources.writers)
        self._keeper = keeper
        self._changing = asyncio.Lock()  # held from what is proposed until it is in force
        self._clock = clock

    def _withdrawn(self, name: str, why: str) -> None:
        """End with what was granted over a domain the sessions, uses of switches and offers."""
        self.sessions.cut(name, why)
        self.coalitions.withdrawn(name, why)
        self.hypercalls.withdrawn()

    def _most_channels(self, name: str) -> int:
        domain = self.setup.system.domains.get(name)
        return domain.channels if domain else 0  # it is in no file any more, and is being removed

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
        it in the trail. What is asserted is proven before of the labels that domains have now, see
        `skerry.node.proving`. With `adopting`, a whole system's setup comes into force in the same
        step, and it is its assertions that must hold of its labels.
        """
        began = self._clock()
        await self.require(hook, operator, what)
        for _ in range(MAX_TRIES):
            setup, live = self.setup, self.labels.now()
            before, after = (setup, adopting.wanted) if adopting else (live, live)
            written = self.resources.writers(after)
            proven = await self._proven(hook, before, change, after, what, written)

            def is_checked(
                setup: Setup = setup,
                live: Setup = live,
                after: Setup = after,
                written: Writers = written,
            ) -> bool:
                same = self.setup is setup and self.resources.writers(after) == written
                return same and (bool(adopting) or self.labels.are(live))

            if not is_checked():
                continue
            how = what, evict, dry_run, adopting
            try:
                loading = self._load(is_checked, live, hook, operator, proven, *how)
                # What has come into force goes on to cut, whatever becomes of who asked for it.
                done = await asyncio.shield(asyncio.ensure_future(loading))
            except StaleGeneration:
                if is_checked():  # it was no other policy, label or writer that came in between
                    raise
                continue
            return {**done, "seconds": self._clock() - began}
        raise StaleGeneration("other policies kept coming into force", fix="try again")

    async def _proven(
        self,
        hook: str,
        setup: Setup,
        change: Change,
        after: Setup,
        what: str,
        written: Writers,
    ) -> Proven:
        """Make another policy and prove what is asserted under it; a refusal is recorded."""
        try:
            return await analysed(
                "change", prove_change, setup, change, after, hook, written=written
            )
        except (Refused, AnalysisFailed) as error:
            self.monitor.mediator.failed(hook, error, change=what)
            raise

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
        is_checked: Callable[[], bool],
        live: Setup,
        hook: str,
        operator: Label,
        proven: Proven,
        what: str,
        evict: bool,
        dry_run: bool,
        adopting: Adoption | None,
    ) -> dict[str, object]:
        policy = proven.policy
        stack, decider = policy.stack, self.monitor.mediator.decider
        cut = 0
        apart: dict[int, str] = {}
        new: Setup | None = None
        changing = contextlib.AsyncExitStack()

        def require_checked() -> None:
            # Signature and assertions were checked for that setup, those labels and writers, and no
            # other.
            if not is_checked():
                raise StaleGeneration("the system changed meanwhile", fix="try again")

        async def durable(labels: Mapping[Domain, Label]) -> None:
            nonlocal new
            require_checked()  # no label is given from here on until it is in force
            new = adopting.merged(policy) if adopting else carried(self.setup, policy)
            # Before the setup, with which a restart goes on; and last, so that nothing that was
            # exchanged meanwhile is left out.
            await decider.remember(candidate)
            if self._keeper is not None:
                await self._keeper.keep(new, candidate.generation, labels)
            await decider.remember(candidate)
            # Last: what is bound from here on is judged by what comes into force.
            if not is_checked():  # nothing else can change while this one does
                error = StaleGeneration("who has written what changed meanwhile", fix="try again")
                self.monitor.mediator.failed(hook, error, change=what)
                raise error

        async def installed() -> None:
            nonlocal cut
            # First of all: from here on this is what the next change is made of.
            assert new is not None  # it was made durable
            before, self.setup = self.setup, new
            self.labels.proven(new, (new if adopting else carried(live, policy)).labels)
            self.resources.stack = new.stack
            if adopting:
                adopting.taken(before)
            self.hypercalls.follow()
            await changing.aclose()
            apart.update(await self.coalitions.judge())
            cut = await self._judge_sessions("the policy changed")

        about = {
            "change": what,
            "policy": stack.digest,
            "evict": evict,
            "dry_run": dry_run,
            "assertions": proven.assertions,
            **_booleans(policy),
            **({"unproven": list(proven.warnings)} if proven.warnings else {}),
            **({"ended_assertions": list(proven.ended)} if proven.ended else {}),
        }
        async with changing:  # the next change may go on, also where this can't be undone
            if not dry_run:
                await changing.enter_async_context(self._changing)
                require_checked()
                self._require_base(adopting)
            lost = {} if adopting else self._require_operators(operator, policy, evict or dry_run)
            candidate = decider.candidate(stack, policy.sources, loading=not dry_run)
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
                if new is not None:
                    await self._settle(new)
        if dry_run:
            apart = await self.coalitions.foretold(candidate)
        for fallen in done.cut:
            apart.pop(int(fallen.what), None)
        return {
            "dry_run": dry_run,
            "generation": done.generation,
            "record": done.record,
            "policy": stack.digest,
            "cut": [
                *({"channel": fallen.what, "why": fallen.why} for fallen in done.cut),
                *({"channel": number, "why": why} for number, why in apart.items()),
            ],
            "evicted": [{"domain": fallen.what, "why": fallen.why} for fallen in done.evicted],
            "operators": {str(uid): str(label) for uid, label in lost.items()},
            "kept": len(done.kept) - len(apart),
            "sessions_cut": cut,
            "assertions": proven.assertions,
            "warnings": [
                *proven.warnings,
                *_ended_words(proven),
                *(one.message for one in check_fitness(stack)),
            ],
        }

    async def adopt(self, adopting: Adoption) -> None:
        """Let a setup come into force under the policy that is. Raises `Denied` if it can't."""
        async with self._changing:
            self._require_base(adopting)
            if self.resources.writers(adopting.wanted) != adopting.wanted.written:
                raise StateError("who has written what changed meanwhile", fix="try again")
            new = adopting.merged(self.setup.policy)
            if self._keeper is not None:
                await self._keeper.keep(new, self.monitor.mediator.decider.generation)
            before, self.setup = self.setup, new
            self.labels.proven(new, new.labels)
            adopting.taken(before)
            self.hypercalls.follow()
            await self._judge_sessions("the system file changed")
            await self._settle(new)

    def _require_base(self, adopting: Adoption | None) -> None:
        if adopting is not None and self.setup is not adopting.base:
            raise StateError("another change came into force meanwhile", fix="try again")

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
        evicted: list[object] = [{"domain": domain.name, "why": why} for domain in ended]
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
                evicted += [row for row in fallen if row["domain"] not in alarm.stop]
        except SkerryError as error:
            refusal = refusal_of(f"alarm {name}", error)
            result["failed"] = {"text": refusal.text, "exit_code": error.exit_code}
        for domain in ended:  # not by name: the next one of that name may run on
            await domain.gone.wait()
        return {**result, "evicted": evicted}

    def _end(self, names: Iterable[str], why: str) -> list[Domain]:
        """End domains without asking and return them; those that don't run are passed over."""
        ended = []
        for name in names:
            with contextlib.suppress(SkerryError):
                self.monitor.kill(name)
                ended.append(self.monitor.domain(name))
                self.monitor.mediator.audit.note("evicted", {"domain": name, "why": why})
        return ended

    def _require_operators(
        self, operator: Label, policy: Policy, may_lose: bool
    ) -> dict[int, Label]:
        """Return the operators whose label a policy lacks. Raises `StateError` if the caller is
        one of them, or if there may be none."""
        lost = {
            uid: label
            for uid, label in self.setup.operators.items()
            if carry(policy.stack, label, self.setup.stack) is None
        }
        if operator in lost.values():
            raise StateError(
                f"your own label {operator} is none of this policy's, so you could not go back",
                fix="give the policy that label, or let another operator load it",
            )
        if lost and not may_lose:
            shown = ", ".join(f"uid {uid} ({label})" for uid, label in lost.items())
            raise StateError(
                f"under this policy operators have no label: {shown}",
                fix="--evict shuts them out",
            )
        return lost

    async def open_console(self, operator: Label, domain: Domain, *, writes: bool) -> str:
        """Ask for a domain's console, on record; return the hook. Raises a `Denied`.

        Whoever may only read it is told so.
        """
        mediator = self.monitor.mediator
        for _ in range(MAX_TRIES):
            hook, asked = question(self.setup, operator, domain, writes=writes)
            try:
                await mediator.permit(
                    hook,
                    lambda: question(self.setup, operator, domain, writes=writes)[1],
                    {"domain": domain.name},
                )
            except Refused as refusal:
                if writes and await may_read(mediator, self.setup, operator, domain):
                    refusal.fix = f"`skerry console --read-only {domain.name}`: that is allowed"
                raise
            if question(self.setup, operator, domain, writes=writes) == (hook, asked):
                return hook
        raise StaleGeneration("the console's label kept changing", fix="try again")

    async def _judge_sessions(self, why: str) -> int:
        """End the open sessions that are refused now; return how many."""
        cut = 0
        for session in self.sessions:
            try:
                domain = self.monitor.domain(session.domain)
                asked = asked_now(session.hook, self.setup, session.operator, domain)
                verdict = await self.monitor.mediator.judge(*asked)
                allowed = verdict.allowed
            except Exception:  # whatever fails in deciding is a refusal
                allowed = False
            if not allowed:
                session.end(why)
                cut += 1
        return cut


def _ended_words(proven: Proven) -> list[str]:
    return [f"asserted no more: {text}" for text in proven.ended]


def refusal_of(what: str, error: SkerryError) -> Refusal:
    """Return an error as a refusal, with a denial's explanation in its text."""
    text = explain_error(error).text() if isinstance(error, Denied) else f"error: {error}"
    return Refusal(what, text, error)


def _booleans(policy: Policy) -> dict[str, object]:
    """Return for the record which booleans are set otherwise than by their policy's file.

    A replay follows them. Nothing where they are too many: no record grows so long that a change
    is refused for it.
    """
    found = {name: value for source in policy.sources for name, value in source.booleans.items()}
    return {"booleans": found} if len(json.dumps(found)) <= _MAX_BOOLEANS_NOTED else {}
