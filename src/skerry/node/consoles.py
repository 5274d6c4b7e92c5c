"""Who may read a domain's console, and who may write it: two questions.

The rule this module keeps: a console without a label of its own is asked for as what flows between
operator and domain, one way if it is only read; one with a label is a resource, which both use.
"""

from __future__ import annotations

from skerry.errors import Denied
from skerry.label import Label
from skerry.monitor.domain import Domain
from skerry.monitor.mediate import Mediator
from skerry.node.setup import Setup

WRITES = {
    "domain_console": True,
    "domain_console_read": False,
    "console_both": True,
    "console_read": False,
}
"""The hooks of a console, and whether each lets the operator write."""


def question(
    setup: Setup, operator: Label, domain: Domain, *, writes: bool
) -> tuple[str, dict[str, Label]]:
    """Return the hook that opens a domain's console now, and its parties."""
    parties = {"operator": operator, "domain": domain.label}
    if (label := setup.consoles.get(domain.name)) is not None:
        return "console_both" if writes else "console_read", {**parties, "console": label}
    return "domain_console" if writes else "domain_console_read", parties


def asked_now(
    hook: str, setup: Setup, operator: Label, domain: Domain
) -> tuple[str, dict[str, Label]]:
    """Return what an open session, which this hook opened, would have to ask now."""
    if hook in WRITES:
        return question(setup, operator, domain, writes=WRITES[hook])
    return hook, {"operator": operator, "domain": domain.label}


async def may_read(mediator: Mediator, setup: Setup, operator: Label, domain: Domain) -> bool:
    """Say whether the operator may read a console. Not recorded."""
    try:
        asked = question(setup, operator, domain, writes=False)
        return (await mediator.judge(*asked)).allowed
    except Denied:
        return False
