"""The node's own domains with guests in memory: they stand first, are replaced, or live on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Collection, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from skerry.audit.chain import Link
from skerry.channel.stream import StreamBridges
from skerry.errors import DeciderUnavailable, Denied
from skerry.label import Label
from skerry.monitor.domain import ALIVE, Domain, State
from skerry.monitor.mediate import AUDIT, MANAGER
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Kind
from skerry.node import recover
from skerry.node import services as services_module
from skerry.node.node import Node
from skerry.node.opening import _judge
from skerry.node.recover import Recovery
from skerry.node.services import NUMBER, Services
from skerry.policy import link as link_module
from skerry.policy.candidate import RemoteCandidate
from skerry.policy.client import RemoteManager
from skerry.policy.service import serve
from skerry.supervisor.client import Inherited
from skerry.system.model import AUDIT_DOMAIN, MANAGER_DOMAIN, DomainSpec
from tests.support.monitor import ToyAudit, ToyMachine
from tests.support.remote import until
from tests.unit.policy.banks import BANKS, PAUSE


class Guest(ToyMachine):
    """A machine whose guest serves at its port as soon as it has one and runs."""

    garbles = mute = False

    async def attach(self, channel: int, kind: Kind, port: str, *ends: int) -> None:
        """Take the end, and serve at that of the manager."""
        await super().attach(channel, kind, port, *ends)
        if port == "skerry.manager":
            end = socket.socket(fileno=os.dup(ends[0]))
            threading.Thread(target=self._serve, args=(end,), daemon=True).start()

    def _serve(self, end: socket.socket) -> None:
        def write(data: bytearray) -> None:
            if not self.mute:
                end.sendall(b"garbage!" if self.garbles else data)

        with end, contextlib.suppress(OSError):
            serve(lambda: end.recv(1 << 16), write)

    def die(self, reason: str) -> None:
        """End, with the connections that the guest had."""
        for end in self.ends.values():
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(end)) as connected:
                connected.shutdown(socket.SHUT_RDWR)
        super().die(reason)


class Trail(ToyAudit):
    """A trail in memory that a feed could follow."""

    path = Path("/nonexistent/audit.log")
    head = Link()


class Host:
    """What of a node its own domains need: a monitor, machines, guests that answer."""

    def __init__(self, homes: Collection[str], fails: Collection[str] = ()) -> None:
        self.audit = Trail()
        self.fails = fails
        self.machines: list[Guest] = []
        self.told: list[Mapping[str, object]] = []
        self.helpers: dict[str, object] = {}
        self.streams = StreamBridges()
        specs = {name: DomainSpec(name, f"core.{name}") for name in homes}
        self.services = Services(specs, self.streams, self.audit)
        manager = self.services.manager(BANKS, 1)
        assert isinstance(manager, RemoteManager)
        self.manager = manager
        self.monitor = Monitor(manager, self.audit, {}, lambda: 0.0)
        self.services.join(cast(Node, self), self.adopt)
        self.left: list[Domain] = []
        self.setup = SimpleNamespace(policy=BANKS)
        self.coalitions = SimpleNamespace(resume=partial(asyncio.sleep, 0))
        self.hypercalls = SimpleNamespace(resume=lambda: None)
        none = Inherited({}, {})
        unused = cast(Any, NotImplemented)
        self.recovery = Recovery(self.monitor, unused, none, unused, unused, unused, unused)

    def leave(self, guest: Guest) -> Guest:
        """Stand as a node whose earlier life left a manager in this machine."""
        self.machines.append(guest)
        domain = Domain(MANAGER_DOMAIN, MANAGER, 0.0)
        self.monitor.readmit(domain, guest)
        self.left.append(domain)
        return guest

    async def start_own(self, spec: DomainSpec, label: Label) -> Domain:
        """Start one as a node does."""

        def make() -> Guest:
            self.machines.append(Guest(self.fails))
            return self.machines[-1]

        return await self.monitor.start(label, spec.name, label, make)

    async def answered(self, name: str, timeout_s: float) -> None:
        """Answer at once."""

    async def adopt(self, name: str) -> bool:
        """Take up what an earlier node left."""
        for domain in self.left:
            if domain.name == name:
                self.monitor.adopted(domain, State.RUNNING)
                return True
        return False

    async def rise(self, fresh: bool = True) -> None:
        """Have them rise."""
        await self.services.rise(fresh, self.told.append)
        self.services.judged()

    async def judge(self) -> None:
        """Have them rise, and what stands judged, as a node does that goes on."""
        node = cast(Node, self)
        await _judge(self.services, self.manager, self.recovery, node, False, self.told.append)

    def candidate(self) -> RemoteCandidate:
        """Return the policy in force, to be judged by."""
        return self.manager.candidate(BANKS.stack, BANKS.sources)

    async def end(self, over: bool = True) -> None:
        """End as a node does."""
        self.services.leave(over)
        await self.manager.close()
        await self.services.close()
        self.streams.close()


@contextlib.asynccontextmanager
async def host(fails: Collection[str] = ()) -> AsyncIterator[Host]:
    """Give a host with its own domains, and end it."""
    made = Host([MANAGER_DOMAIN], fails)
    try:
        yield made
    finally:
        await made.end()
        for machine in made.machines:
            machine.kill()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the history of these nodes here."""
    monkeypatch.setenv("SKERRY_HOME", str(tmp_path))
    (tmp_path / "state").mkdir()


