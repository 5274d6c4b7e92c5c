"""Memory bridges: a sealed file in memory that two machines map, and a doorbell beside it.

The rules it keeps (laws 3, 5 and 6): the sink of a one-way memory gets a descriptor that can only
read, and gets it through a machine that waits until the file is closed to everybody but its
writer's mapping; the doorbell is a stream with the memory's direction, which a cut ends at once.
What is mapped no cut can take away: the machines give it up, or end (`machine.qemu.shared`), before
the change that cut it is acknowledged. Every memory is a new file, so nothing of another is in it.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Mapping
from typing import Literal

from skerry.channel import room, stream
from skerry.channel.one_way import OneWayBridge, Relay
from skerry.channel.stream import StreamBridge, StreamBridges
from skerry.errors import LimitReached, TransportError
from skerry.monitor.protocols import Overflow, Side
from skerry.threads import in_thread
from skerry.wire import memory

MIN_BYTES = 4096
"""Least bytes of one memory: a page."""

MAX_BYTES = 1 << 30
"""Most bytes of one memory; its size is a power of two, as that of every PCI window. A larger
one, or one between, is refused."""

BELL: Overflow = "drop"
"""What a one-way doorbell does while it is not answered: it must not tell the source that its sink
does not listen (law 5)."""

Twin = Literal["source", "sink", "memory"]
"""What is kept of a memory: both twins of its doorbell, and the memory."""


class MemoryBridge:
    """One memory. `ends` go to the two machines, with `bells` beside them."""

    def __init__(
        self, bell: StreamBridge | OneWayBridge, size: int, one_way: bool, filling: asyncio.Lock
    ) -> None:
        """Make the file; the doorbell is taken over. Raises `OSError`; then nothing was made.

        `filling` is held while it gets its pages: two at once would both find the same room.
        """
        self._bell, self._filling = bell, filling
        self._memory = -1
        self._ends: dict[Side, int] = {}
        try:
            self._memory = memory.make(size, one_way)
            self._ends["source"] = os.dup(self._memory)
            self._ends["sink"] = memory.reader(self._memory) if one_way else os.dup(self._memory)
        except BaseException:
            self.cut()
            raise

    @classmethod
    def adopt(cls, twins: Mapping[Twin, int], relay: Relay | None) -> MemoryBridge:
        """Make the bridge of a memory that was handed over, from its twins, which it takes over.

        `relay` is that of a one-way memory's doorbell; without it that can only be cut.
        """
        bridge = cls.__new__(cls)
        sides: tuple[Side, Side] = "source", "sink"
        bridge._bell = stream.adopt({side: twins[side] for side in sides}, relay, BELL)
        bridge._memory, bridge._ends = twins["memory"], {}
        return bridge

    @property
    def ends(self) -> Mapping[Side, int]:
        """The descriptors of the memory for the machines; empty once handed over or cut."""
        return self._ends

    @property
    def bells(self) -> Mapping[Side, int]:
        """The doorbell's, likewise."""
        return self._bell.ends

    @property
    def twins(self) -> Mapping[Twin, int]:
        """The descriptors that are kept; empty after the cut."""
        kept = {"memory": self._memory} if self._memory >= 0 else {}
        return {**self._bell.twins, **kept}  # type: ignore[dict-item]  # a side is a Twin

    @property
    def uid(self) -> int:
        """The host uid of the doorbell's relay, 0 where there is none."""
        return self._bell.uid if isinstance(self._bell, OneWayBridge) else 0

    @property
    def overflow(self) -> Overflow | None:
        """What the doorbell's relay does while the sink does not read; None where there is none."""
        return self._bell.overflow if isinstance(self._bell, OneWayBridge) else None

    @property
    def identity(self) -> memory.Identity:
        """Which file it is: what a machine may map as long as the channel lives."""
        return memory.identity(self._memory)

    def is_whole(self) -> bool:
        """Say whether its doorbell works: the machines may still use it."""
        return self._memory >= 0 and self._bell.is_whole()

    async def open(self, channel: int) -> None:
        """Give the memory its pages, and start the doorbell's relay where it has one.

        Raises `Denied` or `SupervisorError`.
        """
        lent = os.dup(self._memory)  # a cut closes ours meanwhile
        try:
            async with self._filling:
                await in_thread(_fill, lent)
        except OSError as error:
            raise refuse(error) from error
        finally:
            os.close(lent)
        if self._memory >= 0:
            await self._bell.open(channel)

    def handed_over(self) -> None:
        """Close our copies of the ends: each machine has its own. Idempotent."""
        while self._ends:
            os.close(self._ends.popitem()[1])
        self._bell.handed_over()

    def cut(self) -> int:
        """Cut the doorbell and let go of the memory; return the doorbell's bytes that are lost.

        Asks nobody and never raises. The machines still map the memory until they are detached.
        """
        taken = self._bell.cut()
        self.handed_over()
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
        return taken


class MemoryBridges:
    """Makes memories; their doorbells are streams of `streams`."""

    def __init__(self, streams: StreamBridges) -> None:
        self._streams = streams
        self._filling = asyncio.Lock()

    def mint(
        self, one_way: bool, overflow: Overflow = "block", *, size: int = 0, source: str = ""
    ) -> MemoryBridge:
        """Make a memory of `size` bytes; a doorbell that is not answered loses what comes later.

        Raises `TransportError` or `LimitReached`; then nothing was made.
        """
        if not MIN_BYTES <= size <= MAX_BYTES or size & (size - 1):
            raise TransportError(
                f"a memory of {size} bytes can't be made",
                fix=f"its size is a power of two, from {MIN_BYTES} to {MAX_BYTES} bytes",
            )
        bell = self._streams.mint(one_way, BELL)
        try:
            return MemoryBridge(bell, size, one_way, self._filling)
        except OSError as error:
            raise refuse(error) from error


def _fill(descriptor: int) -> None:
    """Give a memory its pages, if there is room. Raises `OSError`, or a `Denied`."""
    room.require(memory.size(descriptor))
    memory.fill(descriptor)


def refuse(error: OSError) -> LimitReached | TransportError:
    """Name the host's refusal of a memory as the denial that it is."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC):
        return LimitReached(
            f"no room for the memory on this host: {error.strerror}",
            fix="make it smaller, or cut other channels",
        )
    return TransportError(
        f"the memory could not be made: {error}",
        fix="one-way memories need Linux 6.0, all others 5.1",
    )
