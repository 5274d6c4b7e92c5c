"""The memories that a QEMU shares with another: a PCI device for each, and a doorbell beside it.

The rules it keeps (laws 3 and 5): the reader of a one-way memory gets it only once it is closed to
everything but what its writer has mapped; taking a memory away ends, by a deadline and whatever
QEMU says, with a look from outside, and a QEMU that still holds it is ended. A guest knows which
memory is which by its slot, which has the number of its doorbell's port.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Collection

from skerry.errors import LimitReached, MachineError, StateError
from skerry.machine.qemu.launch import Process
from skerry.machine.qemu.plug import Plug, numbers
from skerry.machine.qemu.ports import BUSY_S, Ports
from skerry.machine.qemu.qmp import QemuRefused, Qmp
from skerry.machine.suspect import DEATH_S, Suspect, UnseenError
from skerry.threads import in_thread
from skerry.wire import memory
from skerry.wire.memory import Identity

MAX_MEMORIES = 8
"""Memories of one domain; one more is refused."""

SLOTS = range(30, 30 - MAX_MEMORIES, -1)
"""Where a guest finds them on its PCI bus; other devices take the lowest slots that are free."""

UNPLUG_S = 10.0
"""How long a guest and its QEMU may take to give a memory up; then the domain is ended."""

CLOSED_S = 30.0
"""How long a reader waits for the writer's machine to have mapped a memory."""

LOOK_S = 0.02
"""The pause between two looks at what a QEMU still holds: it gives memory back in a thread."""

BELL = ".bell"
"""Behind a memory's name: the name of its doorbell's port."""

_BOARD = "/machine/i440fx/pci.0"
_BACKEND = re.compile(r"channel([0-9]{1,18})-memory")
_DEVICE = re.compile(r"channel([0-9]{1,18})-ivshmem")


class _Memory(Plug):
    """What of a memory is, or may be, in QEMU. `identity` is None where nobody could tell it."""

    def __init__(self, channel: int, slot: int, identity: Identity | None) -> None:
        super().__init__(f"channel{channel}-ivshmem")
        self.channel = channel
        self.backend = f"channel{channel}-memory"
        self.set = 2 * channel
        self.slot = slot
        self.identity = identity