def test_the_manager_decides_from_its_domain_once_it_has_risen() -> None:
    """Before, everything is denied; its port has a number that no channel has."""

    async def scene() -> None:
        async with host() as made:
            with pytest.raises(DeciderUnavailable):
                await made.manager.decide("domain_pause", PAUSE)
            await made.rise()
            assert (await made.manager.decide("domain_pause", PAUSE)).allowed
            assert made.told == [{"event": "starting", "domain": MANAGER_DOMAIN}]
            domain = made.monitor.domain(MANAGER_DOMAIN)
            assert (domain.label, domain.state) == (MANAGER, State.RUNNING)
            assert made.machines[0].ports == {NUMBER: "skerry.manager"}
            assert made.machines[0].calls == ["prepare", "attach", "resume"]
            assert not list(made.monitor.channels)

    asyncio.run(scene())


@pytest.mark.parametrize("step", ["prepare", "attach", "resume"])
def test_a_fresh_node_whose_service_does_not_start_is_refused(step: str) -> None:
    """Whatever step fails, the denial says so and nothing of it runs on."""

    async def scene() -> None:
        async with host([step]) as made:
            with pytest.raises(Denied, match="own domains does not start") as caught:
                await made.rise()
            assert caught.value.code == "SERVICE-DOMAIN"
            assert f"{step} failed" in caught.value.message
            await until(lambda: all(machine.exited.done() for machine in made.machines))

    asyncio.run(scene())


def test_a_guest_that_talks_garbage_is_no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first words end it, and a fresh node is refused; the control is one that serves."""
    monkeypatch.setattr(Guest, "garbles", True)

    async def scene() -> None:
        async with host() as made:
            with pytest.raises(Denied):
                await made.rise()
            assert made.monitor.domain(MANAGER_DOMAIN).state not in ALIVE

    asyncio.run(scene())


def test_a_lost_manager_is_replaced_by_another_domain() -> None:
    """Its end is heard over its port; what was decided stands meanwhile, and the wall's history."""

    async def scene() -> None:
        async with host() as made:
            await made.rise()
            known = await made.manager.decide("domain_pause", PAUSE)
            made.monitor.kill(MANAGER_DOMAIN)
            await until(lambda: made.manager.state == "lost")
            assert await made.manager.decide("domain_pause", PAUSE) is known
            with pytest.raises(DeciderUnavailable):
                await made.manager.decide("domain_unpause", PAUSE)
            await until(lambda: made.manager.state == "running")
            assert (await made.manager.decide("domain_unpause", PAUSE)).allowed
            assert len(made.machines) == 2
            names = [event for event, _ in made.audit.records if event.startswith("manager-")]
            assert names == ["manager-lost", "manager-back"]

    asyncio.run(scene())


