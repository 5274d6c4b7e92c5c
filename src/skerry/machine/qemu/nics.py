"""The network cards of one QEMU: a virtio card for each link, uplink and use of a switch.

The rules it keeps: what of a card is there can be taken away again, from any point that its making
reached; to take the descriptor out of QEMU needs nothing of the guest, which only has to let go of
a card that is dead already.

The frames come and go by `-netdev socket`. It is `-netdev stream` on the wire (the length in four
bytes, then the frame), but only it takes a descriptor at run time: QEMU 7.2 looks the name of a
`stream`'s up in a thread that has no monitor, and fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re

from skerry.errors import LimitReached, MachineError, StateError
from skerry.machine.qemu.plug import Plug, numbers
from skerry.machine.qemu.qmp import QemuRefused, Qmp
from skerry.machine.qemu.sync import GIVEN
from skerry.monitor.protocols import Kind

CARDS: tuple[Kind, ...] = ("link", "uplink", "switch")
"""The kinds of channels that are a network card to the guest."""

MAX_NICS = 16
"""Network cards of one domain: links, uplinks and switches together. One more is refused, and so is
any for which the board's 29 free slots, which disks and memories share, do not suffice."""

RELEASE_S = 2.0
"""How long a guest may take to let go of a card that was unplugged, in seconds. A paused one, or
one that knows no hot-plugging, keeps a card without carrier and descriptor until it does."""

TAKE_S = 5.0
"""How long QEMU may take to give a descriptor up; a frozen one holds one that was cut."""

_NETDEV = re.compile(r"^(?: \\ )?channel([0-9]{1,18})-net: ", re.MULTILINE)
_DEVICE = re.compile(r"channel([0-9]{1,18})-nic")


def mac(domain: str, port: str) -> str:
    """Return the address of a domain's card: `02:` and 5 bytes of SHA-256 of `DOMAIN/PORT`.

    Locally administered, the same at every start, and for a guest the way to find its card.
    """
    digest = hashlib.sha256(f"{domain}/{port}".encode()).digest()
    return bytes((2, *digest[:5])).hex(":")


class _Nic(Plug):
    """What of a channel is, or may be, in QEMU: a card on what moves its frames."""

    def __init__(self, channel: int, plugged: bool = False) -> None:
        super().__init__(f"channel{channel}-nic", plugged)
        self.netdev = f"channel{channel}-net"


class Nics:
    """The network cards of one machine, which bears the name of its domain."""

    def __init__(self, name: str, qmp: Qmp) -> None:
        self._name = name
        self._qmp = qmp
        self._nics: dict[int, _Nic] = {}
        self._leaving: dict[str, _Nic] = {}  # dead cards that the guest has not let go of

    @property
    def channels(self) -> frozenset[int]:
        """The channels of which QEMU may hold a descriptor."""
        return frozenset(self._nics)

    async def find(self) -> None:
        """Ask a QEMU that an earlier process drove what it holds. Raises `MachineError`."""
        asked = {"command-line": "info network"}
        untrusted_text = await self._qmp.execute("human-monitor-command", asked)
        where = {"path": "/machine/peripheral"}
        untrusted_list = await self._qmp.execute("qom-list", where)
        if not isinstance(untrusted_text, str) or not isinstance(untrusted_list, list):
            raise MachineError(f"{self._name}: QEMU does not say what cards it has")
        devices = numbers(self._name, untrusted_list, "name", _DEVICE)
        found = devices | {int(number) for number in _NETDEV.findall(untrusted_text)}
        if len(found) > 2 * MAX_NICS:
            raise MachineError(f"{self._name}: QEMU holds {len(found)} cards, over MAX_NICS")
        self._nics = {channel: _Nic(channel, channel in devices) for channel in found}
        self._leaving = {}

    async def add(self, channel: int, port: str, *ends: int) -> None:
        """Give QEMU a socket that carries frames, and the guest a card with the address `mac`.

        Raises `MachineError`, `StateError`, `LimitReached`; then QEMU has no such descriptor.
        """
        if channel in self._nics:
            raise StateError(f"{self._name}: channel {channel} is attached already")
        if len(self._nics) + len(self._leaving) >= MAX_NICS:
            raise LimitReached(
                f"{self._name} has its {MAX_NICS} network cards (MAX_NICS)",
                fix="a paused guest keeps the cards of cut channels until it is resumed",
            )
        (end,) = ends
        made = self._nics[channel] = _Nic(channel)
        try:
            await self._make(made, port, end)
        except BaseException:
            with contextlib.suppress(MachineError):
                await self.remove(channel)
            raise

    async def _make(self, made: _Nic, port: str, end: int) -> None:
        backend = "netdev_add", {"type": "socket", "id": made.netdev, "fd": GIVEN}
        card = {"driver": "virtio-net-pci", "romfile": "", "mac": mac(self._name, port)}
        try:
            await made.plug_on(self._qmp, end, backend, card | {"netdev": made.netdev})
        except QemuRefused as refusal:
            if "no slot" in refusal.message:
                raise LimitReached(f"{self._name} has no slot left for a network card") from refusal
            if "bus" in refusal.message:
                raise MachineError(
                    f"{self._name}: its board has no slots for a network card",
                    fix='start it with board = "pc"',
                ) from refusal
            raise

    async def remove(self, channel: int) -> None:
        """Undo `add`, from any point that it has reached; an unknown channel is no error.

        The guest sees the carrier go, then the card, which it must let go of; if it does not in
        `RELEASE_S` that is no error. Raises `MachineError` if QEMU did not close its descriptor in
        `TAKE_S`; may then be called again.
        """
        nic = self._nics.get(channel)
        if nic is None:
            return
        try:
            async with asyncio.timeout(TAKE_S):
                await self._unplug(nic)
        except TimeoutError:
            raise MachineError(
                f"{self._name}: QEMU did not give up the network card of channel {channel}",
                fix="it may be frozen; nothing crosses a channel that was cut",
            ) from None
        self._nics.pop(channel, None)
        if nic.plugged and not nic.deleted.is_set():
            self._leaving[nic.device] = nic
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RELEASE_S):
                    await nic.deleted.wait()

    async def _unplug(self, nic: _Nic) -> None:
        """Have the descriptor closed, with which the carrier goes, and ask for the card."""
        try:
            await self._qmp.execute("netdev_del", {"id": nic.netdev})
        except QemuRefused as refusal:
            if not refusal.absent:
                raise
        await self._qmp.take_back()
        if nic.plugged:
            await nic.unplug(self._qmp)

    def deleted(self, untrusted_device: object) -> None:
        """QEMU says that a device is gone."""
        for nic in (*self._nics.values(), *self._leaving.values()):
            if untrusted_device == nic.device:
                nic.deleted.set()
                self._leaving.pop(nic.device, None)

    def forget(self, channel: int) -> None:
        """QEMU is gone and the channel with it."""
        self._nics.pop(channel, None)
