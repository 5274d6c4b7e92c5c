"""Which maker serves which kind of resource, on a real host: one line for each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from skerry.channel.stream import StreamBridges
from skerry.device.helper import Start
from skerry.device.resource import Uses
from skerry.device.uplink.use import Uplinks
from skerry.monitor.domain import Resource
from skerry.monitor.protocols import AuditLog, Decider
from skerry.node import paths
from skerry.node.helpers import command
from skerry.node.resources import MakeUses
from skerry.system.model import ResourceKind, ResourceSpec


def all_makers(
    start: Start, decider: Decider, audit: AuditLog, streams: StreamBridges
) -> Mapping[ResourceKind, MakeUses]:
    """Return the maker for each kind. `start` starts the helper of a use."""

    def uplinks(spec: ResourceSpec, _: Callable[[], Resource]) -> Uses:
        roots = partial(paths.make_shared, paths.roots_dir())
        return Uplinks(spec, start, audit.note, streams.pair, command, roots)

    return {"uplink": uplinks}
