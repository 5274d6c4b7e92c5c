"""Which maker serves which kind of resource, on a real host: one line for each kind."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from skerry.channel.stream import StreamBridges
from skerry.device.helper import Start
from skerry.device.switch import engine
from skerry.device.switch.uses import SwitchUses
from skerry.node.disks import disk_maker
from skerry.node.helpers import command
from skerry.node.resources import MakeUses
from skerry.node.tpms import make_tpm
from skerry.node.uplinks import make_uplink
from skerry.system.model import ResourceKind


def all_makers(start: Start) -> Mapping[ResourceKind, MakeUses]:
    """Return the maker for each kind. `start` starts the helper of a use."""
    switch = command(engine.__name__)
    return {
        "disk": disk_maker(start),
        "uplink": partial(make_uplink, start),
        "switch": lambda spec, resource: SwitchUses(
            spec.name, resource, start, switch, StreamBridges()
        ),
        "tpm": partial(make_tpm, start),
    }
