"""The ports of one QEMU's channels: a character device for each, and a port of the guest on it.

The rules it keeps: what of a port is there can be taken away again, from any point that its making
reached, also one that an earlier process made; a port that failed to come leaves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re

from skerry.errors import LimitReached, MachineError, StateError
from skerry.machine.ends import direction
from skerry.machine.qemu.command import MAX_PORTS, OWN_PORTS
from skerry.machine.qemu.plug import Plug, numbers
from skerry.machine.qemu.qmp import QemuRefused, Qmp
from skerry.machine.qemu.sync import GIVEN

DETACH_S = 5.0
"""How long QEMU may take to give a port up; a frozen one holds a descriptor that was cut."""

BUSY_S = 0.01
"""The pause before a busy character device is asked for again: QEMU frees it in a thread."""

_CHARDEV = re.compile(r"channel([0-9]{1,18})")
_DEVICE = re.compile(r"channel([0-9]{1,18})-port")


class _Port(Plug):
    """What of a channel is, or may be, in QEMU: a device on its character device, and its end."""

    def __init__(self, channel: int, plugged: bool = False) -> None:
        super().__init__(f"channel{channel}-port", plugged)
        self.chardev = f"channel{channel}"
        self.sets = (2 * channel, 2 * channel + 1)


class Ports:
    """The ports of one machine's channels."""

    def __init__(self, name: str, qmp: Qmp) -> None:
        self._name = name
        self._qmp = qmp
        self._ports: dict[int, _Port] = {}

    @property
    def channels(self) -> frozenset[int]:
        """The channels of which QEMU may hold a descriptor."""
        return frozenset(self._ports)

    async def find(self) -> None:
        """Ask a QEMU that an earlier process drove what it holds. Raises `MachineError`."""
        chardevs = numbers(self._name, await self._qmp.execute("query-chardev"), "label", _CHARDEV)
        where = {"path": "/machine/peripheral"}
        devices = numbers(self._name, await self._qmp.execute("qom-list", where), "name", _DEVICE)
        found = {channel: _Port(channel, channel in devices) for channel in chardevs | devices}
        for number in await self._sets():
            await self._qmp.take_back_set(number)
        if len(found) > MAX_PORTS:
            raise MachineError(f"{self._name}: QEMU holds {len(found)} channels, over MAX_PORTS")
        self._ports = found

    async def _sets(self) -> list[int]:
        """Return the sets of descriptors that QEMU still keeps to be opened as files."""
        untrusted = await self._qmp.execute("query-fdsets")
        sets = untrusted if isinstance(untrusted, list) else []
        numbers = [item.get("fdset-id") for item in sets if isinstance(item, dict)]
        return [n for n in numbers if isinstance(n, int) and n >= 0][: 2 * MAX_PORTS]

    async def add(self, channel: int, port: str, *ends: int, number: int = 0) -> None:
        """Give QEMU the one descriptor of a stream, and the guest a port of that name.

        The port gets this `number`, or the next that is free. Raises `MachineError`, `StateError`,
        `LimitReached`; then the guest has no such port.
        """
        if port in OWN_PORTS:
            raise MachineError(f"the port {port} is the host's own", fix="choose another name")
        if channel in self._ports:
            raise StateError(f"{self._name}: channel {channel} is attached already")
        if len(self._ports) >= MAX_PORTS:
            raise LimitReached(f"{self._name} has its {MAX_PORTS} channels (MAX_PORTS)")
        (end,) = ends
        made = self._ports[channel] = _Port(channel)
        try:
            await self._make(made, port, end, number)
        except BaseException:
            with contextlib.suppress(MachineError):
                await self.remove(channel)
            raise

    async def _make(self, made: _Port, port: str, end: int, number: int) -> None:
        device: dict[str, object] = {"driver": "virtserialport", "bus": "ports.0", "name": port}
        device |= {"chardev": made.chardev} | ({"nr": number} if number else {})
        if direction(end) != "both":
            await self._open_pipe(made, end)
            await made.plug(self._qmp, device)
            return
        address = {"type": "fd", "data": {"str": GIVEN}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        chardev = "chardev-add", {"id": made.chardev, "backend": backend}
        await made.plug_on(self._qmp, end, chardev, device)

    async def _open_pipe(self, made: _Port, end: int) -> None:
        """Make the character device of a one-way stream: a file to write, or one to read.

        A reader needs one to write as well, which is the null device; without `append` QEMU
        would truncate what it writes to, and fails.
        """
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            given = {"in": end, "out": null} if direction(end) == "read" else {"out": end}
            files: dict[str, object] = {
                key: await self._qmp.give_set(descriptor, number)
                for (key, descriptor), number in zip(given.items(), made.sets, strict=False)
            }
            backend = {"type": "file", "data": {**files, "append": True}}
            await self._qmp.execute("chardev-add", {"id": made.chardev, "backend": backend})
        finally:
            os.close(null)
        for number in made.sets:
            await self._qmp.take_back_set(number)

    async def remove(self, channel: int) -> None:
        """Undo `add`, from any point that it has reached; an unknown channel is no error.

        Raises `MachineError`, also if QEMU did not do so in `DETACH_S`; may then be called again.
        """
        port = self._ports.get(channel)
        if port is None:
            return
        try:
            async with asyncio.timeout(DETACH_S):
                await self._unmake(channel, port)
        except TimeoutError:
            raise MachineError(
                f"{self._name}: QEMU did not give up the port of channel {channel}",
                fix="it may be frozen; nothing crosses a channel that was cut",
            ) from None
        self._ports.pop(channel, None)

    async def _unmake(self, channel: int, port: _Port) -> None:
        if port.plugged:
            await port.unplug(self._qmp)
            await port.deleted.wait()
        while not await self._closed(channel, port):  # noqa: ASYNC110  -- QEMU says nothing
            await asyncio.sleep(BUSY_S)
        await self._qmp.take_back()
        for number in port.sets:
            await self._qmp.take_back_set(number)

    async def _closed(self, channel: int, port: _Port) -> bool:
        """Have the character device removed; it is busy for a moment after its port has gone."""
        try:
            await self._qmp.execute("chardev-remove", {"id": port.chardev})
        except QemuRefused:
            there = await self._qmp.execute("query-chardev")
            return channel not in numbers(self._name, there, "label", _CHARDEV)
        return True

    def deleted(self, untrusted_device: object) -> None:
        """QEMU says that a device is gone."""
        for port in self._ports.values():
            if untrusted_device == port.device:
                port.deleted.set()

    def forget(self, channel: int) -> None:
        """QEMU is gone and the channel with it."""
        self._ports.pop(channel, None)
