"""Makes a node's statements about its domains and their TPMs.

The rule: what a statement says holds together at one instant, which is after its record was
written: between the grant and the signature nothing else runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from skerry.audit.signer import make_key
from skerry.device.tpm.maker import TpmUse
from skerry.device.tpm.statement import Signed, Statement, sign
from skerry.errors import StateError
from skerry.label import Label
from skerry.monitor.table import Channel, Phase
from skerry.node.node import Node


async def make_statement(
    node: Node,
    operator: Label,
    domain: str,
    nonce: bytes,
    key_file: Path,
    clock: Callable[[], float] = time.time,
) -> Signed:
    """Return a signed statement about a domain that uses a TPM.

    Who asks must be allowed to see the domain, as for `ps`. Raises `Denied`, `StateError`.
    """
    key = make_key(key_file, "the key of statements")
    _use_of(node, domain)
    about = {"statement": nonce.hex()}
    grant = await node.monitor.use("domain_getdomaininfo", operator, domain, **about)
    channel, use = _use_of(node, domain)
    statement = Statement(
        nonce=nonce.hex(),
        domain=domain,
        label=str(channel.source.label),
        tpm=channel.sink.name,
        point=use.point.hex(),
        policy=node.setup.stack.digest,
        generation=node.monitor.mediator.decider.generation,
        channel=channel.number,
        record=grant.record,
        time=int(clock()),
    )
    return sign(key, statement)


def _use_of(node: Node, domain: str) -> tuple[Channel, TpmUse]:
    for channel in node.monitor.channels.of(node.monitor.domain(domain)):
        use = channel.bridge
        if channel.phase is Phase.LIVE and isinstance(use, TpmUse) and use.point:
            return channel, use
    raise StateError(f"domain {domain} uses no TPM", fix="`skerry channels` lists what it uses")
