"""What each kind of channel is inside a QEMU, stated as a protocol: one maker for each kind.

The rules: what of a channel is in QEMU can be taken away again, from any point that its making
reached, also by a process that did not make it; what failed to come leaves nothing.
"""

from __future__ import annotations

from typing import Protocol


class Devices(Protocol):
    """The devices of one kind of channel in one machine."""

    @property
    def channels(self) -> frozenset[int]:
        """The channels of which QEMU may hold a descriptor."""

    async def find(self) -> None:
        """Ask a QEMU that an earlier process drove what it holds. Raises `MachineError`."""

    async def add(self, channel: int, port: str, *ends: int) -> None:
        """Give QEMU the descriptors of a channel, and the guest a device of that name.

        Raises `MachineError`, `StateError`, `LimitReached`; then the guest has no such device.
        """

    async def remove(self, channel: int) -> None:
        """Undo `add`, from any point that it has reached; an unknown channel is no error.

        Raises `MachineError`, also if QEMU does not do so in time; may then be called again.
        """

    def deleted(self, untrusted_device: object) -> None:
        """QEMU says that a device is gone."""

    def forget(self, channel: int) -> None:
        """QEMU is gone and the channel with it."""
