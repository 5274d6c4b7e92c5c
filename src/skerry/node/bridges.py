"""Who mints each kind of channel, and who makes its bridge anew after a restart: one table.

The rule this module keeps: a bridge is adopted by the maker of its kind, whole; what is left of one
that was being bound, and whose kind is not known, is taken apart as far as it got.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from skerry.channel import stream
from skerry.channel.link import LinkBridges
from skerry.channel.memory import MemoryBridge, MemoryBridges, Twin
from skerry.channel.one_way import Relay, is_pipe
from skerry.channel.stream import StreamBridges
from skerry.device.disk.use import DiskUse
from skerry.device.helper import Helper, Process
from skerry.monitor.protocols import Bridges, Kind, Side
from skerry.node.recover import Adopted
from skerry.node.resources import Resources
from skerry.node.standing import RESOURCE, ChannelEntry


@runtime_checkable
class Reporting(Protocol):
    """A use whose helper tells what it refuses."""

    def known_as(self, channel: int, source: str) -> None:
        """Record that from now on as of this channel and domain."""


class AllBridges:
    """The makers of a node's channels, by kind."""

    def __init__(self, streams: StreamBridges, resources: Resources) -> None:
        self.between: dict[Kind, Bridges] = {
            "stream": streams,
            "link": LinkBridges(streams),
            "memory": MemoryBridges(streams),
        }
        self._resources = resources

    def adopt(
        self, kept: Mapping[Twin, int], process: Process | None, entry: ChannelEntry | None
    ) -> Adopted | None:
        """Make a bridge anew: `recover.Adopt`."""
        uid = entry.uid if entry is not None else 0
        relay = Relay(process, uid) if process is not None else None
        if kept.keys() == {"source", "sink", "memory"}:
            return MemoryBridge.adopt(kept, relay)
        twins: dict[Side, int] = {s: kept[s] for s in ("source", "sink") if s in kept}
        if len(twins) < len(kept) or (entry is not None and entry.kind == "memory"):
            return _Remains(kept, process)
        if entry is not None and entry.sink.startswith(RESOURCE):
            uses = self._resources.uses_of(entry.sink.removeprefix(RESOURCE))
            helper = Helper(process, uid) if process is not None else None
            if uses is None or "source" not in twins:
                return _Remains(twins, process)
            domain = entry.source.split("/")[1]
            use = uses.adopt(twins, helper, domain)
            if entry.one_way and isinstance(use, DiskUse):
                use.writes = False
            if isinstance(use, Reporting):
                use.known_as(entry.number, domain)
            return use
        if twins.keys() >= {"source", "sink"} and is_pipe(twins["source"]) is is_pipe(
            twins["sink"]
        ):
            return stream.adopt(twins, relay, entry.overflow if entry is not None else "block")
        return _Remains(twins, process) if entry is None else None


class _Remains:
    """What is left of a channel that nobody can take up: it can only be cut."""

    def __init__(self, twins: Mapping[Any, int], process: Process | None) -> None:
        self._twins = dict(twins)
        self._process = process

    ends: Mapping[Side, int] = {}
    bells: Mapping[Side, int] = {}

    def is_whole(self) -> bool:
        """It is not."""
        return False

    async def open(self, channel: int) -> None:
        """Never called."""

    def handed_over(self) -> None:
        """Do nothing."""

    def cut(self) -> int:
        """End the helper, shut down what is a socket, close everything."""
        if self._process is not None:
            self._process.kill()
        while self._twins:
            twin = self._twins.popitem()[1]
            if stat.S_ISSOCK(os.fstat(twin).st_mode):
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(twin)) as sock:
                    sock.shutdown(socket.SHUT_RDWR)
            os.close(twin)
        return 0
