"""Who may see whom: whether one label may list a domain that has another.

The rule: what can't be decided is not seen. Nothing of it is recorded, as it gives no authority.
"""

from __future__ import annotations

from skerry.errors import Denied
from skerry.label import Label
from skerry.monitor.mediate import Mediator


async def may_see(mediator: Mediator, label: Label, other: Label) -> bool:
    """Say whether an operator or a guest with this label may list a domain with the other."""
    try:
        parties = {"operator": label, "domain": other}
        return (await mediator.judge("domain_getdomaininfo", parties)).allowed
    except Denied:
        return False
