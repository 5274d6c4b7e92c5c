"""Which maker serves which kind of resource, on a real host: one line for each kind."""

from __future__ import annotations

from collections.abc import Mapping

from skerry.device.helper import Start
from skerry.monitor.protocols import Decider
from skerry.node.disks import disk_maker
from skerry.node.resources import MakeUses
from skerry.system.model import ResourceKind


def all_makers(start: Start, decider: Decider) -> Mapping[ResourceKind, MakeUses]:
    """Return the maker for each kind. `start` starts the helper of a use."""
    return {"disk": disk_maker(start, decider)}
