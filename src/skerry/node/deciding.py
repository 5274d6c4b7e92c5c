"""Starts the policy manager of a node: a helper in a jail of its own, and the way to it.

The rule: a node that has no policy manager does not start; one that loses it goes on, and denies.
"""

from __future__ import annotations

import socket
from typing import Protocol

from skerry.errors import DeciderUnavailable, Denied
from skerry.monitor.protocols import Decider
from skerry.node import paths
from skerry.node.helpers import Helpers
from skerry.policy import service
from skerry.policy.client import Notice, RemoteManager
from skerry.policy.history import FileHistory
from skerry.policy.source import Policy
from skerry.supervisor.client import Process

NAME = "policy-manager"


class ClosedDecider(Decider, Protocol):
    """A decider that is closed in the end."""

    @property
    def state(self) -> str:
        """`running`, or a word for why it does not answer."""

    async def close(self) -> None:
        """End it."""


async def open_manager(
    helpers: Helpers, policy: Policy, notice: Notice, generation: int = 1
) -> RemoteManager:
    """Return a manager that has begun with this policy; close it before the helpers.

    `notice` takes what the trail has to say of it. Raises `Denied`, `SupervisorError`.
    """

    async def start() -> tuple[socket.socket, Process]:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                module = service.__name__
                return ours, await helpers.start(NAME, module, {service.SOCKET: theirs.fileno()})
            except BaseException:
                ours.close()
                raise

    store = FileHistory(paths.history_file())
    manager = RemoteManager(start, policy, store, notice, generation)
    try:
        await manager.begin()
    except DeciderUnavailable as error:
        raise Denied(
            f"the policy manager does not start: {error.message}",
            fix="its jail needs user namespaces and bubblewrap; `skerry up` tests both for QEMU",
            code=error.code,
        ) from error
    return manager
