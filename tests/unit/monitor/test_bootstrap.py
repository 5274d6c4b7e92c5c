"""The core's fixed rule: the node's own two domains start, as themselves, and that is all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from skerry.errors import Denied, LimitReached
from skerry.label import Label
from skerry.monitor.domain import State
from skerry.monitor.mediate import AUDIT, MANAGER, SERVICES, Mediator
from skerry.monitor.monitor import Monitor
from skerry.policy.history import MemoryHistory
from skerry.policy.load import parse_acm
from skerry.policy.manager import PolicyManager
from skerry.xsm.acm.module import AcmModule
from skerry.xsm.dummy import DummyModule
from skerry.xsm.explain import Refused
from skerry.xsm.hooks import HOOKS
from skerry.xsm.module import SecurityModule
from skerry.xsm.request import Verdict
from skerry.xsm.stack import Stack
from tests.support.monitor import ToyAudit, ToyDecider, ToyMachine, World, label, play
from tests.unit.monitor.test_laws import POLICY

STARTS = ("domain_create", "domain_unpause")


class DeadDecider(ToyDecider):
    """A policy manager that is not there yet, and says so to whoever asks."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks: list[str] = []

    async def decide(self, hook: str, parties: Mapping[str, Label]) -> Verdict:
        """Refuse to answer."""
        self.hooks.append(hook)
        raise Denied("nobody decides", code="DECIDER-UNAVAILABLE")

    async def admit(self, label: Label, running: tuple[Label, ...]) -> Verdict:
        """Refuse to answer."""
        return await self.decide("admit", {})

    async def admit_bind(self, *labels: Label) -> Verdict:
        """Refuse to answer."""
        return await self.decide("admit_bind", {})

    async def touch(self, *labels: Label) -> None:
        """Refuse to answer."""
        await self.decide("touch", {})


def undecided(max_domains: int = 8) -> tuple[Monitor, DeadDecider, ToyAudit]:
    """Make a monitor whose policy manager does not answer."""
    decider, audit = DeadDecider(), ToyAudit()
    return Monitor(decider, audit, {}, lambda: 0.0, max_domains=max_domains), decider, audit


def acm() -> PolicyManager:
    """Make a policy manager with a real policy."""
    return PolicyManager(Stack([AcmModule(parse_acm(POLICY, "laws.toml"))]), MemoryHistory())


def dummy() -> PolicyManager:
    """Make a policy manager under which every domain may do everything."""
    return PolicyManager(Stack([DummyModule()]), MemoryHistory())


async def permit(manager: PolicyManager, hook: str, parties: Mapping[str, Label]) -> None:
    """Ask a hook as the monitor does."""
    await Mediator(manager, ToyAudit()).permit(hook, lambda: parties, {})


def test_both_services_start_and_run_where_nobody_decides() -> None:
    """The decider is not asked at all; the start is on record before the machine is made."""

    async def scene() -> None:
        monitor, decider, audit = undecided()
        for own in (MANAGER, AUDIT):
            made: list[int] = []

            def make(made: list[int] = made) -> ToyMachine:
                made.append(len(audit.events("allow")))
                return ToyMachine()

            before = len(audit.events("allow"))
            await monitor.start(own, str(own), own, make)
            await monitor.resume(own, str(own))
            assert made == [before + 1]
            assert monitor.domain(str(own)).state is State.RUNNING
        assert decider.hooks == []
        rules = [fields["rules"] for fields in audit.events("allow")]
        assert rules == [["core: BOOTSTRAP: the node starts its own service as itself"]] * 4
        for name in list(monitor.domains):
            monitor.kill(name)

    asyncio.run(scene())


@pytest.mark.parametrize(
    "other",
    [
        Label((("core", "core.other"),)),
        Label((("core", "policy-manager"),)),
        Label((("toy", "core.policy-manager"),)),
        Label((("core", "core.audit"), ("toy", "x"))),
        Label(()),
    ],
)
def test_no_other_label_starts_by_the_fixed_rule(other: Label) -> None:
    """Whatever it resembles, the decider is asked, and its failure is a denial."""

    async def scene() -> None:
        monitor, decider, _ = undecided()
        with pytest.raises(Denied):
            await monitor.start(other, "x", other, ToyMachine)
        assert decider.hooks == ["domain_create"]
        assert "x" not in monitor.domains

    asyncio.run(scene())