def test_a_manager_that_breaks_the_protocol_is_ended_and_replaced() -> None:
    """Not only its link: its domain, too, because what it says can't be trusted any more."""

    async def scene() -> None:
        async with host() as made:
            await made.rise()
            made.machines[0].garbles = True
            with pytest.raises(DeciderUnavailable):
                await made.manager.decide("domain_pause", PAUSE)
            await until(made.machines[0].exited.done)
            await until(lambda: made.manager.state == "running")
            assert (await made.manager.decide("domain_pause", PAUSE)).allowed

    asyncio.run(scene())


def test_a_node_that_goes_on_adopts_the_manager_and_gives_it_a_new_port() -> None:
    """The machine is the same; its engine begins anew with what is in force."""

    async def scene() -> None:
        async with host() as made:
            guest = made.leave(Guest())
            await made.rise(fresh=False)
            assert (await made.manager.decide("domain_pause", PAUSE)).allowed
            assert made.machines == [guest]
            assert guest.calls == ["attach"]

    asyncio.run(scene())


def test_nothing_new_is_decided_before_what_stands_was_judged() -> None:
    """The manager answers a candidate's questions, which judge, and none of the policy in force."""

    async def scene() -> None:
        async with host() as made:
            await made.services.rise(False, made.told.append)
            with pytest.raises(DeciderUnavailable, match="judged first"):
                await made.manager.decide("domain_pause", PAUSE)
            candidate = made.candidate()
            assert (await candidate.decide("domain_pause", PAUSE)).allowed
            made.services.judged()
            assert (await made.manager.decide("domain_pause", PAUSE)).allowed

    asyncio.run(scene())


@pytest.mark.parametrize("left", ["nobody", "one that is mute"])
def test_a_node_that_goes_on_and_gets_no_manager_tries_again(
    left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands waits until another guest has booted; until then everything new is denied.

    The control: where the manager is a process, nobody waits that long.
    """
    monkeypatch.setattr(recover, "JUDGE_PAUSE_S", 0.01)
    monkeypatch.setattr(services_module, "JUDGE_S", 0.1)
    monkeypatch.setattr(link_module, "MAKE_S", 0.2)

    async def scene() -> None:
        async with host(["prepare"]) as made:
            if left != "nobody":
                made.leave(Guest()).mute = True
            judging = asyncio.ensure_future(made.judge())
            await until(lambda: "manager-lost" in [event for event, _ in made.audit.records])
            with pytest.raises(DeciderUnavailable):
                await made.recovery.judge(made.candidate, 0.1)
            with pytest.raises(DeciderUnavailable):
                await made.manager.decide("domain_pause", PAUSE)
            assert not judging.done()
            made.fails = ()
            await judging
            assert (await made.manager.decide("domain_pause", PAUSE)).allowed

    asyncio.run(scene())


@pytest.mark.parametrize("over", [True, False])
def test_they_end_with_the_system_and_live_on_without_a_node(over: bool) -> None:
    """`down` ends them; a service that is only started anew leaves them as they are."""

    async def scene() -> None:
        async with host() as made:
            await made.rise()
            await made.end(over)
            assert made.machines[0].exited.done() is over

    asyncio.run(scene())


def test_a_node_without_such_domains_has_a_manager_elsewhere() -> None:
    """Nothing is started, and nobody is waited for."""

    async def scene() -> None:
        streams = StreamBridges()
        services = Services({}, streams, Trail())
        assert services.manager(BANKS, 1) is None
        await services.rise(True, lambda _: None)
        await services.close()
        streams.close()

    asyncio.run(scene())


def test_labels_of_both_are_those_of_the_core() -> None:
    """What a file may call them is what the core calls them."""
    assert (str(MANAGER), str(AUDIT)) == (f"core.{MANAGER_DOMAIN}", f"core.{AUDIT_DOMAIN}")
