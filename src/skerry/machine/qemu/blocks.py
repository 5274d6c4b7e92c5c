"""The disks of one QEMU: a block device for each, over NBD to the helper that has the image.

The rules it keeps: QEMU is given a connected socket and nothing of the image; what of a disk is
there can be taken away again, from any point that its making reached, also one that an earlier
process made; a disk that failed to come leaves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import re

from skerry.errors import LimitReached, MachineError, StateError
from skerry.machine.qemu.plug import Plug, numbers
from skerry.machine.qemu.qmp import QemuRefused, Qmp
from skerry.machine.qemu.sync import GIVEN

MAX_DISKS = 8
"""Disks of one domain; one more is refused. They share the slots of its board with its links and
memories."""

MAX_SERIAL = 20
"""Longest name of a disk, in bytes: the guest sees it as the serial number, which has no more."""

DETACH_S = 5.0
"""How long QEMU and its guest may take to give a disk up, in seconds; a guest that does not let go
of a disk that was cut only keeps one on which every access fails."""

ASK_S = 1.0
"""The pause before a guest is asked again, in seconds."""

BUSY_S = 0.01
"""The pause before a busy block node is asked for again."""

EXPORT = "disk"
"""What the helper calls the disk that it serves."""

_NODE = re.compile(r"disk([0-9]{1,18})")
_DEVICE = re.compile(r"disk([0-9]{1,18})-device")


class _Disk(Plug):
    """What of a disk is, or may be, in QEMU: a device on a block node."""

    def __init__(self, channel: int, plugged: bool = False) -> None:
        super().__init__(f"disk{channel}-device", plugged)
        self.node = f"disk{channel}"


class Blocks:
    """The disks of one machine. Implements `devices.Devices`."""

    def __init__(self, name: str, qmp: Qmp) -> None:
        self._name = name
        self._qmp = qmp
        self._disks: dict[int, _Disk] = {}

    @property
    def channels(self) -> frozenset[int]:
        """The uses of disks of which QEMU may hold a descriptor."""
        return frozenset(self._disks)

    async def find(self) -> None:
        """Ask a QEMU that an earlier process drove what it holds. Raises `MachineError`."""
        nodes = await self._nodes()
        where = {"path": "/machine/peripheral"}
        devices = numbers(self._name, await self._qmp.execute("qom-list", where), "name", _DEVICE)
        found = nodes | devices
        if len(found) > MAX_DISKS:
            raise MachineError(f"{self._name}: QEMU holds {len(found)} disks, over MAX_DISKS")
        self._disks = {channel: _Disk(channel, channel in devices) for channel in found}

    async def _nodes(self) -> set[int]:
        there = await self._qmp.execute("query-named-block-nodes", {"flat": True})
        return numbers(self._name, there, "node-name", _NODE)

    async def add(self, channel: int, port: str, *ends: int) -> None:
        """Give QEMU the socket to a disk's helper, and the guest a disk of that serial number.

        Whether it can be written is the helper's to say. Raises `MachineError`, `StateError`,
        `LimitReached`; then the guest has no such disk.
        """
        if len(port.encode()) > MAX_SERIAL:
            raise MachineError(
                f"the disk's name {port} is longer than {MAX_SERIAL} bytes",
                fix="give it a shorter one: the guest sees it as a serial number",
            )
        if channel in self._disks:
            raise StateError(f"{self._name}: channel {channel} is attached already")
        if len(self._disks) >= MAX_DISKS:
            raise LimitReached(f"{self._name} has its {MAX_DISKS} disks (MAX_DISKS)")
        (end,) = ends
        made = self._disks[channel] = _Disk(channel)
        try:
            await self._make(made, port, end)
        except BaseException:
            with contextlib.suppress(MachineError):
                await self.remove(channel)
            raise

    async def _make(self, made: _Disk, port: str, end: int) -> None:
        node = {
            "driver": "nbd",
            "node-name": made.node,
            "server": {"type": "fd", "str": GIVEN},
            "export": EXPORT,
            "read-only": False,
            "auto-read-only": True,
            "discard": "unmap",
        }
        device = {"driver": "virtio-blk-pci", "drive": made.node, "serial": port}
        # A failed access is an error of the guest's; QEMU must not stop the guest for it.
        errors = {"werror": "report", "rerror": "report"}
        await made.plug_on(self._qmp, end, ("blockdev-add", node), device | errors)

    async def remove(self, channel: int) -> None:
        """Undo `add`, from any point that it has reached; an unknown channel is no error.

        Raises `MachineError`, also if QEMU did not do so in `DETACH_S`; may then be called again.
        """
        disk = self._disks.get(channel)
        if disk is None:
            return
        try:
            async with asyncio.timeout(DETACH_S):
                await self._unmake(channel, disk)
        except TimeoutError:
            raise MachineError(
                f"{self._name}: the disk of channel {channel} was not given up",
                fix="its guest may not listen, or be frozen; a disk that was cut only fails",
            ) from None
        self._disks.pop(channel, None)

    async def _unmake(self, channel: int, disk: _Disk) -> None:
        while disk.plugged and not disk.deleted.is_set():
            await disk.unplug(self._qmp)
            # A guest that is still starting forgets that it was asked.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ASK_S):
                    await disk.deleted.wait()
        while not await self._closed(channel, disk):  # noqa: ASYNC110  -- QEMU says nothing
            await asyncio.sleep(BUSY_S)
        await self._qmp.take_back()

    async def _closed(self, channel: int, disk: _Disk) -> bool:
        """Have the block node removed; it is in use for a moment after its device has gone."""
        try:
            await self._qmp.execute("blockdev-del", {"node-name": disk.node})
        except QemuRefused:
            return channel not in await self._nodes()
        return True

    def deleted(self, untrusted_device: object) -> None:
        """QEMU says that a device is gone."""
        for disk in self._disks.values():
            if untrusted_device == disk.device:
                disk.deleted.set()

    def forget(self, channel: int) -> None:
        """QEMU is gone and the disk with it."""
        self._disks.pop(channel, None)