class SharedMemories:
    """The memories of one machine.

    `process` returns that of its jail, `condemn` ends the machine at once and for this reason.
    """

    def __init__(
        self,
        name: str,
        qmp: Qmp,
        ports: Ports,
        process: Callable[[], Process | None],
        condemn: Callable[[str], object],
    ) -> None:
        self._name = name
        self._qmp = qmp
        self._ports = ports
        self._process = process
        self._condemn = condemn
        self._memories: dict[int, _Memory] = {}
        self._taking = asyncio.Lock()

    @property
    def channels(self) -> frozenset[int]:
        """The channels of which QEMU may hold a memory."""
        return frozenset(self._memories)

    async def find(self) -> None:
        """Ask a QEMU that an earlier process drove what it holds. Raises `MachineError`.

        What it does not say is found by `verify`, which must follow, `expect` before it.
        """
        backends = await self._names("/objects", _BACKEND)
        devices = await self._names("/machine/peripheral", _DEVICE)
        found = {channel: _Memory(channel, 0, None) for channel in backends | devices}
        if len(found) > MAX_MEMORIES:
            raise MachineError(f"{self._name}: QEMU holds {len(found)} memories, over the limit")
        for channel in devices:
            found[channel].plugged = True
            where = {"path": f"/machine/peripheral/{found[channel].device}", "property": "addr"}
            with contextlib.suppress(QemuRefused):  # it was going, and is gone
                untrusted_slot = await self._qmp.execute("qom-get", where)
                found[channel].slot = untrusted_slot >> 3 if isinstance(untrusted_slot, int) else 0
        self._memories = found

    async def _names(self, path: str, shape: re.Pattern[str]) -> set[int]:
        untrusted = await self._qmp.execute("qom-list", {"path": path})
        return numbers(self._name, untrusted, "name", shape)

    def expect(self, channel: int, identity: Identity) -> None:
        """Learn which file the memory of a channel is that goes on after `find`."""
        if channel in self._memories:
            self._memories[channel].identity = identity

    async def add(self, channel: int, port: str, *ends: int) -> None:
        """Give QEMU a memory and its doorbell: the guest has a device and a port of that name.

        The end of a reader is given once the memory is closed to it, the writer's is mapped first.
        Raises `MachineError`, `StateError`, `LimitReached`; then the guest has neither.
        """
        end, bell = ends
        if channel in self._memories:
            raise StateError(f"{self._name}: channel {channel} is attached already")
        reads = memory.is_reader(end)
        try:
            await self._need_slots()
            if reads and not await memory.closed(end, CLOSED_S):
                raise MachineError(f"{self._name}: the memory's writer has not mapped it")
            made = _Memory(channel, self._free_slot(), memory.identity(end))
            self._memories[channel] = made
            await self._make(made, end, reads)
            if not reads and memory.is_one_way(end):
                await _close_to_reader(end)
            await self._ports.add(channel, f"{port}{BELL}", bell, number=made.slot)
        except BaseException as error:
            if not reads:
                memory.give_up(end)
            with contextlib.suppress(MachineError):
                await self.remove(channel)
            if isinstance(error, OSError):
                raise MachineError(f"{self._name}: the memory can't be sealed: {error}") from error
            raise

    async def _need_slots(self) -> None:
        try:
            await self._qmp.execute("qom-list", {"path": _BOARD})
        except QemuRefused:
            raise MachineError(
                f"{self._name} has no slots for a memory",
                fix='give the domain board = "pc", and start it anew',
            ) from None

    def _free_slot(self) -> int:
        used = {made.slot for made in self._memories.values()}
        free = [slot for slot in SLOTS if slot not in used]
        if len(self._memories) >= MAX_MEMORIES or not free:
            raise LimitReached(f"{self._name} has its {MAX_MEMORIES} memories (MAX_MEMORIES)")
        return free[0]

    async def _make(self, made: _Memory, end: int, reads: bool) -> None:
        number = await self._qmp.give_number(end, made.set)
        # The jail shows QEMU its own descriptors by name, and nothing else of its process.
        backend = {
            "qom-type": "memory-backend-file",
            "id": made.backend,
            "mem-path": f"/proc/self/fd/{number}",
            "size": memory.size(end),
            "share": True,
            "readonly": reads,
            "merge": False,
            "dump": False,
        }
        await self._qmp.execute("object-add", backend)
        await self._qmp.take_back_set(made.set)
        device = {"driver": "ivshmem-plain", "bus": "pci.0", "addr": f"{made.slot:#x}"}
        await made.plug(self._qmp, {**device, "memdev": made.backend})

    async def remove(self, channel: int) -> None:
        """Take a memory away; on return QEMU does not hold it any more, or is no more.

        Its doorbell is the ports' to remove. Of memories that nobody could tell, all go at once.
        """
        async with self._taking:
            made = self._memories.get(channel)
            if made is None:
                return
            known = made.identity is not None
            gone = [made] if known else [m for m in self._memories.values() if m.identity is None]
            try:
                async with asyncio.timeout(UNPLUG_S):
                    for each in gone:
                        await self._unmake(each)
                    await self._let_go(gone)
            except Exception as error:  # whatever it is: nobody knows that it does not hold it
                why = str(error) or f"not in {UNPLUG_S:g} s"
                ending = self._end(f"it did not give up the memory of channel {channel}: {why}")
                await asyncio.shield(asyncio.ensure_future(ending))
            for each in gone:
                self._memories.pop(each.channel, None)

    async def verify(self) -> None:
        """End a machine that holds a memory beside those that it is expected to hold."""
        async with self._taking:
            try:
                async with asyncio.timeout(UNPLUG_S):
                    await self._let_go(())
            except Exception as error:
                why = str(error) or "of a channel that is gone"
                ending = self._end(f"it holds a memory that is none of its channels': {why}")
                await asyncio.shield(asyncio.ensure_future(ending))

    async def _unmake(self, made: _Memory) -> None:
        if made.plugged:
            await made.unplug(self._qmp)
            await made.deleted.wait()
        while not await self._deleted(made):  # noqa: ASYNC110  -- QEMU says nothing
            await asyncio.sleep(BUSY_S)
        await self._qmp.take_back_set(made.set)

    async def _deleted(self, made: _Memory) -> bool:
        """Have the memory's object removed; it is in use for a moment after its device has gone."""
        try:
            await self._qmp.execute("object-del", {"id": made.backend})
        except QemuRefused:
            return made.channel not in await self._names("/objects", _BACKEND)
        return True

    async def _let_go(self, gone: Collection[_Memory]) -> None:
        """Wait until QEMU, looked at from outside, holds nothing but what stays."""
        while await self._held() - self._staying(gone):  # noqa: ASYNC110  -- the kernel says nothing
            await asyncio.sleep(LOOK_S)

    def _staying(self, gone: Collection[_Memory]) -> set[Identity | None]:
        """Return what it may hold: also what was given to it since we began to wait."""
        return {made.identity for made in self._memories.values() if made not in gone}

    async def _held(self) -> frozenset[Identity]:
        process = self._process()
        if process is None:
            return frozenset()

        def look() -> frozenset[Identity]:
            with Suspect(process.pid, process.pidfd) as suspect:
                try:
                    suspect.freeze()
                    return suspect.held()
                finally:
                    suspect.thaw()

        try:
            return await asyncio.to_thread(look)
        except UnseenError as error:
            raise MachineError(f"{self._name}: {error}") from None

    async def _end(self, why: str) -> None:
        """End the machine, and wait until its memory is gone."""
        process = self._process()
        if process is None:
            return

        def prepare(suspect: Suspect) -> None:
            with contextlib.suppress(UnseenError, OSError):
                suspect.freeze()

        with Suspect(process.pid, process.pidfd) as suspect:
            await asyncio.to_thread(prepare, suspect)
            self._condemn(why)
            suspect.kill()
            await asyncio.to_thread(suspect.wait_dead)
        await asyncio.wait({process.exited}, timeout=DEATH_S)

    def deleted(self, untrusted_device: object) -> None:
        """QEMU says that a device is gone."""
        for made in self._memories.values():
            if untrusted_device == made.device:
                made.deleted.set()

    def forget(self, channel: int) -> None:
        """QEMU is gone and the memory with it."""
        self._memories.pop(channel, None)


async def _close_to_reader(end: int) -> None:
    lent = os.dup(end)  # a cut closes ours meanwhile
    try:
        await in_thread(memory.close_to_reader, lent)
    finally:
        os.close(lent)
