"""The node's journal: what a node that is started again must know, durable before its effect.

The rules (law 7): a channel's twins are at the supervisor before a machine has an end of it; what
is written here is on the disk before its effect; what was taken away is noted after. The file is
a trail of the same form as the audit trail's, so a torn end is found and cut; when it has grown
it is written anew, and the new file counts from its record `whole` on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from skerry.audit.chain import BrokenLinkError, Link, follow
from skerry.audit.disk import Disk, HostDisk
from skerry.audit.ending import is_torn
from skerry.audit.record import RecordError, parse_record
from skerry.audit.writer import AuditTrail
from skerry.channel.memory import Twin
from skerry.errors import AuditUnavailable, SkerryError, TransportError
from skerry.label import Label
from skerry.machine.qemu.launch import kept_names
from skerry.monitor.domain import Domain, Resource, State
from skerry.monitor.journal import Journal
from skerry.monitor.protocols import Machine
from skerry.monitor.table import Channel, Phase
from skerry.node import prefixes
from skerry.node.standing import RESOURCE, ChannelEntry, DomainEntry, Footprint, Standing
from skerry.supervisor.client import SpawnFailed, SupervisorGone

GROWN = 50_000
"""Records after which the journal is written anew, beside four for each thing that stands."""

MAX_JOURNAL = 256 << 20
"""Longest journal that is read, in bytes; a longer one is damaged."""

NUMBERS = 64
"""Numbers of channels that one record takes at once; a restart leaves out those not yet given."""

PARTS: tuple[Twin, ...] = ("source", "sink", "memory")
"""What is kept of a channel: a twin of each end, and of a memory also that."""


def twin_name(number: int, side: Twin) -> str:
    """Return the name under which the supervisor keeps a channel's twin."""
    return f"{prefixes.TWIN}{number}.{side}"


class Keeper(Protocol):
    """Keeps descriptors while there is no node: the supervisor."""

    async def keep(self, fds: Mapping[str, int]) -> None:
        """Hold copies. Raises `SpawnFailed`, `SupervisorGone`."""

    async def drop(self, *names: str) -> None:
        """Close them."""


