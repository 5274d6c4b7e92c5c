"""Which domain serves which name, and what follows when that changes.

The rules this module keeps: a name is served only by a running domain that has the label which the
system file gives for it, by one at a time; an offer is recorded and in the journal before anybody
is bound to it; a domain that has another label, is stopped or ended serves nothing any more, in the
same step; and a stream that was asked for by a name lasts only while the label of its server may
serve that name.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from skerry.errors import LimitReached, NotFound, SkerryError
from skerry.monitor.domain import ALIVE, Domain, State
from skerry.monitor.monitor import Monitor
from skerry.node.journal import NodeJournal
from skerry.node.setup import Setup

OFFERS_MAX = 16
"""Most services of one domain at a time; a further offer is refused."""

ENDING = frozenset({State.STOPPING, State.ENDED})

NOT_ITS_OWN = "its service is no longer its server's to offer"


class Taken(SkerryError):
    """Another domain with the same label serves this name."""


class Offers:
    """The services of one node. `journal` is None for a node that is never started again."""

    def __init__(
        self, monitor: Monitor, setup: Callable[[], Setup], journal: NodeJournal | None
    ) -> None:
        self._monitor = monitor
        self._setup = setup
        self._journal = journal
        self._offers: dict[str, Domain] = {}
        self._offering = asyncio.Lock()

    def server(self, name: str) -> Domain | None:
        """Return who serves a name now, also where `follow` has still to withdraw others."""
        domain = self._offers.get(name)
        return domain if domain is not None and self._holds(name, domain) else None

    def of(self, domain: Domain | None) -> list[str]:
        """Return the names that a domain serves."""
        return [name for name, server in self._offers.items() if server is domain]

    def owns(self, domain: Domain, name: str) -> bool:
        """Say whether a domain has the label that the file gives for a name."""
        return self._setup().names.get(name) == domain.label

    async def offer(self, domain: Domain, name: str) -> None:
        """Let a domain that owns a name serve it. Idempotent.

        Raises `Taken`, `LimitReached`, `StateError` while it is not alive (after a restart, until
        it is adopted), or another `Denied` where it can't be recorded; then it does not serve it.
        """
        domain.require(ALIVE, f"serve {name}")
        async with self._offering:
            if (other := self._offers.get(name, domain)) is not domain:
                raise Taken(f"domain {other.name} serves {name}")
            if name in self._offers:
                return
            if len(self.of(domain)) >= OFFERS_MAX:
                raise LimitReached(f"domain {domain.name} has its {OFFERS_MAX} services")
            about = {"service": name, "domain": domain.name, "label": str(domain.label)}
            incarnation = self._incarnation(domain)
            try:
                await self._monitor.mediator.audit.append("offered", about)
                if self._journal is not None and incarnation:
                    fields = {"service": name, "incarnation": incarnation}
                    await self._journal.write("offer", fields)
            except BaseException:  # the records may stand all the same
                self._note(name, domain, "it could not be written down")
                raise
            self._offers[name] = domain
            if domain.state not in ALIVE or not self.owns(domain, name):
                self._withdraw(name, "it may not serve it any more")
                raise NotFound(f"domain {domain.name} may not serve {name} any more")

    async def close(self, domain: Domain, name: str) -> bool:
        """Let a domain serve a name no longer; what was bound stays. False if it does not.

        On return it does not after a restart either. Raises `AuditUnavailable` if that can't be
        written down; now it serves the name no longer all the same.
        """
        if self._offers.get(name) is not domain:
            return False
        self._withdraw(name, "its server closed it")
        if self._journal is not None:
            await self._journal.noted()
        return True

    def follow(self) -> None:
        """Let nothing go on that the file, the labels and the states, as they are, do not give."""
        for name, server in list(self._offers.items()):
            if not self._holds(name, server):
                self._withdraw(name, "the file, its label or its state is another now")
        services = self._setup().names
        for channel in self._monitor.channels:
            if channel.asked and services.get(channel.asked) != channel.sink.label:
                with contextlib.suppress(NotFound):
                    self._monitor.cut(channel.number, NOT_ITS_OWN)

    def resume(self) -> None:
        """After a restart: let those serve again who did, and end what no longer holds."""
        if self._journal is not None:
            alive = {self._incarnation(d): d for d in self._monitor.domains.values()}
            offers = self._journal.standing.offers
            self._offers = {n: alive[i] for n, i in offers.items() if i in alive}
        self.follow()

    def _holds(self, name: str, server: Domain) -> bool:
        return server.state not in ENDING and self.owns(server, name)

    def _withdraw(self, name: str, why: str) -> None:
        self._note(name, self._offers.pop(name), why)

    def _note(self, name: str, server: Domain, why: str) -> None:
        if self._journal is not None:
            self._journal.note("withdrawn", {"service": name})
        about = {"service": name, "domain": server.name, "why": why}
        self._monitor.mediator.audit.note("withdrawn", about)

    def _incarnation(self, domain: Domain) -> str:
        if self._journal is None or domain.machine is None:
            return ""
        return self._journal.footprint(domain.machine).incarnation
