"""One-way stream bridges: two pipes and a jailed relay between them, cut through the twins.

The rules it keeps (laws 3 and 5): the source's machine gets an end that can only be written, the
sink's one that can only be read, and nobody else has an end of both pipes but the relay. When `cut`
has returned no byte crosses: the relay is dead, which the kernel says by the end of the sink's
pipe, and what was queued is gone. Of the sink's end the source learns nothing, because the twins
here keep both pipes as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import NamedTuple, Protocol

from skerry.deaths import DEATHS
from skerry.monitor.protocols import Overflow, Side

PIPE_BYTES = 1 << 20
"""What each of the two pipes may queue, as far as the host lets it (`fs.pipe-max-size`, and
`fs.pipe-user-pages-soft` for an ordinary user). At the limit `overflow` says what happens."""

BACK_BITS_S: Mapping[Overflow, int] = {"block": 60_000, "drop": 0}
"""What a sink can tell its source by letting it wait, in bits a second, where both QEMUs are in an
attacker's hands and in step: as measured on one host (`./run bench oneway-back-kbit-s`), no bound.
"""


_ALL = 1 << 30  # bytes: more than any pipe holds


class Process(Protocol):
    """The relay's process."""

    @property
    def exited(self) -> asyncio.Future[int]:
        """Done when it has ended."""

    def kill(self) -> None:
        """End it at once. Never blocks."""


class Relay(NamedTuple):
    """A relay that was started, and the host uid of its jail (0 for none of its own)."""

    process: Process
    uid: int


StartRelay = Callable[[int, int, int, Overflow], Awaitable[Relay]]
"""Starts the relay of a channel (its number) that reads one descriptor and writes another.

Raises `Denied` or `SupervisorError`; then nothing was started.
"""


class OneWayBridge:
    """One one-way stream. `ends` go to the two machines; the twins can both only be read.

    `overflow` is what its relay does while the sink does not read.
    """

    def __init__(self, start: StartRelay, overflow: Overflow) -> None:
        """Make both pipes. Raises `OSError`; then nothing was made."""
        _nowhere()
        self._start = start
        self.overflow: Overflow = overflow
        self._relay: Relay | None = None
        from_source, source = _pipe()
        self._ends: dict[Side, int] = {"source": source}
        self._twins: dict[Side, int] = {"source": from_source}
        self._to_sink = -1
        try:
            self._twins["sink"], self._to_sink = _pipe()
            self._ends["sink"] = os.dup(self._twins["sink"])
        except OSError:
            self.cut()
            raise

    @classmethod
    def adopt(
        cls, twins: Mapping[Side, int], relay: Relay | None, overflow: Overflow
    ) -> OneWayBridge:
        """Make the bridge of a stream that was handed over, from its twins, which it takes over.

        Without its relay it can only be cut; `overflow` is what that was started with.
        """
        _nowhere()
        bridge = cls.__new__(cls)
        bridge._relay, bridge._to_sink, bridge.overflow = relay, -1, overflow
        bridge._ends, bridge._twins = {}, dict(twins)
        return bridge

    @property
    def ends(self) -> Mapping[Side, int]:
        """The descriptors for the machines; empty once handed over or cut."""
        return self._ends

    @property
    def bells(self) -> Mapping[Side, int]:
        """None."""
        return {}

    @property
    def twins(self) -> Mapping[Side, int]:
        """The descriptors that the cut works on; empty after it."""
        return self._twins

    @property
    def uid(self) -> int:
        """The host uid of the relay, 0 where it has none of its own or there is no relay."""
        return self._relay.uid if self._relay else 0

    def is_whole(self) -> bool:
        """Say whether the relay runs: the machines may still use it."""
        return self._relay is not None and not self._relay.process.exited.done()

    async def open(self, channel: int) -> None:
        """Start the relay. Raises `Denied` or `SupervisorError`."""
        # A cut closes the bridge's own meanwhile; their numbers may be others' then.
        with contextlib.ExitStack() as stack:
            lent = []
            for descriptor in (self._twins["source"], self._to_sink):
                lent.append(os.dup(descriptor))
                stack.callback(os.close, lent[-1])
            relay = await self._start(channel, lent[0], lent[1], self.overflow)
        if not self._twins:
            relay.process.kill()
            return
        self._relay = relay
        self._close_to_sink()

    def handed_over(self) -> None:
        """Close our copies of the ends: each machine has its own. Idempotent."""
        while self._ends:
            os.close(self._ends.popitem()[1])

    def cut(self) -> int:
        """Kill the relay, take what is queued, close everything; return the bytes taken.

        Asks nobody and never raises.
        """
        self.handed_over()
        self._close_to_sink()
        relay, self._relay = self._relay, None
        twins, self._twins = self._twins, {}
        # Before there was a relay no machine had an end, and nothing is waited for.
        if relay is not None:
            relay.process.kill()
            to_sink = [twin for side, twin in twins.items() if side == "sink"]
            DEATHS.wait("the relay of a one-way channel", pipes=to_sink)
        taken = sum(map(_drain, twins.values()))
        for twin in twins.values():
            os.close(twin)
        return taken

    def _close_to_sink(self) -> None:
        if self._to_sink >= 0:
            os.close(self._to_sink)
            self._to_sink = -1


def is_pipe(descriptor: int) -> bool:
    """Say whether a channel's end or twin is one of a one-way stream."""
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)


def _pipe() -> tuple[int, int]:
    read, write = os.pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return read, write


@cache
def _nowhere() -> int:
    """Return where a cut throws what it takes: open before there is anything to cut."""
    return os.open(os.devnull, os.O_WRONLY)


def _drain(pipe: int) -> int:
    """Take what waits in a pipe.

    Does not block, although the machine may switch O_NONBLOCK off for the end that it shares.
    """
    try:
        return os.splice(pipe, _nowhere(), _ALL, flags=os.SPLICE_F_NONBLOCK)
    except BlockingIOError:
        return 0
