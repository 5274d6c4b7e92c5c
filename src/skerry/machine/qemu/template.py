"""A template: the memory of a guest that has booted, and the state of its devices.

The rules it keeps: a template's memory is sealed before anybody else maps it, so that no clone, and
nobody, can change what another one sees; each clone has an open file of its own, as the place in
one that two share would be a channel; what a QEMU writes of itself is bounded while it is written.

A private mapping does not keep a memory from growing: where it has a hole, the kernel puts a page
of zeros into the file at the first touch, and copies that one at the first write (`mm/memory.c`,
`do_cow_fault`). So what a clone touches first is there twice, and once of it outlives the clone.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import weakref
from collections.abc import Mapping

from skerry.errors import MachineError
from skerry.jail.bpf import Arg, Call
from skerry.jail.filter import ALWAYS, Profile
from skerry.machine.qemu.qmp import Qmp
from skerry.machine.qemu.sync import GIVEN
from skerry.wire.memory import hide_access, reader

STATE_MAX = 16 << 20
"""Most bytes of a machine's state without its memory; QEMU can't write more, and fails then."""

SAVE_S = 20.0
"""How long a QEMU may take to write its state, or to read it."""

SEAL_S = 5.0
"""How long a QEMU that has ended may take to give its memory back."""

LOOK_S = 0.002
"""The pause before a QEMU is asked again, or a seal is tried again."""

ASLEEP = "skerry.template"
"""The word of a kernel's command line by which a guest waits to be told who it is."""

NAME = "skerry-template"
"""The name of a template's memory: what shows it in `/proc/PID/maps` and `fd`, whoever holds it."""

_HUGE = 14
_MADVISE = Call(ALWAYS["madvise"], tuple((Arg(2, how),) for how in range(26) if how != _HUGE))
_FALLOCATE = ALWAYS["fallocate"]

_RAM = "ram"
_LENGTH = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
_SEALS = _LENGTH | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_CAPABILITY = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


def clone_profile(profile: Profile) -> Profile:
    """Return what a clone's QEMU may call, where others may call what is in `profile`.

    It gets no huge pages for what it translates, which are little used each: that saves 3 MB of 30
    (TCG). And it has no way to fill a template's holes at one stroke; QEMU needs none.
    """
    other = (_MADVISE.number, _FALLOCATE)
    return (*(call for call in profile if call.number not in other), _MADVISE)


class TemplateUnusable(MachineError):
    """There is no template, or QEMU does not take it: the domain can start without one."""


class Template:
    """A template in memory, which it is as long as somebody has it: sealed `ram`, and `state`."""

    def __init__(self, ram: int, state: bytes) -> None:
        """Take a descriptor over. Raises `MachineError` if it can be written."""
        self.ram = ram
        self.state = state
        self._close = weakref.finalize(self, os.close, ram)
        self._made = os.fstat(ram).st_blocks
        if fcntl.fcntl(ram, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise MachineError("a template's memory is not sealed")

    def own_open(self) -> int:
        """Return a descriptor of the memory for one clone alone. Raises `OSError`."""
        return reader(self.ram)

    def grown(self) -> int:
        """Return the bytes that it takes more than when it was made: holes that clones touched."""
        return (os.fstat(self.ram).st_blocks - self._made) * 512


def make_ram(size: int) -> int:
    """Return a descriptor of fresh memory for a guest, `size` bytes. Raises `OSError`."""
    ram = os.memfd_create(NAME, os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        os.ftruncate(ram, size)
        os.fchmod(ram, 0o666)  # QEMU opens it to write, also where it never does
        hide_access(ram)  # else each clone sees when another is started
        fcntl.fcntl(ram, fcntl.F_ADD_SEALS, _LENGTH)
    except BaseException:
        os.close(ram)
        raise
    return ram


async def seal(ram: int) -> None:
    """Let nobody write to a memory any more, once its QEMU has given it back.

    Raises `MachineError` if it does not in `SEAL_S`.
    """
    try:
        async with asyncio.timeout(SEAL_S):
            while not seal_now(ram):  # noqa: ASYNC110  -- the kernel says nothing
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise MachineError("a template's memory is still mapped to be written") from None


def seal_now(ram: int) -> bool:
    """Seal a memory if nobody has it mapped to be written; say whether it is. Raises `OSError`."""
    try:
        fcntl.fcntl(ram, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EAGAIN):  # somebody has it mapped to write
            return False
        raise
    return True


def ram_arguments(size: int, descriptor: int, *, share: bool) -> list[str]:
    """Return how a QEMU has a descriptor (its number) for its guest's memory.

    Without `share` what its guest writes is its own.
    """
    words = f"size={size},mem-path=/proc/self/fd/{descriptor},share={'on' if share else 'off'}"
    memory = f"memory-backend-file,id={_RAM},{words},merge=off,dump=off"
    return ["-object", memory, "-machine", f"memory-backend={_RAM}"]


async def save(qmp: Qmp) -> bytes:
    """Stop the processors and return the state of all but the memory. Raises `MachineError`."""
    state = os.memfd_create("state", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        os.ftruncate(state, STATE_MAX)
        fcntl.fcntl(state, fcntl.F_ADD_SEALS, _LENGTH)
        await qmp.execute("migrate-set-capabilities", _CAPABILITY)
        await qmp.execute("stop")
        await qmp.give(state, ("migrate", {"uri": f"fd:{GIVEN}"}))
        await _until(qmp, "query-migrate", "completed", "failed")
        # Its descriptor and ours are one open file, so this is where it says it has come to.
        untrusted_end = os.lseek(state, 0, os.SEEK_CUR)
        return os.pread(state, min(untrusted_end, STATE_MAX), 0)
    finally:
        os.close(state)


async def restore(qmp: Qmp, state: bytes) -> None:
    """Have a QEMU that waits for it (`-incoming defer`) read a state. Raises `MachineError`."""
    file = os.memfd_create("state", os.MFD_CLOEXEC)
    try:
        os.write(file, state)
        os.lseek(file, 0, os.SEEK_SET)
        await qmp.execute("migrate-set-capabilities", _CAPABILITY)
        await qmp.give(file, ("migrate-incoming", {"uri": f"fd:{GIVEN}"}))
        await _until(qmp, "query-status", "paused", "internal-error")
    finally:
        os.close(file)


async def _until(qmp: Qmp, command: str, wanted: str, bad: str) -> None:
    """Ask until the answer's `status` is the wanted one. Raises `MachineError`."""
    try:
        async with asyncio.timeout(SAVE_S):
            while True:
                untrusted = await qmp.execute(command)
                status = untrusted.get("status") if isinstance(untrusted, Mapping) else None
                if status == wanted:
                    return
                if status == bad:
                    raise MachineError(f"QEMU says {bad} of {command}")
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise MachineError(f"QEMU was not {wanted} in {SAVE_S:g} s") from None
