"""Makes a running node what another system file says: the difference only.

The rules this module keeps: what is the same in both is not touched; everything that can be refused
as a whole (the file, its assertions, its signatures, the right to change what the owner fixed, an
eviction) is found out before anything is touched; what takes away comes first; each further step
asks its own hook with the caller as operator; and after each step the node's setup describes what
is so, so that the same file can be given again and does the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

import msgspec

from skerry.errors import (
    Denied,
    InputError,
    NotFound,
    PolicyError,
    Problem,
    StateError,
)
from skerry.label import Label
from skerry.monitor.domain import ALIVE
from skerry.monitor.revise import EvictionNeeded
from skerry.node.analyses import analysed
from skerry.node.changing import Adoption, Refusal
from skerry.node.descriptors import check_descriptors
from skerry.node.difference import Difference, Live, differ, is_other_policy, needs_restart
from skerry.node.node import Node, Report
from skerry.node.plan import Step
from skerry.node.proving import require_holding, staying
from skerry.node.reconcile_plan import Plan, plan_difference
from skerry.node.setup import Setup, carried, make_setup
from skerry.policy.asserted import Assertions, assertions_of
from skerry.policy.signature import Unsigned, require_signed
from skerry.policy.source import NewSources, Policy, changed
from skerry.system.model import System
from skerry.wire.system_files import KeyFile, SystemFiles

STOP_S = 10.0
"""Seconds that a guest has to end when its domain is removed or started anew; then it is ended."""

Prepare = Callable[[System, Report], Awaitable[Callable[[], None]]]
"""Makes ready what the domains of a system run on, and raises what is missing.

It returns what is called in the step in which that system comes into force, if it does.
"""


class Reconciler:
    """Reconciles one node, one file at a time.

    `prepare` is called before anything is touched. `operators_changed` is called with the uids
    whose label is another one or none, in the step in which that comes into force.
    """

    def __init__(self, node: Node, prepare: Prepare | None = None) -> None:
        self.node = node
        self.operators_changed: Callable[[Collection[int]], object] = lambda uids: None
        self._prepare = prepare
        self._busy = asyncio.Lock()

    async def run(
        self, uid: int, files: SystemFiles, report: Report, *, evict: bool, dry_run: bool
    ) -> dict[str, object]:
        """Report the plan and carry it out; return what was refused, left and kept.

        Raises `InputError` for wrong files, `StateError`, `EvictionNeeded`, `Refused` and other
        `Denied`s: then nothing was touched.
        """
        # Nothing is made of a policy, nor does anybody wait, for whom the policy does not let.
        if await analysed("plan", _policies_differ, self.node.setup, files):
            await self._require(uid, "the policy")
        if dry_run:
            _, _, difference, _ = await self._plan(uid, files, report)
            return {"dry_run": True, "changed": not difference.nothing}
        if self._busy.locked():
            raise StateError("another `up` is changing this system", fix="try again when it ended")
        async with self._busy:
            base, wanted, difference, plan = await self._plan(uid, files, report)
            if plan.evicted and not evict:
                raise EvictionNeeded(plan.evicted)
            running = _Run(self, uid, base, wanted, plan, report)
            if not difference.nothing and self._prepare is not None:
                running.prepared = await self._prepare(wanted.system, report)
            return await running.run(difference, evict)

    async def _plan(
        self, uid: int, files: SystemFiles, report: Report
    ) -> tuple[Setup, Setup, Difference, Plan]:
        """Check the files and report the plan; return what it was compared with, too."""
        base = self.node.setup
        wanted = await analysed("plan", _read, base, files)
        if uid not in wanted.operators:
            raise StateError(
                f"the file does not name uid {uid} in [operators], and that is you",
                fix="name yourself, or let another operator do it",
            )
        difference = self.difference(wanted)
        if difference.governed:
            await self._require(uid, difference.governed)
        wanted = self.known(wanted)
        await self.prove(wanted)
        plan = await plan_difference(self.node, uid, wanted, difference)
        difference = msgspec.structs.replace(difference, define=plan.define)
        for step in plan.steps:
            report({"event": "plan", **msgspec.to_builtins(step)})
        if difference.governed:
            await self._require(uid, difference.governed)
        if plan.kept:
            defined = staying(wanted, base, plan.unmoved)
            await self.prove(defined, plan.kept)
        return base, wanted, difference, plan

    async def prove(self, wanted: Setup, kept: Mapping[str, Label] | None = None) -> None:
        """Prove what a file asserts; what does not hold, or can't be told, is on record."""
        try:
            await analysed("plan", require_holding, wanted, kept)
        except InputError:
            raise
        except Denied as error:
            about = {"system": str(wanted.system.path)}
            self.node.monitor.mediator.failed("policy_load", error, **about)
            raise

    async def _require(self, uid: int, what: str) -> None:
        await self.node.require("policy_load", self.node.setup.operators[uid], what)

    def known(self, setup: Setup) -> Setup:
        """Return a setup with who has written its resources, which counts in what is proven."""
        return msgspec.structs.replace(setup, written=self.node.resources.writers(setup))

    def difference(self, wanted: Setup) -> Difference:
        """Compare what is so with what a file says."""
        node = self.node
        labels = {name: node.monitor.domain(name).label for name in node.alive()}
        return differ(node.setup, wanted, Live(labels, node.bound()))


