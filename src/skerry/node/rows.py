"""Domains and channels as `skerry ps` and `skerry channels` list them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from skerry.channel.one_way import BACK_BITS_S
from skerry.machine.qemu.nics import CARDS, mac
from skerry.monitor.domain import Domain
from skerry.monitor.protocols import Overflow
from skerry.monitor.table import Channel
from skerry.system.model import DomainSpec


def domain_row(
    spec: DomainSpec, label: str, domain: Domain | None, now: float, offers: Sequence[str] = ()
) -> dict[str, object]:
    """Return a domain as `skerry ps` lists it; None is one that was never started."""
    machine = domain.machine if domain else None
    return {
        "name": spec.name,
        "label": label,
        "machine": machine.kind if machine else spec.machine,
        "state": domain.state.value if domain else "defined",
        "memory": spec.memory,
        "seconds": now - domain.since if domain else None,
        "reason": domain.end.reason if domain and domain.end else None,
        "offers": list(offers),
    }


def channel_row(channel: Channel, now: float) -> dict[str, object]:
    """Return a channel as `skerry channels` lists it.

    `overflow` is what its relay was started with, None for what has none; `back_bits_s`: see
    `BACK_BITS_S`.
    """
    overflow: Overflow | None = getattr(channel.bridge, "overflow", None)
    return {
        "id": channel.number,
        "kind": channel.kind,
        "source": channel.source.name,
        "sink": channel.sink.name,
        "one_way": channel.one_way,
        "size": channel.size or None,
        "mac": {end.name: mac(end.name, channel.port) for end in channel.machines}
        if channel.kind in CARDS
        else None,
        "asked": channel.asked or None,
        "dropped": getattr(channel.bridge, "dropped", None),
        "port": channel.port,
        "state": "stranded" if channel.stranded else channel.phase.value,
        "overflow": overflow,
        "back_bits_s": None if overflow is None else BACK_BITS_S[overflow],
        "generation": channel.generation,
        "record": channel.record,
        "seconds": max(0.0, now - channel.since) if channel.since else 0.0,
        "left_s": None if channel.for_s is None else max(0.0, channel.since + channel.for_s - now),
    }
