"""The ends of channels at their machines: lent while they are attached, dropped after a cut.

The rules this module keeps: a machine that takes its end late takes that of its own channel,
because the descriptor lent to it stays open until it has answered; and a machine drops an end
only after the cut, which waits for nobody.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from skerry.errors import TransportError
from skerry.monitor.protocols import AuditLog, Bridge, Machine, Side

ENDING_S = 1.0
"""How long a machine that did not drop an end may take to turn out to be ending, in seconds."""


@contextmanager
def lent(bridge: Bridge) -> Iterator[list[list[int]]]:
    """Duplicate the ends, the source's first, for as long as the machines need to take them.

    A cut closes the bridge's own; their numbers may then be those of another channel.
    """
    with ExitStack() as stack:

        def copy(descriptor: int) -> int:
            try:
                copied = os.dup(descriptor)
            except OSError as error:
                raise TransportError(f"no descriptor for an end: {error.strerror}") from error
            stack.callback(os.close, copied)
            return copied

        given = bridge.ends, bridge.bells
        sides: tuple[Side, Side] = "source", "sink"
        yield [[copy(part[side]) for part in given if side in part] for side in sides]


class Detaching:
    """Machines that still have to drop the ends of channels that were cut."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit
        self._tasks: set[asyncio.Task[None]] = set()

    def later(self, machine: Machine, number: int) -> None:
        """Have a machine drop its end, without waiting for it."""
        task = asyncio.get_running_loop().create_task(self._detach(machine, number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _detach(self, machine: Machine, number: int) -> None:
        try:
            await machine.detach(number)
        except Exception as error:
            # A machine that is ending drops everything by itself, and says so in a moment.
            await asyncio.wait({machine.exited}, timeout=ENDING_S)
            if not machine.exited.done():
                # The bridge is severed already; a machine that keeps a dead end only wastes it.
                self._audit.note("detach-failed", {"channel": number, "reason": str(error)})

    async def settle(self) -> None:
        """Wait until all have dropped theirs. Who stops waiting stops nothing else."""
        while self._tasks:
            await asyncio.wait(self._tasks)
