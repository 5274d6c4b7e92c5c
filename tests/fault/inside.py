"""What a real node has in processes of its own, and the nodes of these tests have inside.

The rule: it dies with its node, at any line.
"""

from __future__ import annotations

from typing import Any

from skerry.audit.writer import AuditTrail
from skerry.node import paths
from skerry.node.helpers import Helpers
from skerry.policy.client import Notice
from skerry.policy.history import FileHistory
from skerry.policy.manager import PolicyManager
from skerry.policy.source import Policy


class Trail(AuditTrail):
    """The trail of one life, which remembers what was acknowledged."""

    acknowledged: list[tuple[int, str]]

    async def append(self, event: str, fields: Any) -> int:
        """Append, and remember the number."""
        number = await super().append(event, fields)
        self.acknowledged.append((number, event))
        return number


class Manager(PolicyManager):
    """The policy manager in the node's own process."""

    state = "running"

    async def close(self) -> None:
        """Do nothing."""


async def in_process(_: Helpers, policy: Policy, __: Notice, generation: int) -> Manager:
    """Make such a manager (`World.manager`)."""
    return Manager(policy.stack, FileHistory(paths.history_file()), generation)
