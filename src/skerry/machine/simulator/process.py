"""What of a simulated machine outlives a node: its guest, its ports, and how it ended.

The rule: one machine object at a time owns it; like a real process it ends without one as well,
and whoever owns it next is told.
"""

from __future__ import annotations

import socket
from typing import Literal, Protocol

from skerry.machine.simulator.guest import SimulatedGuest
from skerry.monitor.protocols import Exit

Step = Literal["prepare", "adopt", "resume", "pause", "shutdown", "attach", "detach"]


class Faults:
    """What a test lets go wrong: steps that fail, steps at which the machine dies."""

    def __init__(self) -> None:
        self.fail: set[Step] = set()
        self.die: set[Step] = set()


class Owner(Protocol):
    """The machine object through which a node acts."""

    def release(self) -> None:
        """Act no more: there is another owner, or none."""

    def ended(self, end: Exit) -> None:
        """Take note of the process's end."""


class SimulatedProcess:
    """A guest and the host's ends of its console and control port.

    `guest` exists once it was started.
    """

    guest: SimulatedGuest

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.started = False
        self.ports: dict[int, str] = {}
        self.exit: Exit | None = None
        self.owner: Owner | None = None
        self._console: socket.socket
        self._control: socket.socket

    def start(self) -> None:
        """Make the guest, its processors stopped."""
        self._console, console = socket.socketpair()
        self._control, control = socket.socketpair()
        self.guest = SimulatedGuest(console, control)
        self.started = True

    def console(self) -> socket.socket:
        """Return a duplicate of the host's end of the console; after the end it is at its end."""
        return self._copy(self._console)

    def control(self) -> socket.socket:
        """Return the same of the port by which the guest calls its node."""
        return self._copy(self._control)

    def _copy(self, sock: socket.socket) -> socket.socket:
        if self.exit is None:
            return sock.dup()
        near, far = socket.socketpair()
        far.close()
        return near

    def hand_over(self, owner: Owner) -> None:
        """Give it to a new owner; an earlier one is released."""
        if self.owner is not None:
            self.owner.release()
        self.owner = owner
        if self.exit is not None:
            owner.ended(self.exit)
        elif self.started:
            self.guest.moved()

    def end(self, status: int, reason: str) -> None:
        """End it and close everything. Idempotent."""
        if self.exit is not None:
            return
        self.exit = Exit(status, reason)
        self.ports.clear()
        if self.started:
            self.guest.end()
            self._console.close()
            self._control.close()
        if self.owner is not None:
            self.owner.ended(self.exit)
