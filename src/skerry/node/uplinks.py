"""Makes the uplinks of a node: what they need of its other parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from skerry.channel.stream import StreamBridges
from skerry.device.helper import Start
from skerry.device.uplink.use import Uplinks
from skerry.monitor.domain import Resource
from skerry.node import paths
from skerry.node.helpers import command
from skerry.system.model import ResourceSpec


def make_uplink(start: Start, spec: ResourceSpec, resource: Callable[[], Resource]) -> Uplinks:
    """Return the maker of an uplink's uses: `node.resources.MakeUses`."""
    roots = partial(paths.make_shared, paths.roots_dir())
    return Uplinks(spec, start, StreamBridges(), command, roots)
