"""Relays without a jail, for tests that need one-way streams and not their confinement."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import skerry
from skerry.channel import relay
from skerry.channel.one_way import Relay
from skerry.monitor.protocols import Overflow
from skerry.node.helpers import command

SOURCE = str(Path(skerry.__file__).parent.parent)


class BareRelay:
    """A relay as a child of this process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pidfd = os.pidfd_open(process.pid)
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = loop.create_future()
        loop.add_reader(self.pidfd, self._ended)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self.pidfd)
        os.close(self.pidfd)
        self.exited.set_result(self.process.wait())


class BareRelays:
    """Starts them; `started` holds all, by their channels' numbers."""

    def __init__(self) -> None:
        self.started: dict[int, BareRelay] = {}

    async def start(self, channel: int, source: int, sink: int, overflow: Overflow) -> Relay:
        """Start one: `channel.one_way.StartRelay`."""
        process = _spawn(source, sink, overflow)
        made = self.started[channel] = BareRelay(process)
        return Relay(made, 0)

    async def ended(self) -> None:
        """Wait until all have ended; each does when its channel is cut."""
        await asyncio.gather(*(relay.exited for relay in self.started.values()))


def _spawn(source: int, sink: int, overflow: Overflow) -> subprocess.Popen[bytes]:
    # Numbers that are not those which the relay's own shall have.
    lent = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (source, sink)]
    argv = command(relay.__name__, SOURCE)
    moves = zip(lent, (relay.READ, relay.WRITE), strict=True)
    wiring = "".join(f"os.dup2({end}, {n}); os.close({end}); " for end, n in moves)
    argv = [sys.executable, *argv[1:-1], f"import os; {wiring}{argv[-1]}", overflow]
    process = subprocess.Popen(argv, pass_fds=lent, stdin=subprocess.DEVNULL)
    for end in lent:
        os.close(end)
    return process
