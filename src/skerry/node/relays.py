"""Starts the relays of a node's one-way streams, each in a jail of its own.

The rules: a relay holds the two descriptors of its channel, can do nothing but move bytes between
them, and is of no other channel; what its channel was is cut when it ends. It outlives the node,
whose next one takes it over with its channel, under a name that says which.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace

from skerry.channel import relay
from skerry.channel.one_way import Process, Relay
from skerry.device.helper import Helper, Program, Together
from skerry.jail.confinement import Limits
from skerry.jail.identity import Identity
from skerry.monitor.protocols import Overflow
from skerry.node import prefixes
from skerry.node.helpers import Helpers, Order, command
from skerry.supervisor import client

LIMITS = Limits(memory=64 << 20, pids=4)
"""What one relay may use: bytes of memory, processes and threads."""


def relay_name(channel: int, part: int = 1) -> str:
    """Return the name at the supervisor of a channel's relay, or of one of its helpers."""
    return f"{prefixes.RELAY}{channel}{f'.{part}' if part > 1 else ''}"


def take_relay(processes: MutableMapping[str, client.Process], channel: int) -> Process | None:
    """Take the relay or the helpers of a channel out of what the supervisor holds."""
    own = [name for name in processes if name.partition(".")[0] == relay_name(channel)]
    found = [processes.pop(name) for name in sorted(own)]
    return found[0] if len(found) == 1 else Together(found) if found else None


class Relays:
    """The maker of a node's relays. `lost` is told the number of a channel whose relay has ended.

    `share` returns what the domain which a channel begins at may use of the processors, in
    hundredths of a core (0: all): what works for it alone may use as much again.

    An identity is taken once for each relay that runs at the same time, so that binding again and
    again does not use up those of the domains.
    """

    def __init__(self, helpers: Helpers, identity: Callable[[str], Identity]) -> None:
        self.lost: Callable[[int], object] = lambda channel: None
        self.share: Callable[[int], int] = lambda channel: 0
        self._helpers = helpers
        self._take = identity
        self._free: list[Identity] = []
        self._parts: dict[int, int] = {}

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
        """Start what serves the use of a resource: `device.helper.Start`.

        What is not the channel's own helper has its number below zero.
        """
        limits = program.limits
        if program.as_domain:
            limits = replace(limits, cpu=self.share(abs(channel)))
        identity = self._free.pop() if self._free else self._take("relay")
        name = ""
        try:
            if prepared is not None:
                await prepared(identity)
            name = self._name(channel)
            order = Order(name, program.argv, program.fds, identity)
            process = await self._helpers.launch(
                order._replace(
                    profile=program.profile,
                    limits=limits,
                    root=program.root,
                    binds=program.binds,
                    writable=program.writable,
                    without=program.without,
                    first=program.first,
                )
            )
        except BaseException:
            self._free.append(identity)
            if name == relay_name(channel):  # the first: nothing of the channel runs
                self._parts.pop(channel, None)
            raise
        process.exited.add_done_callback(lambda _: self._free.append(identity))
        process.exited.add_done_callback(lambda _: self._parts.pop(channel, None))
        self.watch(channel, process)
        return Helper(process, identity.uid)

    def _name(self, channel: int) -> str:
        self._parts[channel] = self._parts.get(channel, 0) + 1
        return relay_name(channel, self._parts[channel])

    def watch(self, channel: int, process: Process) -> None:
        """Have the loss of a channel's relay told."""
        process.exited.add_done_callback(lambda _: self.lost(channel))
