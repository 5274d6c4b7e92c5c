"""What a QEMU did not do in time, tried again as soon as it hears again.

The rules: a QEMU that stays frozen is sent one command now and then, however much is left to do;
what it refuses is done with; and with its end all is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable

from skerry.errors import MachineError
from skerry.machine.qemu.qmp import QemuRefused
from skerry.monitor.protocols import Exit

FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 30.0
"""The pause before it is tried again, in seconds; it doubles up to the last."""

Work = Callable[[], Awaitable[object]]
"""Raises `MachineError` if it is to be tried again, and `QemuRefused` if it never will be done."""


class Late:
    """What is left to do of one machine, until that has `exited`."""

    def __init__(self, exited: asyncio.Future[Exit]) -> None:
        self._exited = exited
        self._left: dict[Hashable, Work] = {}
        self._trying: asyncio.Task[None] | None = None

    def again(self, name: Hashable, work: Work) -> None:
        """Try this again until it is done; with the same name it is the same work."""
        self._left[name] = work
        if self._trying is None or self._trying.done():
            self._trying = asyncio.get_running_loop().create_task(self._try())

    def done(self, name: Hashable) -> None:
        """This was done by somebody else."""
        self._left.pop(name, None)

    async def _try(self) -> None:
        pause_s = FIRST_PAUSE_S
        while self._left and not self._exited.done():
            await asyncio.wait({self._exited}, timeout=pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)
            with contextlib.suppress(MachineError):
                while self._left and not self._exited.done():
                    name, work = next(iter(self._left.items()))
                    with contextlib.suppress(QemuRefused):
                        await work()
                    if self._left.get(name) is work:
                        del self._left[name]
