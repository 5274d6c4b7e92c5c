"""Which maker serves which kind of resource, on a real host: one line for each kind."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from skerry.device.helper import Start
from skerry.monitor.protocols import Decider
from skerry.node.resources import MakeUses
from skerry.node.uplinks import make_uplink
from skerry.system.model import ResourceKind


def all_makers(start: Start, decider: Decider) -> Mapping[ResourceKind, MakeUses]:
    """Return the maker for each kind. `start` starts the helper of a use."""
    return {"uplink": partial(make_uplink, start)}