class _Run:
    """One reconcile that has begun: what it does, step by step, and what was refused on the way."""

    def __init__(
        self,
        owner: Reconciler,
        uid: int,
        base: Setup,
        wanted: Setup,
        plan: Plan,
        report: Report,
    ) -> None:
        self._owner = owner
        self._node = owner.node
        self._uid = uid
        self._base = base
        self._wanted = wanted
        self._plan = plan
        self._report = report
        self._refused: list[Refusal] = []
        self.prepared: Callable[[], None] = lambda: None

    async def run(self, difference: Difference, evict: bool) -> dict[str, object]:
        """Take away, let the policy and the settings come into force, then give."""
        node, monitor = self._node, self._node.monitor
        same = [name for name in node.alive() if name not in difference.relabel]
        domains = [monitor.domain(name) for name in same]
        channels = set(node.bound())
        self._not_tried("domain_create", self._plan.unmoved.values())
        self._not_tried("domain_getdomaininfo", self._plan.hidden.values())
        await self._take_away(difference)
        if await self._done("the policy and what the owner fixed", self._govern(difference, evict)):
            for name, label in difference.relabel.items():
                relabel = node.relabel_to(self._operator, name, label)
                if await self._done(f"relabel {name}", relabel):
                    self._report({"event": "relabelled", "domain": name, "label": str(label)})
            await self._done("what is asserted", self._hold())
            starting = [name for name in difference.start if name not in node.alive()]
            self._refused += await node.raise_up(self._operator, starting, self._report)
        if not difference.nothing:
            about = {
                "system": str(self._wanted.system.path),
                "operator": str(self._operator),
                "difference": difference.words(),
                "refused": [refusal.what for refusal in self._refused],
            }
            monitor.mediator.audit.note("reconciled", about)
        return {
            "dry_run": False,
            "changed": not difference.nothing,
            "generation": monitor.mediator.decider.generation,
            "refused": [
                {"what": refusal.what, "text": refusal.text, "exit_code": refusal.error.exit_code}
                for refusal in self._refused
            ],
            "left": self._owner.difference(self._wanted).words(),
            "domains": sum(domain.state in ALIVE for domain in domains),
            "channels": len(channels & set(node.bound())),
        }

    @property
    def _operator(self) -> Label:
        """The caller's label now: it is another one once the file has given him another."""
        return self._node.setup.operators[self._uid]

    async def _done(self, what: str, work: Awaitable[object]) -> bool:
        """Do a step and say whether it is done; what it raises is reported as its refusal."""
        try:
            await work
        except Exception as error:
            self._refuse(self._node.refusal(what, error))
            return False
        return True

    def _not_tried(self, hook: str, steps: Iterable[Step]) -> None:
        """Record and report what the plan found refused, and is not even begun."""
        for step in steps:
            denied = Denied(step.why, code=step.code)
            self._node.monitor.mediator.failed(hook, denied, what=step.what)
            self._refuse(Refusal(f"{step.action} {step.what}", step.text, denied))

    def _refuse(self, refusal: Refusal) -> None:
        self._refused.append(refusal)
        self._report({"event": "refused", "what": refusal.what, "text": refusal.text})

    async def _take_away(self, difference: Difference) -> None:
        """Cut what the file has no more and end its domains; none of it asks or can fail."""
        node = self._node
        for number in difference.cut:
            with contextlib.suppress(NotFound):  # cut by another meanwhile
                node.monitor.cut(number, "the system file no longer has it")
                self._report({"event": "cut", "channel": number})
        restart = (name for name in difference.restart if name not in self._plan.unmoved)
        ending = [*difference.remove, *restart]

        async def end(name: str) -> None:
            await node.end(name, STOP_S)
            self._report({"event": "stopped", "domain": name})

        await asyncio.gather(*(end(name) for name in ending if name in node.alive()))

    async def _govern(self, difference: Difference, evict: bool) -> None:
        """Let the policy, and with it everything else that the file says, come into force.

        Where that changes what the owner fixed, it is one decision under the policy in force.
        """
        node, what = self._node, difference.governed
        if difference.policy:
            loaded = await node.load(
                "policy_load",
                self._operator,
                NewSources(self._wanted.policy.sources),
                what=what,
                evict=evict,
                adopting=self._adoption(),
            )
            self._report({"event": "loaded", **loaded})
            return
        if what:
            parties = {"operator": self._operator, "security": node.security()}
            await node.monitor.mediator.permit("policy_load", lambda: parties, {"change": what})
        await node.adopt(self._adoption())

    async def _hold(self) -> None:
        """Prove what is asserted again if the plan did not foresee which labels are kept, or who
        has written."""
        node, setup = self._node, self._owner.known(self._node.setup)
        live = {name: node.monitor.domain(name).label for name in node.alive()}
        kept = {name: label for name, label in live.items() if label != setup.labels[name]}
        defined = staying(self._wanted, self._base, self._plan.unmoved).labels
        foreseen = {**setup.labels, **kept} == {**defined, **self._plan.kept}
        if not foreseen or setup.written != self._wanted.written:
            await self._owner.prove(setup, kept)

    def _adoption(self) -> Adoption:
        return Adoption(self._wanted, self._base, self._merged, self._taken)

    def _merged(self, policy: Policy) -> Setup:
        """Return the file's setup under a policy, but for what is not yet so."""
        node, before = self._node, self._base
        wanted = carried(self._wanted, policy)  # another may have come into force meanwhile
        domains = wanted.system.domains
        # What runs is what it was started as, also if it was started while we were at work.
        kept = [
            name
            for name in node.alive()
            if name not in domains
            or name in self._plan.unmoved
            or needs_restart(before.system.domains[name], domains[name])
        ]
        channels = tuple(c for c in wanted.system.channels if c not in self._plan.hidden)
        system = msgspec.structs.replace(wanted.system, channels=channels)
        return staying(msgspec.structs.replace(wanted, system=system, written={}), before, kept)

    def _taken(self, before: Setup) -> None:
        """Let the rest of the node follow its new setup; waits for nothing."""
        self.prepared()
        monitor = self._node.monitor
        # What was started since the setup was written down is what it was started as.
        again = self._merged(self._node.setup.policy)
        if (again.system, again.labels) != (self._node.setup.system, self._node.setup.labels):
            self._node.setup = again
        now = self._node.setup
        self._node.resources.follow(monitor, now)
        monitor.limit(now.system.limits.domains, now.system.limits.channels)
        known = {*now.system.domains, *self._node.services}
        for name in [name for name in monitor.domains if name not in known]:
            del monitor.domains[name]
        uids = before.operators.keys() | now.operators.keys()
        relabelled = {u for u in uids if before.operators.get(u) != now.operators.get(u)}
        if relabelled:
            self._owner.operators_changed(relabelled)


