"""The disks of a node: where their keys and overlays lie, what connects them, and their release.

The rules: keys and overlays lie where only the node reaches, and no connection carries descriptors;
a disk is released after the policy's yes, and what was done stands in the trail.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from skerry.channel.transport import TcpPairs, unix_pair_holds, unix_waiting
from skerry.device.disk.keys import Keys
from skerry.device.disk.uses import DiskUses, Means, sweep
from skerry.device.helper import Start
from skerry.errors import Denied, StaleGeneration
from skerry.label import Label
from skerry.monitor.domain import Resource
from skerry.node import paths
from skerry.node.node import Node
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


def disk_maker(start: Start) -> MakeUses:
    """Return the maker of disks. What a killed node left of overlays is removed."""
    connections = Connections()
    overlays = paths.state_dir() / "overlays"
    sweep(overlays)

    def make(spec: ResourceSpec, resource: Callable[[], Resource]) -> DiskUses:
        roots = paths.make_shared(paths.roots_dir())
        keys = Keys(paths.make_private(paths.state_dir()) / "keys")
        return DiskUses(Means(start, connections, roots, overlays, keys), spec)

    return make


async def list_disks(node: Node, operator: Label) -> list[dict[str, object]]:
    """List the disks that an operator may release. Not recorded."""
    rows: list[dict[str, object]] = []
    for name, (spec, resource, users) in node.resources.disks().items():
        if not await _may_release(node, operator, resource.label):
            continue
        rows.append(
            {
                "name": name,
                "label": str(resource.label),
                "file": spec.file,
                "format": spec.format,
                "encrypted": spec.encrypted,
                "discard": spec.discard,
                "shared": spec.shared,
                "users": list(users),
                "written": sorted(map(str, resource.written)),
            }
        )
    return rows


async def _may_release(node: Node, operator: Label, disk: Label) -> bool:
    try:
        parties = {"operator": operator, "sink": disk}
        verdict = await node.monitor.mediator.judge("resource_remove", parties)
    except Denied:
        return False
    return verdict.allowed


async def release_disk(
    node: Node, operator: Label, name: str, *, gone: bool = False
) -> dict[str, object]:
    """Release a disk at an operator's wish; say what was done. `gone`: its image is, for good.

    Raises `NotFound`, `StateError` while it is used, `Refused` or another `Denied`.
    """
    _, resource, _ = node.resources.disk(name)
    mediator = node.monitor.mediator
    grant = await mediator.permit(
        "resource_remove",
        lambda: {"operator": operator, "sink": resource.label},
        {"resource": name, **({"gone": True} if gone else {})},
    )
    if node.resources.disk(name)[1] is not resource:
        raise StaleGeneration(
            f"the disk {name} is another one now", fix="see `skerry disk list`, and ask again"
        )
    written = sorted(map(str, resource.written))
    done = await node.resources.release(name, gone=gone)
    mediator.audit.note(
        "forgotten" if gone else "released", {"resource": name, "written": written, "done": done}
    )
    return {"disk": name, "done": done, "written": written, "record": grant.record}
