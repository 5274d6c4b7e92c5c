"""A resource for the monitor's tests: a socket pair instead of a helper, and what was asked."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from skerry.device.helper import Helper
from skerry.monitor.domain import Resource
from skerry.monitor.protocols import Kind, Side
from tests.support.monitor import World, label


class ToyUse:
    """One use: the machine's end, and the end where a helper would be."""

    uid = 0
    bells: Mapping[Side, int] = {}

    def __init__(self, adopted: socket.socket | None = None) -> None:
        self.ends: dict[Side, int] = {}
        self.served, self._given = (adopted, adopted) if adopted else socket.socketpair()
        if not adopted:
            self.ends["source"] = self._given.fileno()
        self.opened = self.gone = False

    @property
    def twins(self) -> Mapping[Side, int]:
        """The end where the helper would be."""
        return {} if self.gone else {"source": self.served.fileno()}

    def is_whole(self) -> bool:
        """Say whether it was not cut."""
        return not self.gone

    async def open(self, channel: int) -> None:
        """Take note."""
        self.opened = True

    def handed_over(self) -> None:
        """Close the machine's end."""
        self.ends.clear()
        if self._given is not self.served:
            self._given.close()

    def cut(self) -> int:
        """Close everything."""
        self.gone = True
        self.handed_over()
        self.served.close()
        return 0


class ToyUses:
    """The maker of a resource's uses."""

    def __init__(self) -> None:
        self.minted: list[tuple[bool, str, ToyUse]] = []

    def mint(
        self, one_way: bool, overflow: str = "block", *, size: int = 0, source: str = ""
    ) -> ToyUse:
        """Make a use."""
        use = ToyUse()
        self.minted.append((one_way, source, use))
        return use

    def adopt(self, twins: Mapping[Side, int], helper: Helper | None, source: str) -> ToyUse:
        """Take over a use; without its helper it is not whole."""
        use = ToyUse(socket.socket(fileno=twins["source"]))
        use.gone = helper is None
        self.minted.append((False, source, use))
        return use

    def close(self) -> None:
        """Do nothing: what was minted lives on."""


def add_resource(
    world: World, name: str, kind: Kind = "disk", *, written: tuple[str, ...] = ()
) -> ToyUses:
    """Let a world have a resource named like its label."""
    uses = ToyUses()
    resource = Resource(name, label(name), kind, uses)
    resource.written = frozenset(map(label, written))
    world.monitor.resources[name] = resource
    return uses


def serves(uses: ToyUses, end: int) -> bool:
    """Say whether a byte that a machine writes to its end arrives at the helper."""
    try:
        os.write(end, b"x")
        uses.minted[-1][2].served.setblocking(False)
        return uses.minted[-1][2].served.recv(10) == b"x"
    except OSError:
        return False
