"""What a node that is started again knows of services: who serves, and which streams are theirs."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from skerry.audit.disk import Disk, HostDisk
from skerry.errors import AuditUnavailable
from skerry.machine.control import ControlPort
from skerry.machine.simulator.machine import SimulatedMachine
from skerry.monitor.domain import State
from skerry.monitor.mediate import AUDIT, MANAGER
from skerry.monitor.protocols import Machine
from skerry.node.hypercalls import Hypercalls
from skerry.node.journal import NodeJournal, read_journal
from skerry.node.standing import Footprint, Standing
from tests.support.hypercalls import Services, play


class Store:
    """A supervisor that takes everything."""

    async def keep(self, fds: Mapping[str, int]) -> None:
        """Do nothing."""

    async def drop(self, *names: str) -> None:
        """Do nothing."""


def footprint(machine: Machine) -> Footprint:
    """Return what names a simulated machine as if it were a process."""
    assert isinstance(machine, SimulatedMachine)
    return Footprint(f"d/{machine.name}/1", "simulator")


class Restarts:
    """The services of a node with a journal, which may be killed and started again."""

    def __init__(self, host: Services, folder: Path, disk: Disk | None = None) -> None:
        self.host = host
        self.disk = disk
        self.path = folder / "journal.log"
        self.journal: NodeJournal

    async def start(self) -> None:
        """Begin with what the journal says, as a node does."""
        standing = read_journal(self.path) or Standing()
        self.journal = await NodeJournal.open(self.path, Store(), standing, self.disk)
        self.journal.footprint = footprint
        node, monitor = self.host.node, self.host.monitor
        for domain in monitor.domains.values():
            if domain.name not in {d.name for d in standing.domains.values()}:
                await self.journal.ready(domain)
        monitor._journal = self.journal
        await node.hypercalls.close()
        for machine in self.host.machines.values():
            machine.control.close()
            if not machine.exited.done():
                machine.control = ControlPort(machine.process.control())
        node.hypercalls = Hypercalls(monitor, lambda: node.setup, self.journal, 0.01)
        node.hypercalls.resume()

    async def restart(self) -> None:
        """Be killed, and begin again."""
        await self.journal.close()
        await self.start()


def test_who_served_serves_on_and_is_told_of_its_streams_again(tmp_path: Path) -> None:
    """No guest need do anything; an offer that was closed stays so."""

    async def scene(host: Services) -> None:
        restarts = Restarts(host, tmp_path)
        await restarts.start()
        bank, ledger = host.guest("bank"), host.guest("ledger")
        for name in ("ledger", "spare", "board"):
            assert (await ledger.call(f"offer {name}")).end == "ok"
        await ledger.call("close board")
        said = await bank.call("connect ledger")
        await ledger.told("-connected")
        ledger.unasked.clear()
        await restarts.restart()
        assert (await ledger.told("-label"))["label"] == "ledger"
        assert await ledger.told("-offers") == {"services": "ledger spare"}
        told = await ledger.told("-connected")
        assert (told["port"], told["service"]) == (said.fields["port"], "ledger")
        assert (await bank.call("connect spare")).end == "ok"
        assert (await bank.call("connect board")).code == "NO-SERVICE"
        assert (await host.guest("ledger-2").call("offer ledger")).code == "SERVICE-TAKEN"
        assert (await bank.call(f"close {said.fields['channel']}")).end == "ok"
        await restarts.restart()
        standing = restarts.journal.standing
        assert [entry.asked for entry in standing.channels.values()] == ["spare"]

    play(tmp_path, scene)


def test_who_ended_or_has_another_label_serves_no_more_after_a_restart(tmp_path: Path) -> None:
    """The name is free then. The control is the test above."""

    async def scene(host: Services) -> None:
        restarts = Restarts(host, tmp_path)
        await restarts.start()
        await host.guest("ledger").call("offer ledger")
        await host.guest("ledger").call("offer spare")
        await restarts.journal.close()
        host.monitor.domain("ledger").label = host.monitor.domain("bank").label
        await restarts.start()
        assert (await host.guest("ledger-2").call("offer ledger")).end == "ok"
        await restarts.restart()
        await host.node.kill("ledger-2")
        await restarts.restart()
        assert (await host.guest("bank").call("connect ledger")).code == "NO-SERVICE"
        assert restarts.journal.standing.offers == {}

    play(tmp_path, scene)


def test_an_offer_that_cannot_be_written_down_is_none(tmp_path: Path) -> None:
    """Neither now nor after a restart. The control: one that can."""

    async def scene(host: Services) -> None:
        restarts = Restarts(host, tmp_path)
        await restarts.start()
        ledger = host.guest("ledger")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(restarts.journal, "write", _full)
            assert (await ledger.call("offer ledger")).end == "denied"
        assert [event for event, _ in host.audit.records[-2:]] == ["offered", "withdrawn"]
        assert (await host.guest("bank").call("connect ledger")).code == "NO-SERVICE"
        assert (await ledger.call("offer spare")).end == "ok"
        await restarts.restart()
        assert (await host.guest("bank").call("connect ledger")).code == "NO-SERVICE"
        assert (await host.guest("bank").call("connect spare")).end == "ok"

    play(tmp_path, scene)


def test_an_offer_of_a_domain_that_is_being_adopted_is_not_refused_for_good(tmp_path: Path) -> None:
    """It fails, may be made again, and is taken then; a name that is not its own is none."""

    async def scene(host: Services) -> None:
        restarts = Restarts(host, tmp_path)
        await restarts.start()
        ledger, domain = host.guest("ledger"), host.monitor.domain("ledger")
        domain._state = State.STARTING  # as it stands until it is adopted
        assert await ledger.call("offer ledger") == ("failed", "UNAVAILABLE", {})
        assert (await ledger.call("offer north")).code == "NO-SERVICE"
        host.monitor.adopted(domain, State.RUNNING)
        assert (await ledger.call("offer ledger")).end == "ok"

    play(tmp_path, scene)


def test_the_nodes_own_domains_call_nobody(tmp_path: Path) -> None:
    """After a restart too, where all that goes on is attended. The control: any other domain."""

    async def scene(host: Services) -> None:
        restarts = Restarts(host, tmp_path)
        await restarts.start()
        for name, own in (("stranger", AUDIT), ("north", MANAGER)):
            host.monitor.domain(name).label = own
        await restarts.restart()
        silent = [host.machines[name].guest for name in ("stranger", "north")]
        for guest in silent:
            guest.answers()
            guest.call(b"1 a label\n1 b connect no-such-name\n")
        denied = len(host.audit.events("deny"))
        assert (await host.guest("bank").call("connect no-such-name")).code == "NO-SERVICE"
        assert [guest.answers() for guest in silent] == [b"", b""]
        assert len(host.audit.events("deny")) == denied + 1

    play(tmp_path, scene)


def test_a_name_that_was_closed_stays_closed_when_the_node_is_killed(tmp_path: Path) -> None:
    """The answer comes after it is on the disk, and not before. Meanwhile nobody is bound to it."""

    async def scene(host: Services) -> None:
        disk = SlowDisk()
        restarts = Restarts(host, tmp_path, disk)
        await restarts.start()
        ledger = host.guest("ledger")
        for name in ("ledger", "spare"):
            assert (await ledger.call(f"offer {name}")).end == "ok"
        disk.goes_on.clear()
        asked, after = ledger.send_all("close spare", "label")
        await ledger.answer(after)
        assert (await host.guest("bank").call("connect spare")).code == "NO-SERVICE"
        with pytest.raises(TimeoutError):
            await ledger.answer(asked, 0.05)
        assert written(restarts) == {"ledger", "spare"}
        disk.goes_on.set()
        assert (await ledger.answer(asked)).end == "ok"
        assert written(restarts) == {"ledger"}

    play(tmp_path, scene)


def test_a_close_that_cannot_be_written_down_is_not_said_to_be_done(tmp_path: Path) -> None:
    """The name is served no longer all the same. The control: it can, and it is done."""

    async def scene(host: Services) -> None:
        restarts = Restarts(host, tmp_path)
        await restarts.start()
        ledger = host.guest("ledger")
        for name in ("ledger", "spare"):
            await ledger.call(f"offer {name}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(restarts.journal, "write", _full)
            assert await ledger.call("close ledger") == ("failed", "UNAVAILABLE", {})
            assert (await host.guest("bank").call("connect ledger")).code == "NO-SERVICE"
        assert (await ledger.call("close spare")).end == "ok"

    play(tmp_path, scene)


class SlowDisk(HostDisk):
    """A disk that writes nothing until it `goes_on`."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.goes_on.set()

    def append(self, fd: int, data: bytes) -> int:
        """Append when it may."""
        self.goes_on.wait()
        return super().append(fd, data)


def written(restarts: Restarts) -> set[str]:
    """Return the services that a node started now would find offered."""
    copy = restarts.path.with_name("copy.log")
    shutil.copy(restarts.path, copy)  # the file itself is the node's as long as it lives
    standing = read_journal(copy)
    assert standing is not None
    return set(standing.offers)


async def _full(event: str, fields: Mapping[str, object]) -> None:
    raise AuditUnavailable("the disk is full")
