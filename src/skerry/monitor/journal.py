"""What must be known after the node was killed, as the monitor sees it.

The rule (law 7): a coroutine returns once its fact is durable, or raises a `Denied`, and its effect
follows; the others note what has happened already, and never block or raise.
"""

from __future__ import annotations

from skerry.label import Label
from skerry.monitor.domain import Domain
from skerry.monitor.table import Channel


class Journal:
    """A journal that keeps nothing: for a node that is never started again."""

    async def ready(self, domain: Domain) -> None:
        """Its machine stands; after a restart it goes on."""

    async def labelled(self, domain: Domain, label: Label) -> None:
        """The domain gets another label."""

    def ended(self, domain: Domain) -> None:
        """Its machine is gone."""

    async def numbered(self, channel: Channel) -> None:
        """Its number is taken; after a restart no other channel gets it."""

    async def minted(self, channel: Channel) -> None:
        """Keep its twins where they outlive the node, before any machine has an end."""

    async def lending(self, channel: Channel) -> None:
        """Remember what it may write, before any machine has an end."""

    async def live(self, channel: Channel) -> None:
        """Both machines have their ends; after a restart it goes on."""

    def gone(self, channel: Channel) -> None:
        """It was cut, or never became live."""
