"""What an uplink allows, and which addresses a name may stand for. Pure.

The rules: a connection is allowed if the list holds its address and port, or if the list holds a
name with this port for which the resolver here has given this address; an address that is not one
of the public internet, or is this host's own, is reached only where the list holds it literally,
whatever a name stands for, so that no answer of a foreign name server leads into the host or its
networks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import NamedTuple

MIN_TTL_S, MAX_TTL_S = 30, 3600
"""For how many seconds an answer stands, whatever its own time to live says."""

GRACE_S = 300
"""For how many seconds more a connection may still be begun to an address that was answered."""

MAX_ADDRESSES = 8
"""Addresses taken of one answer, and twice as many that one name stands for; older ones go."""

NOT_ALLOWED = "not on the allow-list"
NO_NAME = "no allowed name stands for this address"
NOT_PUBLIC = "stands for an address that is not public and not on the allow-list"
OWN = "stands for an address of this host that is not on the allow-list"


class Verdict(NamedTuple):
    """May it be connected to; if not, what was asked and why it is refused."""

    allowed: bool
    asked: str
    reason: str = ""


def is_public(address: str) -> bool:
    """Say whether an IPv4 address is one of the public internet."""
    parsed = ipaddress.IPv4Address(address)
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


def split(destination: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`."""
    host, _, port = destination.rpartition(":")
    return host, int(port)


def is_address(host: str) -> bool:
    """Say whether this is an IPv4 address and no name."""
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


class AllowList:
    """The destinations of one uplink, and what its names stand for."""

    def __init__(self, allow: Iterable[str]) -> None:
        """Take `NAME-OR-ADDRESS:PORT`s, as `system.resources` has checked them."""
        self._literal: set[tuple[str, int]] = set()
        self._ports: dict[str, set[int]] = {}
        for host, port in map(split, allow):
            if is_address(host):
                self._literal.add((host, port))
            else:
                self._ports.setdefault(host.lower(), set()).add(port)
        self._addresses = {host for host, _ in self._literal}
        self._pins: dict[str, dict[str, float]] = {}

    def knows(self, name: str) -> bool:
        """Say whether a name (in small letters) may be asked for."""
        return name in self._ports

    def pin(self, name: str, addresses: Iterable[str], ttl: int, now: float) -> list[str]:
        """Let an allowed name stand for these addresses from now on; return those it may.

        The rest are not public.
        """
        good = [a for a in addresses if a in self._addresses or is_public(a)][:MAX_ADDRESSES]
        pins = self._pins.setdefault(name, {})
        for address in good:
            pins.pop(address, None)
            pins[address] = now + min(max(ttl, MIN_TTL_S), MAX_TTL_S)
        while len(pins) > 2 * MAX_ADDRESSES:
            del pins[next(iter(pins))]
        return good

    def pinned(self, name: str, now: float) -> tuple[list[str], int]:
        """Return what a name stands for, and for how many seconds yet; nothing once that is over.

        A name is asked for anew when the first of its addresses is no longer good.
        """
        fresh = {a: until for a, until in self._pins.get(name, {}).items() if until > now}
        return list(fresh), int(min(fresh.values(), default=now) - now)

    def judge(self, address: str, port: int, now: float, own: bool = False) -> Verdict:
        """Say whether a connection may be made, and if not, what was asked and why not.

        `own`: the address is one of this host's.
        """
        if (address, port) in self._literal:
            return Verdict(True, f"{address}:{port}")
        long_ago = now - GRACE_S
        names = [n for n, pins in self._pins.items() if pins.get(address, long_ago) > long_ago]
        allowed = [name for name in names if port in self._ports[name]]
        if allowed and is_public(address) and not own:
            return Verdict(True, f"{allowed[0]}:{port}")
        if allowed:
            reason = OWN if own else NOT_PUBLIC
            return Verdict(False, f"{allowed[0]} ({address}:{port})", reason)
        if names:
            return Verdict(False, f"{names[0]} ({address}:{port})", NOT_ALLOWED)
        return Verdict(False, f"{address}:{port}", NO_NAME if self._ports else NOT_ALLOWED)
