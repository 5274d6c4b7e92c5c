"""Starts the relays of a node's one-way streams, each in a jail of its own.

The rules: a relay holds the two descriptors of its channel, can do nothing but move bytes between
them, and is of no other channel; what its channel was is cut when it ends. It outlives the node,
whose next one takes it over with its channel, under a name that says which.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from skerry.channel import relay
from skerry.channel.one_way import Process, Relay
from skerry.device.helper import Helper, Program
from skerry.jail.confinement import Limits
from skerry.jail.identity import Identity
from skerry.monitor.protocols import Overflow
from skerry.node import prefixes
from skerry.node.helpers import Helpers, Order, command

LIMITS = Limits(memory=64 << 20, pids=4)
"""What one relay may use: bytes of memory, processes and threads."""


def relay_name(channel: int) -> str:
    """Return the name of a channel's relay at the supervisor."""
    return f"{prefixes.RELAY}{channel}"


class Relays:
    """The maker of a node's relays. `lost` is told the number of a channel whose relay has ended.

    An identity is taken once for each relay that runs at the same time, so that binding again and
    again does not use up those of the domains.
    """

    def __init__(self, helpers: Helpers, identity: Callable[[str], Identity]) -> None:
        self.lost: Callable[[int], object] = lambda channel: None
        self._helpers = helpers
        self._take = identity
        self._free: list[Identity] = []

    async def start(self, channel: int, source: int, sink: int, overflow: Overflow) -> Relay:
        """Start the relay of a channel: `channel.one_way.StartRelay`."""
        argv = [*command(relay.__name__), overflow]
        fds = {relay.READ: source, relay.WRITE: sink}
        return Relay(*await self.serve(channel, Program(argv, fds, "relay", LIMITS)))

    async def serve(
        self,
        channel: int,
        program: Program,
        prepared: Callable[[Identity], Awaitable[None]] | None = None,
    ) -> Helper:
        """Start what serves the use of a resource: `device.helper.Start`."""
        identity = self._free.pop() if self._free else self._take("relay")
        try:
            if prepared is not None:
                await prepared(identity)
            order = Order(relay_name(channel), program.argv, program.fds, identity)
            process = await self._helpers.launch(
                order._replace(
                    profile=program.profile,
                    limits=program.limits,
                    root=program.root,
                    binds=program.binds,
                    writable=program.writable,
                )
            )
        except BaseException:
            self._free.append(identity)
            raise
        process.exited.add_done_callback(lambda _: self._free.append(identity))
        self.watch(channel, process)
        return Helper(process, identity.uid)

    def watch(self, channel: int, process: Process) -> None:
        """Have the loss of a channel's relay told."""
        process.exited.add_done_callback(lambda _: self.lost(channel))