def test_no_operator_starts_a_service_and_no_service_starts_another_domain() -> None:
    """Operator and domain must be the same one of the two."""

    async def scene() -> None:
        monitor, decider, _ = undecided()
        pairs = [(label("operator"), MANAGER), (MANAGER, AUDIT), (AUDIT, MANAGER)]
        pairs += [(MANAGER, label("guest"))]
        for operator, domain in pairs:
            with pytest.raises(Denied):
                await monitor.start(operator, "x", domain, ToyMachine)
        assert decider.hooks == ["domain_create"] * len(pairs)

    asyncio.run(scene())


def test_a_service_is_not_started_without_its_record() -> None:
    """The fixed rule needs no decider, but it needs the trail."""

    async def scene() -> None:
        monitor, _, audit = undecided()
        audit.dead = True
        with pytest.raises(Denied):
            await monitor.start(MANAGER, "policy-manager", MANAGER, ToyMachine)
        assert not monitor.domains

    asyncio.run(scene())


@pytest.mark.parametrize("own", sorted(SERVICES))
@pytest.mark.parametrize("make", [acm, dummy])
@pytest.mark.parametrize("hook", [name for name in HOOKS if name not in STARTS])
def test_no_policy_allows_anything_else_with_a_service(
    hook: str, make: Callable[[], PolicyManager], own: Label
) -> None:
    """No module has a part of such a label: exec, console, channels, relabels are all refused.

    The control: with labels of its own the permissive policy allows the same.
    """

    async def scene() -> None:
        manager = make()
        roles = {side for ask in HOOKS[hook].asks for side in (ask.subject, ask.target)}
        names = {role for side in roles for role in side.split("->")}
        operator = manager.stack.operator_label()
        for party in names:
            parties = {**dict.fromkeys(names, operator), party: own}
            with pytest.raises(Denied):
                await permit(manager, hook, parties)
        if make is dummy:
            await permit(manager, hook, dict.fromkeys(names, operator))

    asyncio.run(scene())


def test_an_operator_neither_starts_nor_resumes_a_service() -> None:
    """An operator can't let a service run again or start it; the control is an ordinary domain."""

    async def scene() -> None:
        manager = dummy()
        operator = manager.stack.operator_label()
        for hook in STARTS:
            with pytest.raises(Refused):
                await permit(manager, hook, {"operator": operator, "domain": MANAGER})
            await permit(manager, hook, {"operator": operator, "domain": operator})

    asyncio.run(scene())


def test_a_service_counts_in_no_wall_and_no_limit_and_no_load_evicts_it() -> None:
    """It is started on a full node, too, and stands under a policy that knows no label at all."""

    async def scene(world: World) -> None:
        await world.run("a")
        await world.monitor.start(MANAGER, "policy-manager", MANAGER, world.maker("pm"))
        assert world.monitor.running() == (label("a"),)
        with pytest.raises(LimitReached):
            await world.run("b")
        candidate = world.decider.candidate(Stack([DummyModule()]))
        candidate.unknown = {"core.policy-manager", "a"}
        loaded = await world.monitor.load(
            "policy_load", world.operator, label("security"), candidate, {}, evict=True
        )
        assert [fallen.what for fallen in loaded.evicted] == ["a"]
        assert world.monitor.domain("policy-manager").state is State.PAUSED

    play(scene, max_domains=1)


def test_a_service_is_ended_without_asking_anybody() -> None:
    """Taking away needs neither decider nor trail."""

    async def scene() -> None:
        monitor, decider, audit = undecided()
        await monitor.start(MANAGER, "policy-manager", MANAGER, ToyMachine)
        audit.dead = True
        monitor.kill("policy-manager")
        await monitor.domain("policy-manager").gone.wait()
        assert decider.hooks == []

    asyncio.run(scene())


def test_no_text_is_read_as_the_label_of_a_service() -> None:
    """Whatever an operator or a file writes, it is made of the modules in force."""
    modules: list[SecurityModule] = [DummyModule()]
    stack = Stack(modules)
    for own in SERVICES:
        assert stack.label(str(own), "domain") not in SERVICES
        with pytest.raises(Denied):
            stack.label({"core": str(own)}, "domain")
        with pytest.raises(Denied):
            stack.label({"core": str(own), "dummy": "x"}, "domain")
