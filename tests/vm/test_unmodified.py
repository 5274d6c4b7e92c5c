"""An installed Debian, which knows nothing of Skerry, boots its own disk by its own boot loader."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.errors import MachineError, SkerryError
from skerry.machine.qemu.firmware import CODE, Firmware
from skerry.machine.qemu.machine import QemuMachine
from tests.support import installed
from tests.support.machines import Host
from tests.support.nbd import BareDisk

BOOT_S = 180.0
STOP_S = 60.0


@contextlib.contextmanager
def installed_disk(folder: Path) -> Iterator[BareDisk]:
    """Serve a copy of the installed system's disk."""
    copy = folder / "installed.raw"
    made = str(installed.disk())
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", made, copy], check=True)
    disk = BareDisk(copy)
    try:
        yield disk
    finally:
        disk.close()
        copy.unlink()


async def shows(machine: QemuMachine, words: bytes, deadline_s: float) -> None:
    """Wait until the console has shown these words."""
    reading = machine.console.subscribe()
    text = machine.console.untrusted_text
    try:
        async with asyncio.timeout(deadline_s):
            while words not in text:
                _, more = await reading.read()
                assert more, f"the machine ended: {text[-2000:].decode(errors='replace')}"
                text += more
    except TimeoutError:
        pytest.fail(f"{words!r} is not in: {text[-2000:].decode(errors='replace')}")
    finally:
        reading.close()


async def booted(host: Host, disk: BareDisk, firmware: Firmware) -> QemuMachine:
    """Boot the disk, which is bound before the machine runs for the first time, to its shell."""
    machine = await host.make(
        firmware, firmware=firmware, kernel=None, bzimage=None, initrd=None, memory=256 << 20
    )
    await machine.attach(1, "disk", "system", disk.end.fileno())
    await machine.resume()
    await shows(machine, installed.LOGGED_IN, BOOT_S)
    return machine


def test_an_installed_debian_boots_by_bios(host: Host, tmp_path: Path) -> None:
    """Its own loader, kernel and init come up; its power button ends it and its disk has all."""

    async def run(disk: BareDisk) -> None:
        machine = await booted(host, disk, "bios")
        assert b"SYSLINUX" in machine.console.untrusted_text, "the BIOS speaks on the console"
        machine.console.write(b"echo by-$(test -d /sys/firmware/efi && echo uefi || echo bios)\n")
        await shows(machine, b"by-bios", 10)
        machine.console.write(b"cat /sys/block/vda/serial /proc/1/comm; ls /dev/virtio-ports\n")
        await shows(machine, b"systemsystemd\r\n", 10)
        await shows(machine, b"ls: cannot access '/dev/virtio-ports'", 10)
        machine.console.write(b"echo written-to-the-disk >/root/kept\n")
        with pytest.raises(SkerryError, match="agent"):
            await machine.agent.ready(5)
        await machine.shutdown(STOP_S)
        assert (await machine.exited).reason == "the guest switched itself off"

    with installed_disk(tmp_path) as disk:
        host.run(run(disk))
        disk.process.terminate()
        disk.process.wait()
        assert b"written-to-the-disk\n" in (tmp_path / "installed.raw").read_bytes()


def test_an_installed_debian_boots_by_uefi(host: Host, tmp_path: Path) -> None:
    """The same disk under UEFI, whose variables are memory of this start; a reset is its end."""

    async def run(disk: BareDisk) -> None:
        machine = await booted(host, disk, "uefi")
        machine.console.write(b"echo by-$(test -d /sys/firmware/efi && echo uefi || echo bios)\n")
        await shows(machine, b"by-uefi", 10)
        machine.console.write(b"reboot -f -f\n")
        async with asyncio.timeout(STOP_S):
            end = await machine.exited
        assert end.reason == "the guest asked for a reset, which ends a domain"

    with installed_disk(tmp_path) as disk:
        host.run(run(disk))


def test_a_guest_that_ignores_its_power_button_is_ended_at_the_deadline(host: Host) -> None:
    """A BIOS that finds no disk listens to nobody; `shutdown` returns soon after its deadline."""

    async def run() -> None:
        machine = await host.make("stubborn", firmware="bios", kernel=None, initrd=None)
        await machine.resume()
        await shows(machine, b"No bootable device", 20)
        async with asyncio.timeout(10):
            await machine.shutdown(1.0)
        assert (await machine.exited).reason == "killed"

    host.run(run())


def test_an_heir_presses_the_power_button_too(host: Host, tmp_path: Path) -> None:
    """A restarted node knows by QEMU itself that there is no agent to ask."""

    async def run() -> None:
        name = "domain:own/1"
        first = await host.make("own", firmware="bios", kernel=None, initrd=None, incarnation=name)
        await first.resume()
        await host.abandon(first)
        heir = await host.heir("own", name)
        await heir.adopt()
        pressed: list[str] = []
        execute = heir._qmp.execute

        async def seen(command: str, arguments: object = None, **more: float) -> object:
            pressed.append(command)
            return await execute(command, None)

        heir._qmp.execute = seen  # type: ignore[method-assign]
        await heir.shutdown(0.5)
        assert pressed == ["system_powerdown"]

    host.run(run())


def test_the_firmwares_code_cannot_be_written_by_qemu(host: Host) -> None:
    """Its variables are memory that only this start has; its code is a read-only file."""

    async def run() -> None:
        machine = await host.make("uefi-files", firmware="uefi", kernel=None, initrd=None)
        nodes = await machine._qmp.execute("query-named-block-nodes", {"flat": True})
        assert isinstance(nodes, list)
        found = {node["node-name"]: (node["ro"], node["file"]) for node in nodes}
        assert found["uefi-code"] == (True, str(CODE))
        assert found["uefi-variables"][0] is False, "the control: they can be written"
        with pytest.raises(MachineError):
            await machine._qmp.execute(
                "blockdev-reopen",
                {
                    "options": [
                        {
                            "driver": "file",
                            "node-name": "uefi-code",
                            "filename": str(CODE),
                            "read-only": False,
                        }
                    ]
                },
            )

    host.run(run())
