"""Which port of a switch an Ethernet address was last heard at: a bounded table. Pure.

The rule: a port fills its own part of the table and no other's, so nobody can have another
forgotten but by using its address.
"""

from __future__ import annotations

PORT_ADDRESSES = 64
"""Addresses that a switch remembers of one port; at the limit the one first heard is forgotten, and
frames for it go to every port until it is heard again."""

BROADCAST = 0x01
"""The bit of an address's first byte that says: for more than one station."""


class Table:
    """Addresses by port; ports are numbers."""

    def __init__(self) -> None:
        self._port: dict[bytes, int] = {}
        self._heard: dict[int, dict[bytes, None]] = {}

    def __len__(self) -> int:
        return len(self._port)

    def hear(self, address: bytes, port: int) -> None:
        """Note that a frame with this source address came from a port."""
        if self._port.get(address) == port or address[0] & BROADCAST:
            return
        self._forget(address)
        heard = self._heard.setdefault(port, {})
        if len(heard) >= PORT_ADDRESSES:
            self._forget(next(iter(heard)))
        heard[address] = None
        self._port[address] = port

    def port_of(self, address: bytes) -> int | None:
        """Return where a frame for this address goes; None for every port but its own."""
        return self._port.get(address)

    def remove(self, port: int) -> None:
        """Forget all that was heard at a port."""
        for address in self._heard.pop(port, {}):
            del self._port[address]

    def _forget(self, address: bytes) -> None:
        port = self._port.pop(address, None)
        if port is not None:
            del self._heard[port][address]
