"""Links: Ethernet between two domains, as frames over a stream that carries no descriptors.

The rule: a link is a two-way stream to everyone but the machines, and is cut as one.
"""

from __future__ import annotations

from skerry.channel.stream import StreamBridge, StreamBridges
from skerry.errors import TransportError
from skerry.monitor.protocols import Overflow


class LinkBridges:
    """Makes links over the transport of the streams."""

    def __init__(self, streams: StreamBridges) -> None:
        self._streams = streams

    def mint(
        self, one_way: bool = False, overflow: Overflow = "block", **_: object
    ) -> StreamBridge:
        """Make a link. Raises `TransportError` or `LimitReached`; then nothing was made."""
        if one_way:
            raise TransportError("a link goes both ways", fix="a stream can be one-way")
        return self._streams.mint_link()
