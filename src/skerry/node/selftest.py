"""The self-test before `up`: the escape probes in a throw-away jail, and the host's swap.

The rule: a layer that is missing or does not hold is named, and nothing starts unless the system
file accepts that layer's absence by name.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Collection
from pathlib import Path

from skerry.errors import LayerMissing
from skerry.jail.errors import JailError
from skerry.jail.identity import Identity
from skerry.jail.probe.probes import LayerResult, probe, require
from skerry.monitor.protocols import Bridges
from skerry.node.swap import plain_swap


async def self_test(
    roots: Path, identity: Identity, streams: Bridges, accepted: Collection[str]
) -> dict[str, str]:
    """Probe the jail and return each layer's standing: `held`, or what got through.

    The probes get a stream of the transport that channels use. Raises `LayerMissing`.
    """
    bridge = streams.mint(False)
    try:
        source, sink = (
            socket.socket(fileno=os.dup(bridge.ends[side])) for side in ("source", "sink")
        )
        with source, sink:
            results = await asyncio.to_thread(probe, roots, identity, (source, sink))
        results.append(_swap())
        require(results, frozenset(accepted))
    except JailError as error:
        raise LayerMissing(error.message, fix=error.fix) from None
    finally:
        bridge.cut()
    return {result.layer: _standing(result) for result in results}


def _swap() -> LayerResult:
    plain = plain_swap()
    detail = f"not encrypted: {', '.join(map(ascii, plain))}" if plain else ""
    return LayerResult("swap", not plain, detail)


def _standing(result: LayerResult) -> str:
    return "held" if result.held else f"missing: {result.detail}"
