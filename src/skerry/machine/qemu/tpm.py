"""The TPM of one QEMU: a socket that it is started with, and takes for a TPM's device.

The rules it keeps: QEMU has one socket, and speaks the TPM's own commands over it and nothing else:
no control channel by which it could start the TPM again, take its state or be given a descriptor.
A TPM is there from the start or not at all, and QEMU can't give it up before its end.

QEMU's driver for a TPM that the host has (`passthrough`) serves, because to it a socket is as good
as a device. Where it would cancel a command it writes to the null device.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from skerry.errors import LimitReached, MachineError
from skerry.jail.bpf import Call
from skerry.machine.qemu.qmp import Qmp

TPM_CALLS = (Call(270),)
"""What QEMU calls for a TPM beyond its profile: pselect6, while it waits for an answer."""

_SET, _NULL_SET = 1 << 30, (1 << 30) + 1
_NAME = re.compile(r"tpm([0-9]{1,18})")


class Tpms:
    """The TPM of one machine, which has one at most: its registers have a fixed place."""

    def __init__(self, name: str, qmp: Qmp) -> None:
        self._name = name
        self._qmp = qmp
        self._waiting: dict[int, list[int]] = {}
        self._there: set[int] = set()
        self._launched = False

    @property
    def channels(self) -> frozenset[int]:
        """The channels of which QEMU has, or will be started with, a descriptor."""
        return frozenset(self._waiting.keys() | self._there)

    async def find(self) -> None:
        """Ask a QEMU that an earlier process started what it holds. Raises `MachineError`."""
        self._launched = True
        untrusted = await self._qmp.execute("query-tpm")
        if not isinstance(untrusted, list):
            raise MachineError(f"{self._name}: QEMU gave no list of its TPMs")
        names = [str(item.get("id")) for item in untrusted if isinstance(item, dict)]
        self._there = {int(match[1]) for name in names if (match := _NAME.fullmatch(name))}

    async def add(self, channel: int, port: str, *ends: int) -> None:
        """Keep the descriptor for the start of QEMU. Raises `MachineError`, `LimitReached`."""
        if self._launched:
            raise MachineError(
                f"{self._name} runs: a TPM is there from the start of a domain or not at all",
                fix="name it in the domain's uses, and start the domain anew",
            )
        if self.channels:
            raise LimitReached(f"{self._name} has a TPM; a machine has one")
        (end,) = ends
        try:
            self._waiting[channel] = [os.dup(end), os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)]
        except OSError as error:
            raise MachineError(f"{self._name}: no TPM: {error.strerror}") from error

    def at_launch(self, first: int) -> tuple[list[str], Mapping[int, int]]:
        """Return QEMU's arguments for what waits, and its descriptors (its number to ours).

        The numbers begin at `first`.
        """
        argv: list[str] = []
        fds: dict[int, int] = {}
        for channel, ours in self._waiting.items():
            numbers = range(first + len(fds), first + len(fds) + len(ours))
            fds |= zip(numbers, ours, strict=True)
            for number, fdset in zip(numbers, (_SET, _NULL_SET), strict=True):
                argv += ["-add-fd", f"fd={number},set={fdset}"]
            files = f"path=/dev/fdset/{_SET},cancel-path=/dev/fdset/{_NULL_SET}"
            argv += ["-tpmdev", f"passthrough,id=tpm{channel},{files}"]
            argv += ["-device", f"tpm-tis,tpmdev=tpm{channel}"]
        return argv, fds

    def launched(self) -> None:
        """QEMU has been started with what waited, and nothing more can come."""
        self._launched = True
        self._there |= self._waiting.keys()
        self.close()

    def close(self) -> None:
        """Close what waits. Idempotent."""
        while self._waiting:
            for descriptor in self._waiting.popitem()[1]:
                os.close(descriptor)

    async def remove(self, channel: int) -> None:
        """Forget it: QEMU keeps a socket that was cut, and answers its guest with an error."""
        self.forget(channel)

    def deleted(self, untrusted_device: object) -> None:
        """Do nothing: a TPM can't be unplugged."""

    def forget(self, channel: int) -> None:
        """Close what waits for it, and know it no more."""
        for descriptor in self._waiting.pop(channel, []):
            os.close(descriptor)
        self._there.discard(channel)
