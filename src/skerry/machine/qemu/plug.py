"""A device of one channel in a QEMU: plugged in, asked to go, and found again by its name.

The rules: a device counts as there from before QEMU is asked for it, because QEMU may do late what
it did not answer in time; what QEMU says of what it holds is read by one function, and only names
of ours count.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator, Mapping

from skerry.errors import MachineError
from skerry.machine.qemu.qmp import Order, QemuRefused, Qmp


class Plug:
    """A device that is, or may be, in QEMU. `deleted` is set once QEMU has said that it is gone."""

    def __init__(self, device: str, plugged: bool = False) -> None:
        self.device = device
        self.plugged = plugged
        self.deleted = asyncio.Event()

    async def plug(self, qmp: Qmp, properties: Mapping[str, object]) -> None:
        """Have the device made. Raises `MachineError`; if it is `QemuRefused` it is not there."""
        with self._asked():
            await qmp.execute(*self._order(properties))

    async def plug_on(
        self, qmp: Qmp, end: int, backend: Order, properties: Mapping[str, object]
    ) -> None:
        """Have a backend made of a descriptor, and the device on it. Raises as `plug`."""
        with self._asked():
            await qmp.give(end, backend, self._order(properties))

    def _order(self, properties: Mapping[str, object]) -> Order:
        return "device_add", {**properties, "id": self.device}

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        self.plugged = True
        try:
            yield
        except QemuRefused:
            self.plugged = False
            raise

    async def unplug(self, qmp: Qmp) -> None:
        """Ask for the device; `deleted` is set when it has gone, or if it went before."""
        try:
            await qmp.execute("device_del", {"id": self.device})
        except QemuRefused as refusal:  # asked before, and done late or done already
            if refusal.absent:
                self.deleted.set()


def numbers(name: str, untrusted: object, key: str, shape: re.Pattern[str]) -> set[int]:
    """Return the channels' numbers in a list of QEMU's, where an item's `key` has this shape.

    Raises `MachineError` if the machine of this name gave no list.
    """
    if not isinstance(untrusted, list):
        raise MachineError(f"{name}: QEMU gave no list of what it holds")
    names = [str(item.get(key)) for item in untrusted if isinstance(item, dict)]
    return {int(match[1]) for each in names if (match := shape.fullmatch(each))}
