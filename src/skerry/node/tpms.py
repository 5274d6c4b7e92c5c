"""Where a node's TPMs lie, and what makes the sockets to them.

The rule: records and keys lie where only the node reaches, the encrypted states where jails do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from skerry.channel.stream import StreamBridge, StreamBridges
from skerry.device.helper import Start
from skerry.device.tpm.maker import Tpm
from skerry.device.tpm.program import swtpm_root
from skerry.device.tpm.state import Kept
from skerry.monitor.domain import Resource
from skerry.monitor.protocols import Side
from skerry.node import paths
from skerry.system.model import ResourceSpec


class StreamPairs:
    """Pairs for TPMs: two-way streams of this host, which carry no descriptors."""

    def __init__(self) -> None:
        self._streams = StreamBridges()

    def mint(self) -> StreamBridge:
        """Make a pair. Raises `TransportError`, `LimitReached`."""
        return self._streams.mint()

    def adopt(self, twins: Mapping[Side, int]) -> StreamBridge:
        """Take over a pair of which both twins are there."""
        return StreamBridge.adopt(twins)

    def close(self) -> None:
        """End what makes them."""
        self._streams.close()


def make_tpm(start: Start, spec: ResourceSpec, resource: Callable[[], Resource]) -> Tpm:
    """Return the maker of a TPM's uses: `node.resources.MakeUses`, once `start` is given."""
    paths.make_private(paths.state_dir())
    records, keys = map(paths.make_private, (paths.tpm_records(), paths.keys_dir()))
    kept = Kept(spec.name, records, keys, paths.make_shared(paths.tpm_states()))
    roots = paths.make_shared(paths.roots_dir())
    return Tpm(kept, lambda: swtpm_root(roots), start, StreamPairs())
