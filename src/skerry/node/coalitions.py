"""The coalitions of a node's switches: all of them judged, whenever what decides of them changes.

The rule this module keeps: a change of policy, a relabel and a restart are not over before every
pair of members was judged; who ends or is relabelled leaves in the step in which that happens.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from skerry.device.switch.uses import SwitchUses
from skerry.errors import Denied
from skerry.label import Label
from skerry.monitor.monitor import Monitor
from skerry.monitor.protocols import Candidate
from skerry.node.resources import Resources


class Coalitions:
    """All switches of a node."""

    def __init__(self, monitor: Monitor, resources: Resources) -> None:
        self._monitor = monitor
        self._resources = resources
        self._relabelling = asyncio.Lock()

    def _each(self) -> Iterator[SwitchUses]:
        return (uses for uses in self._resources.made() if isinstance(uses, SwitchUses))

    async def judge(self) -> dict[int, str]:
        """Cut whom the policy in force keeps from another member; return why, by number."""
        cut: dict[int, str] = {}
        for uses in self._each():
            cut |= await uses.coalition.judge()
        return cut

    async def foretold(self, candidate: Candidate) -> dict[int, str]:
        """Say what `judge` would cut under a policy. Raises `Denied` if it can't be said."""
        cut: dict[int, str] = {}
        for uses in self._each():
            cut |= await uses.coalition.foretold(candidate, candidate.carry)
        return cut

    @contextlib.asynccontextmanager
    async def relabelling(self, operator: Label, name: str, new: Label) -> AsyncIterator[None]:
        """Relabel a domain within: what of its uses may stay is found out before.

        For an operator who may not relabel it nothing is, because that counts in the walls.
        """
        async with self._relabelling:
            try:
                domain = self._monitor.domains.get(name)
                if domain is not None and await self._may(operator, domain.label, new):
                    for uses in self._each():
                        await uses.coalition.foresee(domain, new)
                yield
            finally:
                for uses in self._each():
                    uses.coalition.forget()

    async def _may(self, operator: Label, old: Label, new: Label) -> bool:
        parties = {"operator": operator, "domain": old, "new": new}
        try:
            return (await self._monitor.mediator.judge("domain_relabel", parties)).allowed
        except Denied:
            return False

    def withdrawn(self, name: str, why: str) -> None:
        """What was granted over a domain ends: `Binder.withdrawn`."""
        for uses in self._each():
            uses.coalition.withdrawn(name, why)

    async def resume(self) -> None:
        """After a restart: judge what was adopted, and start what carries the frames."""
        for uses in self._each():
            await uses.resume()
