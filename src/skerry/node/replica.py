"""Keeps the audit replica's domain standing and fed, and asks it how it stands.

The rules: nobody who records waits for it; its loss, its return and each gap are records; its feed
goes one way, and what it says of itself is asked for apart, bounded, and believed of nothing but
itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from skerry.audit.chain import Link
from skerry.audit.feed import Feed
from skerry.audit.guest import RECORDS, STATUS
from skerry.audit.replica import MAX_FILE, MAX_STATUS, Status, read_status
from skerry.channel.one_way import PIPE_BYTES
from skerry.errors import Denied, MachineError, StateError
from skerry.monitor.domain import ALIVE, Domain
from skerry.monitor.protocols import AuditLog
from skerry.node.guest import guest_of
from skerry.node.node import Node
from skerry.policy.client import FIRST_PAUSE_S, HEALTHY_S, LAST_PAUSE_S

HELPER = "audit replica"
"""What `ps` calls it."""

BEHIND = 1024
"""Records that a replica may lag without being called behind."""

SERVES_S = 60.0
"""How long the replica's service may take to begin, once its guest answers, in seconds."""

ASK_S = 5.0
"""How long the replica's guest may take to say how it stands, in seconds."""

READ_S = 60.0
"""How long the replica's guest may take to give one file of its records, in seconds."""

SAY = f"while [ ! -e {STATUS} ]; do sleep 0.2; done; cat {STATUS}"
"""The script that says in the replica's guest how it stands, once it stands."""

NEXT = f'cd {RECORDS} && for f in $(ls | sort -n); do [ "$f" -le {{}} ] || exec cat "$f"; done'
"""The script that gives the first file of records behind a record. Each is named by its first."""


class Trail(AuditLog, Protocol):
    """A trail that a feed can follow."""

    @property
    def path(self) -> Path:
        """The live segment's file."""

    @property
    def head(self) -> Link:
        """The last record that is on the disk."""


class Own(Protocol):
    """The replica's domain (`services.OwnDomain`)."""

    async def stand(self) -> Domain:
        """Return it, alive. Raises `SkerryError`."""

    async def give(self, domain: Domain, end: int) -> None:
        """Give it the other end of its port. Raises `SkerryError`."""

    def kill(self) -> None:
        """End it at once."""


class Replication:
    """The replica, from its first start to the end of the node."""

    def __init__(self, node: Node, own: Own, trail: Trail) -> None:
        self._node, self._own, self._trail = node, own, trail
        self._feed: Feed | None = None
        self._domain: Domain | None = None
        self._why = ""
        self._keeper: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def state(self) -> str:
        """`running`, `behind`, `unfed`, or `lost` while another is being started."""
        if self._feed is None:
            return "lost"
        if self._feed.failure:
            return "unfed"
        return "behind" if self._feed.lag > BEHIND else "running"

    async def begin(self, insist: bool) -> None:
        """Start it, and from then on whenever it has ended. Raises `SkerryError` if `insist`."""
        if insist:
            await self._start()
        self._keeper = asyncio.ensure_future(self._keep())

    async def close(self) -> None:
        """Stop feeding; its domain is not touched. Idempotent."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._stop_feeding()

    async def _start(self) -> None:
        domain = await self._own.stand()
        given, end = os.pipe2(os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # it may stay as it is: then it waits more often
                fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            await self._own.give(domain, given)
            since = (await self._says(domain, SERVES_S)).n
        except BaseException:
            os.close(end)
            self._own.kill()
            raise
        finally:
            os.close(given)
        self._domain, self._why = domain, ""
        trail = self._trail
        self._feed = Feed(trail.path, lambda: trail.head, end, self._note, self._unread, since)

    async def _says(self, domain: Domain, timeout_s: float) -> Status:
        """Return how it says that it stands, once its service has begun.

        Raises `MachineError`, `WireError`.
        """
        return read_status(await _told(domain, SAY, MAX_STATUS, timeout_s))

    async def _stop_feeding(self) -> None:
        feed, self._feed = self._feed, None
        if feed is not None:
            await asyncio.to_thread(feed.close)

    def _note(self, event: str, fields: Mapping[str, object]) -> None:
        """Note, from the feed's thread, what becomes of the feed."""
        self._loop.call_soon_threadsafe(self._trail.note, event, fields)

    def _unread(self, why: str) -> None:
        """End, from the feed's thread, a replica that does not read any more; another one will."""
        self._why = why
        self._loop.call_soon_threadsafe(self._own.kill)

    async def _keep(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            began_s, fed, tries = self._loop.time(), 0, 0
            if self._domain is not None:
                await self._domain.gone.wait()
                fed = self._feed.fed if self._feed is not None else 0
                await self._stop_feeding()
                end = self._domain.end
                why = {"why": end.reason if end is not None else "it ended", "feed": self._why}
                self._trail.note("replica-lost", {**why, "fed": fed})
            if self._loop.time() - began_s > HEALTHY_S:
                pause_s = FIRST_PAUSE_S
            while self._feed is None:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LAST_PAUSE_S)
                tries += 1
                with contextlib.suppress(Exception):  # whatever it was, it is tried again
                    await self._start()
            self._trail.note("replica-back", {"tries": tries})

    async def status(self) -> dict[str, object]:
        """Ask the replica how it stands; `lag`, `unfed`, `trail` are what the node itself knows.

        Raises `StateError` while there is none, `MachineError`, `WireError`.
        """
        domain, feed = await self._standing()
        says = await self._says(domain, ASK_S)
        head = self._trail.head
        known = {"lag": feed.lag, "unfed": feed.failure}
        known |= {"trail": {"n": head.n, "hash": head.hash}}
        return {**msgspec.to_builtins(says), **known}

    async def records(self, after: int) -> bytes:
        """Return the replica's first file of records that begins behind a record, untrusted.

        Nothing if there is none; at most `MAX_FILE` bytes. Raises as `status`.
        """
        domain, _ = await self._standing()
        return await _told(domain, NEXT.format(after), MAX_FILE, READ_S)

    async def _standing(self) -> tuple[Domain, Feed]:
        """Return what is there to be asked. Raises `StateError`, `MachineError`."""
        domain, feed = self._domain, self._feed
        if domain is None or feed is None or domain.state not in ALIVE:
            raise StateError("the audit replica is lost", fix="it is being started again: try then")
        await self._node.answered(domain.name, ASK_S)
        return domain, feed


async def _told(domain: Domain, script: str, most: int, timeout_s: float) -> bytes:
    """Return what a script in the replica's guest says, untrusted. Raises `MachineError`."""
    untrusted = bytearray()

    def take(_stream: object, piece: bytes) -> None:
        untrusted.extend(piece)
        if len(untrusted) > most:
            raise MachineError("the audit replica says too much of itself")

    run = guest_of(domain).agent.run
    code = await run(["sh", "-c", script], output=take, timeout_s=timeout_s)
    if code:
        raise MachineError(f"the audit replica does not say what it has: exit code {code}")
    return bytes(untrusted)


def replication_of(node: Node, uid: int) -> Replication:
    """Return what keeps the audit replica, for the node's owner, whose the trail is.

    Raises `Denied`, or `StateError` where there is none.
    """
    if uid != os.getuid():
        fix = "ask the user who runs the node"
        raise Denied("the trail, and its replica, are the owner's", fix=fix, code="NOT-OWNER")
    replication = node.helpers.get(HELPER)
    if not isinstance(replication, Replication):
        fix = 'write audit = "domain" in the system file, and start the system anew'
        raise StateError("this system has no audit replica", fix=fix)
    return replication
