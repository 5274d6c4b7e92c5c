"""Two-way streams, minted as a pair that cannot carry descriptors, and the maker of all streams.

The rule it keeps (laws 1 and 3): the two ends carry bytes and nothing else, and when `cut` has
returned no byte crosses any more, whatever the two machines do: writing was ended on both ends
*before* the queues were drained, so nothing can be queued behind the drain.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Mapping
from typing import Literal, overload

from skerry.channel.one_way import OneWayBridge, Relay, StartRelay, is_pipe
from skerry.channel.transport import (
    Pair,
    TcpPairs,
    Transport,
    close_pair,
    refuse,
    unix_pair,
    unix_pair_holds,
)
from skerry.errors import TransportError
from skerry.monitor.protocols import Overflow, Side

SIOCOUTQNSD = 0x894B
"""`ioctl` of TCP: bytes written but not yet sent."""

_DRAIN_CHUNK = 64 * 1024


class StreamBridge:
    """One stream. `ends` go to the two machines; the twins stay here until the cut."""

    def __init__(self, pair: Pair) -> None:
        """Take over both sockets of the pair as twins, and duplicate them as the ends."""
        self._twins: Pair | None = pair
        self._ends: dict[Side, int] = {}
        try:
            self._ends["source"] = os.dup(pair[0].fileno())
            self._ends["sink"] = os.dup(pair[1].fileno())
        except OSError:
            self.cut()
            raise

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
        pair = self._twins
        return {"source": pair[0].fileno(), "sink": pair[1].fileno()} if pair else {}

    @classmethod
    def adopt(cls, twins: Mapping[Side, int]) -> StreamBridge:
        """Make the bridge of a stream that was handed over, from its twins, which it takes over."""
        bridge = cls.__new__(cls)
        bridge._ends = {}
        bridge._twins = (
            socket.socket(fileno=twins["source"]),
            socket.socket(fileno=twins["sink"]),
        )
        return bridge

    async def open(self, channel: int) -> None:
        """Do nothing: the two ends are connected."""

    def is_whole(self) -> bool:
        """Say whether neither direction was shut down: the machines may still use it."""
        return self._twins is not None and not any(_is_over(twin) for twin in self._twins)

    def handed_over(self) -> None:
        """Close our copies of the ends: each machine has its own. Idempotent."""
        while self._ends:
            os.close(self._ends.popitem()[1])

    def cut(self) -> int:
        """End both directions, take what is queued, close everything; return the bytes taken.

        Never blocks and never raises. (A machine that stops *inside* a read could hold the
        queue's lock; stopping there takes userfaultfd, which the jail's filter refuses.)
        """
        twins, self._twins = self._twins, None
        taken = 0
        if twins is not None:
            for twin in twins:
                with contextlib.suppress(OSError):
                    twin.shutdown(socket.SHUT_RDWR)
            taken = sum(_unsent(twin) for twin in twins) + sum(_drain(twin) for twin in twins)
            close_pair(twins)
        self.handed_over()
        return taken


def _is_over(twin: socket.socket) -> bool:
    """Say whether reading from this end was shut down, by itself or by its peer."""
    poll = select.poll()
    poll.register(twin, select.POLLRDHUP)
    return bool(poll.poll(0))


def _drain(twin: socket.socket) -> int:
    """Read until nothing is left. Finite: the peer's writing has been ended."""
    taken = 0
    buffer = bytearray(_DRAIN_CHUNK)
    with contextlib.suppress(OSError):  # the one urgent byte lies beside the queue
        taken += twin.recv_into(buffer, 1, socket.MSG_DONTWAIT | socket.MSG_OOB)
    while True:
        try:
            got = twin.recv_into(buffer, 0, socket.MSG_DONTWAIT)
        except OSError:  # a reset is reported behind what was queued
            return taken
        if not got:
            return taken
        taken += got


