"""Where a node's disks have their keys and overlays, and what connects machines to their daemons.

The rule: keys and overlays lie where only the node reaches, and no connection carries descriptors.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from skerry.channel.transport import TcpPairs, unix_pair_holds, unix_waiting
from skerry.device.disk.keys import Keys
from skerry.device.disk.uses import DiskUses, Means, sweep
from skerry.device.helper import Start
from skerry.monitor.domain import Resource
from skerry.monitor.protocols import Decider
from skerry.node import paths
from skerry.node.resources import MakeUses
from skerry.system.model import ResourceSpec


class Connections:
    """Makes the connections of a node's disks over the transport that holds on this host."""

    def __init__(self) -> None:
        self._unix = unix_pair_holds()
        self._tcp = TcpPairs()

    def __call__(self) -> tuple[socket.socket, socket.socket]:
        """Make one: `device.disk.uses.Waiting`."""
        if not self._unix:
            return self._tcp.waiting()
        return unix_waiting(paths.make_private(paths.state_dir()))


def disk_maker(start: Start, decider: Decider) -> MakeUses:
    """Return the maker of disks. What a killed node left of overlays is removed."""
    connections = Connections()
    overlays = paths.state_dir() / "overlays"
    sweep(overlays)

    def make(spec: ResourceSpec, resource: Callable[[], Resource]) -> DiskUses:
        roots = paths.make_shared(paths.roots_dir())
        keys = Keys(paths.make_private(paths.state_dir()) / "keys")
        return DiskUses(Means(start, decider, connections, roots, overlays, keys), spec, resource)

    return make