def _policies_differ(now: Setup, untrusted: SystemFiles) -> bool:
    """Say whether any policy's bytes are others than those in force, or what it asserts is.

    No other policy is parsed for it.
    """
    sources = [source for source in now.policy.sources if source.content]
    ours = sorted(source.content for source in sources)
    if ours != sorted(policy.content for policy in untrusted.policies):
        return True
    asserted = {source.content: source.assertions for source in sources}
    try:
        return any(
            _meaning(assertions_of(one.content, one.assertions, one.file))
            != _meaning(asserted[one.content])
            for one in untrusted.policies
        )
    except PolicyError:  # whoever may change it is told so
        return True


def _meaning(asserted: Assertions | None) -> object:
    return asserted and asserted.meaning()


def _read(now: Setup, untrusted: SystemFiles) -> Setup:
    """Check the files of a system for a node that runs. Raises `InputError`, `StateError`
    and `LimitReached`."""
    wanted = make_setup(untrusted)
    check_descriptors(wanted.system.limits)
    if sorted(wanted.stack.names) != sorted(now.stack.names):
        was, will = (", ".join(sorted(setup.stack.names)) for setup in (now, wanted))
        raise StateError(
            f"the policy's modules change from {was} to {will}, and with them every label",
            fix="stop the system with `skerry down` and start it anew",
        )
    if now.system.services != wanted.system.services:
        raise StateError(
            "the homes of the policy manager and of the audit replica are those of the first `up`",
            fix="stop the system with `skerry down` and start it anew",
        )
    _check_key(now, wanted, untrusted.key)
    _check_image_key(now.system, wanted.system, untrusted.image_key)
    policy = now.policy
    if is_other_policy(now, wanted):
        policy = changed(now.policy, NewSources(wanted.policy.sources))
    return msgspec.structs.replace(wanted, policy=policy)


def _check_key(now: Setup, wanted: Setup, key: KeyFile | None) -> None:
    """Let another key follow the one in force only where that has signed it."""
    if not now.policy_key or wanted.policy_key == now.policy_key:
        return
    if key is None:
        message = "names no policy-key, and the system that runs requires signed policies"
        fix = "name one; to do without, stop the system and start it anew"
        raise Unsigned([Problem(str(wanted.system.path), 0, f"{message}; {fix}")])
    file = wanted.system.policy_key
    require_signed(now.policy_key, key.content, key.signature, file)


def _check_image_key(now: System, wanted: System, key: KeyFile | None) -> None:
    """The same of the key that signs the images."""
    if not now.image_signer or wanted.image_signer == now.image_signer:
        return
    if key is None:
        message = "names no image-key, and the system that runs requires signed images"
        fix = "name one; to do without, stop the system and start it anew"
        raise Unsigned([Problem(str(wanted.path), 0, f"{message}; {fix}")])
    require_signed(now.image_signer, key.content, key.signature, wanted.image_key)