def _unsent(twin: socket.socket) -> int:
    """Count what a TCP end has not sent; its peer, shut down, answers that with a reset.

    So it can't arrive later either (RFC 1122, 4.2.2.13), and the namespace goes when QEMU closes.
    """
    if twin.family != socket.AF_INET:
        return 0
    try:
        answer = fcntl.ioctl(twin, SIOCOUTQNSD, b"\0" * 4)
    except OSError:
        return 0
    waiting: int = struct.unpack("=i", answer)[0]
    return max(0, waiting - 1)  # the FIN of the shutdown waits behind it and counts as one


def adopt(
    twins: Mapping[Side, int], relay: Relay | None, overflow: Overflow
) -> StreamBridge | OneWayBridge:
    """Make the bridge of a stream that was handed over, from its twins, which it takes over.

    `relay` is that of a one-way stream, started with `overflow`; without it that can only be cut.
    """
    if is_pipe(twins["sink"]):
        return OneWayBridge.adopt(twins, relay, overflow)
    return StreamBridge.adopt(twins)


def queued(descriptor: int) -> int:
    """Count the bytes that wait to be read from a stream's descriptor."""
    answer = fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4)
    count: int = struct.unpack("=i", answer)[0]
    return count


class StreamBridges:
    """Makes two-way streams over the safe transport of this host, or the one asked for.

    One-way streams have one transport, and need `relay`, which starts their relays.
    """

    def __init__(self, transport: Transport = "auto", relay: StartRelay | None = None) -> None:
        """Choose the transport: a Unix pair where one holds here (tried for real), else TCP.

        Raises `TransportError` if `unix` is asked for and a descriptor could pass it here.
        """
        holds = transport != "tcp" and unix_pair_holds()
        if transport == "unix" and not holds:
            raise TransportError(
                "on this kernel a Unix stream can carry descriptors",
                fix='use transport = "auto" (Linux 6.16 brings SO_PASSRIGHTS)',
            )
        self.transport: Transport = "unix" if holds else "tcp"
        self._tcp = TcpPairs()
        self._relay = relay

    @overload
    def mint(self, one_way: Literal[False] = False) -> StreamBridge: ...

    @overload
    def mint(self, one_way: Literal[True], overflow: Overflow = "block") -> OneWayBridge: ...

    @overload
    def mint(
        self, one_way: bool, overflow: Overflow = "block", **_: object
    ) -> StreamBridge | OneWayBridge: ...

    def mint(
        self, one_way: bool = False, overflow: Overflow = "block", **_: object
    ) -> StreamBridge | OneWayBridge:
        """Make a stream. Raises `TransportError` or `LimitReached`; then nothing was made."""
        try:
            if one_way:
                return OneWayBridge(self._need_relay(), overflow)
            return StreamBridge(self._pair())
        except OSError as error:
            raise refuse(error) from error

    def pair(self) -> Pair:
        """Make the two connected ends that a stream has. Raises as `mint` does."""
        try:
            return self._pair()
        except OSError as error:
            raise refuse(error) from error

    def _pair(self) -> Pair:
        return unix_pair() if self.transport == "unix" else self._tcp.pair()

    def mint_link(self) -> StreamBridge:
        """Make a two-way stream for Ethernet frames. Raises as `mint` does.

        Its queue is the kernel's own: with that of a stream TCP between two guests was a quarter
        slower, as what a sender's kernel has to pace by comes later.
        """
        try:
            return StreamBridge(unix_pair(0) if self.transport == "unix" else self._tcp.pair())
        except OSError as error:
            raise refuse(error) from error

    def adopt(self, twins: Mapping[Side, int]) -> StreamBridge:
        """Make a two-way stream anew of its twins, which it takes over."""
        return StreamBridge.adopt(twins)

    def _need_relay(self) -> StartRelay:
        if self._relay is None:
            raise TransportError("nothing here starts the relays of one-way streams")
        return self._relay

    def close(self) -> None:
        """End what makes the pairs. Streams that were minted live on."""
        self._tcp.close()
