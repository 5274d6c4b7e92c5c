"""What a domain leaves in memory is in no later domain's, seen from inside it and from the host."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.machine.qemu import command
from skerry.machine.qemu.firmware import VARIABLES, open_variables
from skerry.machine.qemu.machine import QemuMachine
from tests.support.machines import Host, descendants, sh

MEMORY = 128 << 20
PIECE = 4 << 20
KERNEL_MERGES = Path("/sys/kernel/mm/ksm").exists()

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="the host's view of another uid's memory is root's"
)


def qemu_of(machine: QemuMachine) -> int:
    """Return the QEMU below a jail."""
    for pid in descendants(machine.pid):
        if "qemu-system" in Path(f"/proc/{pid}/comm").read_text():
            return pid
    raise AssertionError("no QEMU runs")


def mappings(pid: int) -> Iterator[tuple[int, int]]:
    """Yield what of a process's memory can be read, as the host sees it."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, mode, *_ = line.split()
        start, end = (int(number, 16) for number in span.split("-"))
        if "r" in mode and "[v" not in line:
            yield start, end


def host_finds(pid: int, canary: bytes) -> tuple[int, int]:
    """Return how often the host finds the canary in a process, and how many bytes it looked at."""
    found = looked = 0
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end in mappings(pid):
            rest = b""
            for place in range(start, end, PIECE):
                memory.seek(place)
                try:
                    piece = memory.read(min(PIECE, end - place))
                except OSError:  # a mapping beyond the end of its file
                    break
                found += (rest + piece).count(canary)
                looked += len(piece)
                rest = piece[-len(canary) + 1 :]
    return found, looked


async def guest_finds(machine: QemuMachine, canary: bytes) -> tuple[int, int]:
    """Return how often the canary is in all of a guest's RAM, as it sees it, and its bytes.

    The guest sends what its kernel maps of the RAM over a port, and never learns what is looked
    for.
    """
    header = bytearray()
    code = await machine.agent.run(
        ["dd", "if=/proc/kcore", "bs=4096", "count=1"],
        output=lambda stream, data: header.extend(data if stream == "out" else b""),
    )
    assert code == 0
    table = struct.unpack_from("<Q", header, 32)[0]
    size, count = struct.unpack_from("<HH", header, 54)
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        await machine.attach(1, "stream", "ram", far.fileno())
        found = looked = 0
        for number in range(count):
            kind, _, offset, _, physical, length = struct.unpack_from(
                "<IIQQQQ", header, table + number * size
            )
            if kind == 1 and physical != 2**64 - 1 and length <= MEMORY:
                found += await _search(machine, near, canary, offset, length)
                looked += length
        await machine.detach(1)
    return found, looked


async def _search(
    machine: QemuMachine, sock: socket.socket, canary: bytes, offset: int, length: int
) -> int:
    blocks = f"skip={offset >> 12} count={length >> 12}"
    port = "/dev/virtio-ports/ram"
    script = f"until [ -e {port} ]; do :; done; dd if=/proc/kcore bs=4096 {blocks} | cat >{port}"
    sending = asyncio.ensure_future(sh(machine, script, 120))
    loop = asyncio.get_running_loop()
    found, rest = 0, b""
    while length > 0:
        piece = await asyncio.wait_for(loop.sock_recv(sock, PIECE), 60)
        assert piece
        found += (rest + piece).count(canary)
        rest = piece[-len(canary) + 1 :]
        length -= len(piece)
    assert (await sending)[0] == 0
    return found


def test_no_later_domain_has_what_an_ended_one_left_in_memory(host: Host) -> None:
    """Neither its guest nor the host finds it there; the control finds it in the first's."""
    canary = secrets.token_hex(12).encode()

    async def run() -> None:
        first = await host.boot("first", memory=MEMORY)
        fill = (
            f"i=0; while [ $i -lt 2000 ]; do echo {canary.decode()}; i=$((i+1)); done >/run/canary"
        )
        assert (await sh(first, fill))[0] == 0
        inside, looked = await guest_finds(first, canary)
        assert inside > 1900, "the control: a guest finds its own, but where a page ends in one"
        assert looked > MEMORY * 0.8
        outside, seen = host_finds(qemu_of(first), canary)
        assert outside > 1900, "the control: the host finds it while it runs"
        assert seen > MEMORY
        first.kill()
        await first.exited
        second = await host.boot("second", memory=MEMORY)
        assert host_finds(qemu_of(second), canary)[0] == 0
        assert host_finds(qemu_of(second), b"Linux version")[0] > 0, "the control: it is searched"
        inside, looked = await guest_finds(second, canary)
        assert (inside, looked > MEMORY * 0.8) == (0, True)

    host.run(run())


def flags(pid: int) -> set[str]:
    """Return the flags of the guest's RAM in a QEMU: of its one mapping of that size."""
    current: list[str] = []
    found: set[str] = set()
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        span = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if span:
            current = [span[1], span[2]]
        elif line.startswith("VmFlags:"):
            start, end = (int(number, 16) for number in current)
            if end - start == MEMORY:
                found |= set(line.split()[1:])
    assert found, "the guest's RAM is one mapping"
    return found


def dumps_core(pid: int) -> bool:
    """Say whether a process may leave a core file."""
    limits = Path(f"/proc/{pid}/limits").read_text()
    return re.search(r"Max core file size +0 +0 ", limits) is None


def test_a_guests_ram_is_neither_merged_nor_dumped(host: Host) -> None:
    """No page of it is given to the kernel to merge, none goes into a core file, and there is no
    core file."""

    async def run() -> None:
        machine = await host.make("merged", memory=MEMORY)
        pid = qemu_of(machine)
        assert "mg" not in flags(pid)
        assert "dd" in flags(pid)
        assert not dumps_core(pid)

    host.run(run())


def test_control_without_the_settings_it_is_merged_and_dumped(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU's own defaults, without a jail."""
    monkeypatch.setattr(command, "_RESIDUE", "mem-merge=on,dump-guest-core=on")

    async def run() -> None:
        machine = await host.make("plain", memory=MEMORY, jailed=False)
        pid = qemu_of(machine)
        if KERNEL_MERGES:
            assert "mg" in flags(pid)
        assert "dd" not in flags(pid)

    host.run(run())


def test_uefi_finds_no_variable_of_an_earlier_start() -> None:
    """Each start has fresh memory for them, which can't grow into a store for others."""
    first, second = open_variables(), open_variables()
    try:
        os.pwrite(first, b"left by the first", 0)
        assert os.pread(second, 1 << 20, 0) == VARIABLES.read_bytes()
        assert not os.path.sameopenfile(first, second)
        with pytest.raises(PermissionError):
            os.ftruncate(first, 64 << 20)
    finally:
        os.close(first)
        os.close(second)
