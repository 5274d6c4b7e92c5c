"""What the maker of a resource's uses is, stated as protocols: one maker for each resource.

The rules: a use is minted after the policy's yes and cut without asking; a maker knows the one
resource that it serves and no other; what a use needs after a restart of the node is in its twins
and its helper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from skerry.device.helper import Helper
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Bridge, Bridges, Side


class Use(Bridge, Protocol):
    """One use of a resource by one domain."""

    @property
    def twins(self) -> Mapping[Side, int]:
        """The descriptors that the cut works on; empty after it."""

    @property
    def uid(self) -> int:
        """The host uid of its helper, 0 where there is none of its own."""

    def is_whole(self) -> bool:
        """Say whether its helper runs and the machine may still use it."""


class Uses(Bridges, Protocol):
    """The maker of the uses of one resource."""

    def mint(
        self, one_way: bool, overflow: str = "block", *, size: int = 0, source: str = ""
    ) -> Use:
        """Make a use by the domain `source`; see `Bridges.mint`."""

    def adopt(self, twins: Mapping[Side, int], helper: Helper | None, source: str) -> Use:
        """Take over a use that was handed over, from its twins, which become its own.

        Without its helper it can only be cut. Raises nothing.
        """

    def close(self) -> None:
        """Let go of what the maker itself holds. Uses that were minted live on."""


@runtime_checkable
class Meets(Protocol):
    """A maker that needs the monitor before there is a use: its table, its trail."""

    def meet(self, monitor: Monitor) -> None:
        """Get to know it."""


@runtime_checkable
class Released(Protocol):
    """A maker whose resource can be given back: then nothing of what was written can be read."""

    @property
    def users(self) -> tuple[str, ...]:
        """The domains that use it now, by name."""

    async def release(self, *, gone: bool = False) -> str:
        """Make what was written unreadable, and say what was done.

        `gone`: it is gone for good, so that there is nothing to be done. Raises `StateError` while
        it is used, or a `Denied`; then it is not to be forgotten.
        """
