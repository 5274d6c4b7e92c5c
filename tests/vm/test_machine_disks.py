"""Disks in real machines, seen from inside the guests; their daemons are wired by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.errors import LimitReached, MachineError
from skerry.machine.qemu.blocks import MAX_DISKS
from skerry.machine.qemu.machine import QemuMachine
from tests.support.machines import Host, sh
from tests.support.nbd import BareDisk

MIB = 1 << 20


@contextlib.contextmanager
def served(image: Path, *, read_only: bool = False) -> Iterator[BareDisk]:
    """Serve an image of eight MiB."""
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(8 * MIB)
    disk = BareDisk(image, read_only=read_only)
    try:
        yield disk
    finally:
        disk.close()


@pytest.fixture(scope="module")
def guest(host: Host) -> QemuMachine:
    """One machine with slots, for tests that leave it as they found it."""
    return host.run(host.boot("disks", board="pc"))


async def appears(machine: QemuMachine, name: str, there: bool = True) -> bool:
    """Wait until a guest has a disk, or has it no more."""
    test = "-b" if there else "! -e"
    script = (
        f"for i in $(seq 100); do [ {test} /dev/disk/{name} ] && exit 0; sleep 0.1; done; exit 1"
    )
    return (await sh(machine, script))[0] == 0


def test_a_disk_comes_to_a_running_guest_and_goes(
    host: Host, guest: QemuMachine, tmp_path: Path
) -> None:
    """A disk attached at run time is /dev/disk/NAME, its driver loaded; detached it is gone."""

    async def run(disk: BareDisk) -> None:
        await guest.attach(1, "disk", "data", disk.end.fileno())
        assert await appears(guest, "data")
        write = "printf canary | dd of=/dev/disk/data bs=4096 seek=3 conv=fsync 2>/dev/null"
        assert (await sh(guest, write))[0] == 0
        assert (tmp_path / "data").read_bytes()[3 * 4096 :][:6] == b"canary"
        await guest.detach(1)
        await guest.detach(1)
        assert await appears(guest, "data", there=False)
        assert guest.attached == frozenset()

    with served(tmp_path / "data") as disk:
        host.run(run(disk))


def test_a_read_only_export_is_a_read_only_disk(
    host: Host, guest: QemuMachine, tmp_path: Path
) -> None:
    """What the daemon exports read-only the guest can read, and its kernel refuses to write."""

    async def run(disk: BareDisk) -> None:
        await guest.attach(2, "disk", "fixed", disk.end.fileno())
        assert await appears(guest, "fixed")
        assert (await sh(guest, "cat /sys/class/block/vd?/ro"))[1].split() == ["1"]
        assert (await sh(guest, "head -c 6 /dev/disk/fixed"))[1] == "before"
        assert (await sh(guest, "echo after >/dev/disk/fixed"))[0] != 0
        await guest.detach(2)

    (tmp_path / "fixed").write_bytes(b"before".ljust(8 * MIB, b"\0"))
    with served(tmp_path / "fixed", read_only=True) as disk:
        host.run(run(disk))
    assert (tmp_path / "fixed").read_bytes()[:6] == b"before"


def test_a_disk_attached_before_the_start_is_there_at_boot(host: Host, tmp_path: Path) -> None:
    """What is attached to a machine whose processors do not run yet is there when its guest is."""

    async def run() -> None:
        machine = await host.make("cold-disk", board="pc")
        with served(tmp_path / "early") as disk:
            await machine.attach(1, "disk", "early", disk.end.fileno())
            await machine.resume()
            await machine.agent.ready(60)
            assert (await sh(machine, "test -b /dev/disk/early"))[0] == 0
            machine.kill()
            await machine.exited

    host.run(run())


def test_a_disk_whose_daemon_died_fails_and_the_guest_goes_on(
    host: Host, guest: QemuMachine, tmp_path: Path
) -> None:
    """Reads and writes fail with an I/O error; the guest runs, and the disk can be taken away."""

    async def run(disk: BareDisk) -> None:
        await guest.attach(3, "disk", "lost", disk.end.fileno())
        assert await appears(guest, "lost")
        disk.close()
        code, words = await sh(
            guest, "dd if=/dev/disk/lost of=/dev/null bs=4096 count=1 iflag=direct"
        )
        assert code != 0
        assert "Input/output error" in words
        assert (await sh(guest, "echo alive"))[1] == "alive\n"
        await guest.detach(3)
        assert await appears(guest, "lost", there=False)

    with served(tmp_path / "lost") as disk:
        host.run(run(disk))


def test_an_adopted_machine_gives_its_disk_up(host: Host, tmp_path: Path) -> None:
    """A next node finds the disks that a machine has, and can take them away."""

    async def run() -> None:
        machine = await host.boot("adopted-disk", incarnation="d/adopted/1", board="pc")
        with served(tmp_path / "kept") as disk:  # which waits ten seconds for its client
            await machine.attach(4, "disk", "kept", disk.end.fileno())
            assert await appears(machine, "kept")
            await host.abandon(machine)
            heir = await host.heir("adopted-disk", "d/adopted/1")
            await heir.adopt()
            assert heir.attached == {4}
            await heir.agent.ready(30)
            assert (await sh(heir, "head -c 1 /dev/disk/kept >/dev/null"))[0] == 0
            await heir.detach(4)
            assert heir.attached == frozenset()
            heir.kill()
            await heir.exited

    host.run(run())


def test_limits_are_named_before_anything_is_tried(host: Host, tmp_path: Path) -> None:
    """One disk more than `MAX_DISKS`, and a name that no serial number holds, are refused."""

    async def run(ends: list[int]) -> None:
        machine = await host.make("many-disks", board="pc")
        with pytest.raises(MachineError, match="longer than 20"):
            await machine.attach(50, "disk", "a" * 21, ends[0])
        for number, end in enumerate(ends[:MAX_DISKS]):
            await machine.attach(number, "disk", f"disk-{number}", end)
        with pytest.raises(LimitReached, match="MAX_DISKS"):
            await machine.attach(51, "disk", "more", ends[-1])
        machine.kill()
        await machine.exited

    with contextlib.ExitStack() as stack:
        disks = [stack.enter_context(served(tmp_path / f"{n}")) for n in range(MAX_DISKS + 1)]
        host.run(run([disk.end.fileno() for disk in disks]))


def test_a_refused_disk_leaves_nothing(host: Host, guest: QemuMachine, tmp_path: Path) -> None:
    """A socket on which nobody speaks NBD is refused, and the machine holds nothing of it."""

    async def run(disk: BareDisk) -> None:
        disk.process.kill()
        disk.process.wait()
        with pytest.raises(MachineError):
            await guest.attach(6, "disk", "mute", disk.end.fileno())
        assert guest.attached == frozenset()
        assert (await asyncio.wait_for(sh(guest, "echo alive"), 10))[1] == "alive\n"

    with served(tmp_path / "mute") as disk:
        host.run(run(disk))