class NodeJournal(Journal):
    """Writes the journal at `path`. Make it with `open`, end it with `close`.

    `written` returns once all that may be written to resources is remembered, or raises a `Denied`.
    `footprint` tells what belongs to a machine; one without an incarnation is not written down,
    because it can't be adopted. `over`: nothing stands any more, and nothing shall be left.
    """

    def __init__(
        self, path: Path, supervisor: Keeper, standing: Standing, disk: Disk | None = None
    ) -> None:
        self.standing = standing
        self.footprint: Callable[[Machine], Footprint] = lambda machine: Footprint("", machine.kind)
        self.over = False
        self.written: Callable[[], Awaitable[None]] = _nothing
        self._trail: AuditTrail | None = None
        self._in_place = True
        self._path = path
        self._supervisor = supervisor
        self._disk = disk or HostDisk()
        self._writing = 0
        self._renewing = asyncio.Lock()
        self._leaving: list[str] = []
        self._dropping: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, path: Path, supervisor: Keeper, standing: Standing, disk: Disk | None = None
    ) -> NodeJournal:
        """Begin a journal that says what stands.

        Where the disk does not let it begin, it tries so before each write, which it refuses until
        then: the old file, with what the supervisor holds, tells the next node enough.
        """
        journal = cls(path, supervisor, standing, disk)
        with contextlib.suppress(AuditUnavailable):
            await journal._renew()
        return journal

    async def close(self) -> None:
        """Write what is queued and close the file."""
        if self._dropping is not None:
            await asyncio.wait({self._dropping})
        if self._trail is not None:
            await asyncio.to_thread(self._trail.close)

    async def write(self, event: str, fields: Mapping[str, object]) -> None:
        """Write a record; it is durable on return. Raises `AuditUnavailable`."""
        async with self._renewing:
            trail = self._trail
            if trail is None or (self._is_grown(trail) and not self._writing):
                trail = await self._renew()
        self._writing += 1
        try:
            await trail.append(event, fields)
            self.standing.apply(event, fields)
        finally:
            self._writing -= 1

    def _is_grown(self, trail: AuditTrail) -> bool:
        standing = len(self.standing.domains) + len(self.standing.channels)
        return trail.head.n > GROWN + 4 * standing

    def note(self, event: str, fields: Mapping[str, object]) -> None:
        """Write down what has happened already."""
        if self._trail is not None:
            self._trail.note(event, fields)
        self.standing.apply(event, fields)

    async def noted(self) -> None:
        """Return once what was noted is on the disk. Raises `AuditUnavailable`."""
        await self.write("numbers", {"channel": self.standing.channel})  # which says nothing new

    async def ready(self, domain: Domain) -> None:
        """Write down that a domain's machine stands."""
        footprint = self._footprint(domain)
        if footprint.incarnation:
            entry = DomainEntry(domain.name, domain.label, domain.started, footprint)
            try:
                await self.write("domain", msgspec.to_builtins(entry))
            finally:
                if domain.state is State.ENDED:  # which may have been noted before
                    self.note("ended", {"incarnation": footprint.incarnation})

    async def labelled(self, domain: Domain, label: Label) -> None:
        """Write down a domain's next label; if that fails or is given up, it has the one it has."""
        await self.written()
        incarnation = self._footprint(domain).incarnation
        if not incarnation:
            return
        fields = {"incarnation": incarnation, "label": msgspec.to_builtins(label)}
        try:
            await self.write("label", fields)
        except BaseException:  # the record may stand, or get to the disk yet
            self.note("label", fields | {"label": msgspec.to_builtins(domain.label)})
            raise

    def ended(self, domain: Domain) -> None:
        """Note that a domain's machine is gone, and let the supervisor forget it."""
        incarnation = self._footprint(domain).incarnation
        if incarnation:
            self.note("ended", {"incarnation": incarnation})
            self.drop(*kept_names(incarnation))

    async def numbered(self, channel: Channel) -> None:
        """Write down that its number is used, and for the next ones with it."""
        if channel.number > self.standing.channel:
            await self.write("numbers", {"channel": channel.number + NUMBERS - 1})

    async def minted(self, channel: Channel) -> None:
        """Give the twins to the supervisor. Raises `TransportError`."""
        with contextlib.ExitStack() as stack:
            # A cut closes the bridge's own while this waits; their numbers may be others' then.
            twins = {}
            try:
                for side, twin in getattr(channel.bridge, "twins", {}).items():
                    twins[twin_name(channel.number, side)] = os.dup(twin)
                    stack.callback(os.close, twins[twin_name(channel.number, side)])
                await self._supervisor.keep(twins)
            except (SpawnFailed, SupervisorGone, OSError) as error:
                raise TransportError(
                    f"the supervisor does not keep the ends of channel {channel.number}: {error}",
                    fix="cut channels that are not needed",
                ) from None
        if channel.bridge is None:  # the cut may have been told before
            self.drop(*twins)

    async def lending(self, channel: Channel) -> None:
        """Remember who may write what it leads to. Raises a `Denied`."""
        if channel.writes:
            await self.written()

    async def live(self, channel: Channel) -> None:
        """Write down that a channel is live."""
        source, sink = map(self._end, channel.ends)
        if not (source and sink):
            return
        is_live = False
        try:
            await self.write("channel", msgspec.to_builtins(_entry(channel, source, sink)))
            is_live = channel.phase is not Phase.CUT
        finally:
            if not is_live:  # it was cut before it stood here, or will be; the record may stand
                self.note("gone", {"channels": [channel.number]})

    def gone(self, channel: Channel) -> None:
        """Note that a channel is cut, and let the supervisor close its twins."""
        if channel.number in self.standing.channels:
            self.note("gone", {"channels": [channel.number]})
        self.drop(*(twin_name(channel.number, side) for side in PARTS))

    async def changed(self, setup: str, generation: int, labels: Mapping[Domain, Label]) -> None:
        """Write down the system and policy that come into force, in the file `setup`."""
        named = {
            self._footprint(domain).incarnation: msgspec.to_builtins(label)
            for domain, label in labels.items()
        }
        fields = {"setup": setup, "generation": generation, "labels": named}
        await self.write("setup", fields)

    def drop(self, *names: str) -> None:
        """Let the supervisor forget these, soon; many at once are one message."""
        self._leaving += names
        if self._dropping is None or self._dropping.done():
            self._dropping = asyncio.get_running_loop().create_task(self._drop())

    async def _drop(self) -> None:
        # A supervisor that is gone keeps nothing; a frozen one still holds what was shut down.
        with contextlib.suppress(SpawnFailed, SupervisorGone):
            while self._leaving:
                names, self._leaving = self._leaving, []
                await self._supervisor.drop(*names)

    def _end(self, domain: Domain) -> str:
        if isinstance(domain, Resource):
            return f"{RESOURCE}{domain.name}"
        return self._footprint(domain).incarnation

    def _footprint(self, domain: Domain) -> Footprint:
        if domain.machine is None:
            return Footprint("", "")
        return self.footprint(domain.machine)

    async def _renew(self) -> AuditTrail:
        """Go on in a new file that begins with what stands. Raises `AuditUnavailable`.

        From its record `whole` on the new file is the journal, even if it can't yet be renamed.
        """
        if not self._in_place:
            await self._put_in_place()
        old, new = self._trail, await asyncio.to_thread(_fresh, self._path, self._disk)
        self._trail = new
        *before, (last, fields) = self.standing.records()
        for event, each in before:
            new.note(event, each)
        try:
            await new.append(last, fields)
        except BaseException:
            self._trail = old
            await asyncio.to_thread(new.close)
            with contextlib.suppress(OSError):  # whatever of it is on the disk must not count
                await asyncio.to_thread(self._disk.remove, _new(self._path))
            raise
        self._in_place = False
        if old is not None:
            await asyncio.to_thread(old.close)
        with contextlib.suppress(AuditUnavailable):
            await self._put_in_place()
        return new

    async def _put_in_place(self) -> None:
        await asyncio.to_thread(_put_in_place, self._path, self._disk)
        self._in_place = True
        if self._trail is not None:
            self._trail.path = self._path


