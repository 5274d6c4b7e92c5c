"""Defects put into the product on purpose, each of which the laws must find."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from skerry.audit.appender import Appender
from skerry.audit.writer import AuditTrail
from skerry.channel.stream import StreamBridge
from skerry.machine.simulator.disk import SimulatedDisk
from skerry.monitor.bind import Binder
from skerry.monitor.domain import Domain, State
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Candidate
from skerry.monitor.revise import Fall
from skerry.monitor.table import Channel, ChannelTable
from skerry.node import journal, opening
from skerry.node.journal import NodeJournal
from skerry.node.recover import Recovered, Recovery, end_unknown
from skerry.node.standing import RESOURCE, Standing
from skerry.supervisor.client import Inherited, Process

MUTATIONS: dict[str, Callable[[], None]] = {}


def mutation(make: Callable[[], None]) -> Callable[[], None]:
    """Enter a defect under its function's name."""
    MUTATIONS[make.__name__.replace("_", "-")] = make
    return make


def _put(owner: object, name: str, value: object) -> None:
    setattr(owner, name, value)


async def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing, slowly."""
    await asyncio.sleep(0)


@mutation
def twins_are_not_kept() -> None:
    """The supervisor does not get the twins of a channel."""
    _put(NodeJournal, "minted", _nothing)


@mutation
def twins_are_kept_after_the_machines_have_their_ends() -> None:
    """The order of mint is wrong."""
    attach, minted = Binder._attach, NodeJournal.minted

    async def both(self: Binder, channel: Channel) -> None:
        await attach(self, channel)
        assert isinstance(self._journal, NodeJournal)
        await minted(self._journal, channel)

    _put(Binder, "_attach", both)
    _put(NodeJournal, "minted", _nothing)


@mutation
def a_live_channel_is_not_written_down() -> None:
    """A channel is acknowledged that the journal does not hold."""
    _put(NodeJournal, "live", _nothing)


@mutation
def live_is_written_before_the_ends_are_taken_and_nobody_looks() -> None:
    """A channel of which a machine has no end goes on."""
    attach, live = Binder._attach, NodeJournal.live

    async def both(self: Binder, channel: Channel) -> None:
        assert isinstance(self._journal, NodeJournal)
        await live(self._journal, channel)
        await attach(self, channel)

    _put(Binder, "_attach", both)
    _put(NodeJournal, "live", _nothing)
    _put(Recovery, "_doubt", lambda *_: "")


@mutation
def a_started_domain_is_not_written_down() -> None:
    """A start is acknowledged that the journal does not hold."""
    _put(NodeJournal, "ready", _nothing)


@mutation
def a_relabel_is_not_written_down() -> None:
    """The next node goes on with the old label."""
    _put(NodeJournal, "labelled", _nothing)


@mutation
def a_policy_is_not_written_down() -> None:
    """The next node goes on with the old policy."""
    _put(NodeJournal, "changed", _first_only(NodeJournal.changed))


def _first_only(changed: Callable[..., Any]) -> Callable[..., Any]:
    async def only(self: NodeJournal, setup: str, generation: int, labels: Any) -> None:
        if generation == 1:
            await changed(self, setup, generation, labels)

    return only


@mutation
def nothing_is_judged_again() -> None:
    """What the policy in force refuses goes on after a restart."""

    async def judge_again(self: Monitor, candidate: Candidate) -> Fall:
        await asyncio.sleep(0)
        return Fall({}, {}, (), {})

    _put(Monitor, "judge_again", judge_again)


@mutation
def a_bind_that_was_under_way_is_only_closed() -> None:
    """Its machines keep ends that are joined."""

    def sever(self: Recovery, number: int) -> None:
        for descriptor in self._twins(number).values():
            os.close(descriptor)
        self._journal.drop(*(journal.twin_name(number, side) for side in journal.PARTS))

    _put(Recovery, "_sever", sever)


@mutation
def a_cut_only_closes() -> None:
    """The twins are closed without a shutdown."""

    def cut(self: StreamBridge) -> int:
        twins, self._twins = self._twins, None
        for twin in twins or ():
            twin.close()
        self.handed_over()
        return 0

    _put(StreamBridge, "cut", cut)


@mutation
def what_is_queued_is_not_drained() -> None:
    """Bytes that were on their way when a channel was cut still arrive."""

    def cut(self: StreamBridge) -> int:
        twins, self._twins = self._twins, None
        for twin in twins or ():
            twin.shutdown(2)
            twin.close()
        self.handed_over()
        return 0

    _put(StreamBridge, "cut", cut)


@mutation
def processes_of_nobody_live_on() -> None:
    """A start that was under way is not undone."""
    undo = Recovery._undo

    def only_channels(self: Recovery) -> None:
        self._processes = {}
        undo(self)

    _put(Recovery, "_undo", only_channels)
    _put(opening, "end_unknown", _nothing)


@mutation
def machines_keep_their_dead_ends() -> None:
    """What does not go on is not detached."""
    _put(Recovery, "_detach_the_rest", _nothing)


@mutation
def a_bounded_grant_becomes_unbounded() -> None:
    """The next node does not end it."""
    readmit = Binder.readmit_channel

    def forgetful(self: Binder, channel: Channel) -> None:
        channel.for_s = None
        readmit(self, channel)

    _put(Binder, "readmit_channel", forgetful)


@mutation
def a_bounded_grant_begins_anew() -> None:
    """The next node gives it its whole time again."""
    readmit = Binder.readmit_channel

    def generous(self: Binder, channel: Channel) -> None:
        channel.since = self._clock()
        readmit(self, channel)

    _put(Binder, "readmit_channel", generous)


@mutation
def records_are_acknowledged_before_they_are_synced() -> None:
    """A crash takes what was acknowledged."""

    def put(self: Appender, data: bytes) -> None:
        self._disk.append(self._fd, data)

    _put(Appender, "_put", put)


@mutation
def what_was_readmitted_does_not_count_in_the_wall() -> None:
    """Rivals can start beside it."""
    readmit = Monitor.readmit

    def uncounted(self: Monitor, domain: Domain, machine: Any) -> None:
        readmit(self, domain, machine)
        domain.admitted = False

    _put(Monitor, "readmit", uncounted)


@mutation
def the_state_of_a_domain_is_guessed() -> None:
    """A paused domain comes back as a running one."""
    adopted = Monitor.adopted

    def running(self: Monitor, domain: Domain, state: State) -> None:
        adopted(self, domain, State.RUNNING)

    _put(Monitor, "adopted", running)


@mutation
def numbers_are_given_again() -> None:
    """A channel gets the number of one that was cut."""
    enter = ChannelTable.enter

    def skip(self: ChannelTable, number: int) -> None:
        """Skip nothing."""

    def entered(self: ChannelTable, channel: Channel) -> None:
        enter(self, channel)
        self._next = max(self._next, channel.number + 1)

    _put(ChannelTable, "skip", skip)
    _put(ChannelTable, "enter", entered)


@mutation
def the_store_is_never_emptied() -> None:
    """What is over is kept."""

    def drop(self: NodeJournal, *names: str) -> None:
        """Drop nothing."""

    _put(NodeJournal, "drop", drop)


@mutation
def what_ended_meanwhile_is_kept() -> None:
    """A process that ended while there was no node is never dropped."""

    def lost(self: Recovery, entry: Any, process: Process | None, why: str) -> None:
        if process is not None:
            process.kill()
        self._journal.note("ended", {"incarnation": entry.footprint.incarnation})
        self.found.ended[entry.name] = why

    _put(Recovery, "_lost", lost)


@mutation
def the_new_journal_is_not_durable() -> None:
    """Its names in its folder are left to chance, the one that it has while it is made too.

    To leave only the last to chance is no defect: what it was called before is read then.
    """
    sync_folder = SimulatedDisk.sync_folder

    def but_for_it(self: SimulatedDisk, path: Path) -> None:
        if not path.name.startswith("journal."):
            sync_folder(self, path)

    _put(SimulatedDisk, "sync_folder", but_for_it)


@mutation
def the_journal_begins_empty() -> None:
    """The new file replaces the old one before it says what stands."""

    async def renew(self: NodeJournal) -> AuditTrail:
        new = await asyncio.to_thread(journal._fresh, self._path, self._disk)
        self._trail = new
        await self._put_in_place()
        for event, fields in self.standing.records():
            await new.append(event, fields)
        return new

    _put(NodeJournal, "_renew", renew)


@mutation
def a_restart_does_not_tell_what_it_adopted() -> None:
    """The report names nothing."""
    adopt = Recovery.adopt

    async def silent(self: Recovery) -> None:
        await adopt(self)
        self.found = Recovered()

    _put(Recovery, "adopt", silent)


@mutation
def the_helpers_of_uses_are_ended_with_what_is_unknown() -> None:
    """A use loses its helper at every restart."""

    async def all_of_them(inherited: Inherited, standing: Standing) -> None:
        between = {n: c for n, c in standing.channels.items() if not c.sink.startswith(RESOURCE)}
        await end_unknown(inherited, msgspec.structs.replace(standing, channels=between))

    _put(opening, "end_unknown", all_of_them)
