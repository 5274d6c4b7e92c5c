"""Links: two ways, no descriptors, and the kernel's own queue."""

from __future__ import annotations

import socket

import pytest

from skerry.channel.link import LinkBridges
from skerry.channel.stream import StreamBridges
from skerry.channel.transport import passes_descriptor
from skerry.errors import TransportError


def test_a_link_goes_both_ways_and_carries_no_descriptor() -> None:
    """One-way is refused; the queue is that of a plain pair, unlike a stream's."""
    streams = StreamBridges()
    links = LinkBridges(streams)
    with pytest.raises(TransportError, match="both ways"):
        links.mint(one_way=True)
    link, stream = links.mint(), streams.mint()
    ends = [socket.socket(fileno=link.twins[side]) for side in ("source", "sink")]
    one, other = ends
    one.send(b"x")
    assert other.recv(1) == b"x"
    assert not passes_descriptor(one, other)
    if streams.transport == "unix":
        plain, peer = socket.socketpair()
        with plain, peer, socket.socket(fileno=stream.twins["sink"]) as deep:
            sizes = [s.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for s in (one, plain, deep)]
            deep.detach()
        assert sizes[0] == sizes[1] < sizes[2]
    for end in ends:
        end.detach()
    link.cut()
    stream.cut()
    streams.close()