async def _nothing() -> None:
    """Do nothing."""


def _entry(channel: Channel, source: str, sink: str) -> ChannelEntry:
    return ChannelEntry(
        channel.number,
        channel.kind,
        source,
        sink,
        channel.port,
        channel.one_way,
        channel.generation,
        channel.record,
        channel.since,
        channel.for_s,
        channel.overflow,
        getattr(channel.bridge, "uid", 0),
        channel.size,
        channel.asked,
    )


def _new(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _fresh(path: Path, disk: Disk) -> AuditTrail:
    try:
        disk.remove(_new(path))
    except OSError as error:
        raise AuditUnavailable(
            f"the journal {path} cannot be begun: {error.strerror}", fix="mend the disk"
        ) from None
    return AuditTrail.open(_new(path), disk)


def _put_in_place(path: Path, disk: Disk) -> None:
    try:
        disk.rename(_new(path), path)
        disk.sync_folder(path)
    except OSError as error:
        raise AuditUnavailable(
            f"the journal {path} cannot be replaced: {error.strerror}", fix="mend the disk"
        ) from None


def read_journal(path: Path, disk: Disk | None = None) -> Standing | None:
    """Return what the journal says, None if there is none. Raises `SkerryError` if it is damaged.

    A new file that is whole counts before the one that it was to replace.
    """
    disk = disk or HostDisk()
    try:
        found = {name: _read(path.with_name(name), disk) for name in _present(path, disk)}
    except OSError as error:
        raise SkerryError(
            f"the journal {path} cannot be read: {error}", fix="what it described is stopped"
        ) from None
    for file in (_new(path), path):
        standing, whole = _replay(found.get(file.name, b""), file)
        if whole:
            return standing
    if path.name in found:
        raise SkerryError(
            f"the journal {path} has no beginning", fix="what it described is stopped"
        )
    return None


def remove_journal(path: Path) -> None:
    """Remove the journal of a node that left nothing behind."""
    for file in (path, _new(path)):
        file.unlink(missing_ok=True)


def _present(path: Path, disk: Disk) -> list[str]:
    return [file.name for file in (_new(path), path) if file.name in disk.names(path)]


def _read(path: Path, disk: Disk) -> bytes:
    handle = disk.open(path)
    try:
        if disk.size(handle) > MAX_JOURNAL:
            raise OSError(f"longer than {MAX_JOURNAL} bytes")
        return disk.read(handle, 0, MAX_JOURNAL)
    finally:
        disk.close(handle)


def _replay(untrusted: bytes, path: Path) -> tuple[Standing, bool]:
    """Return what a file says, and whether it is whole; a torn end was never acted upon."""
    standing, whole = Standing(), False
    lines = untrusted.split(b"\n")
    link = Link()
    for number, line in enumerate(lines[:-1], 1):
        try:
            link = follow(link, line + b"\n")
            record = parse_record(line)
            standing.apply(record.event, record.fields)
        except (BrokenLinkError, RecordError, ValueError) as error:
            if is_torn(b"\n".join(lines[number - 1 :])):
                break
            raise SkerryError(
                f"the journal {path} is damaged: record {number} {error}",
                fix="what it described is stopped",
            ) from None
        whole = whole or record.event == "whole"
    return standing, whole
