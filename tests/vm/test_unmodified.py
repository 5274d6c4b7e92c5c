"""An installed Debian, which knows nothing of Skerry, boots its own disk by its own boot loader."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.errors import MachineError
from skerry.machine.qemu.firmware import CODE
from skerry.machine.qemu.machine import QemuMachine
from tests.support import installed
from tests.support.cli import Cli
from tests.support.machines import Host
from tests.support.nbd import BareDisk

BOOT_S = 180.0
STOP_S = 60.0


def copy_disk(to: Path) -> None:
    """Copy the installed system's disk."""
    made = str(installed.disk())
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", made, to], check=True)


@contextlib.contextmanager
def installed_disk(folder: Path) -> Iterator[BareDisk]:
    """Serve a copy of the installed system's disk."""
    copy = folder / "installed.raw"
    copy_disk(copy)
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


POLICY = """
[policy]
name = "unmodified"
version = "1.0"
bootstrap = "owner"
[simple-type-enforcement]
types = ["own", "other"]
[labels.owner]
ste = ["own", "other"]
[labels.own]
ste = ["own"]
[resources.own-disk]
ste = "own"
[resources.other-disk]
ste = "other"
"""

SYSTEM = """
name = "unmodified"
policy = "policy.toml"

[jail]
accept-missing = ["cgroup", "swap"]

[domains.own]
label = "own"
boot = "bios"
memory = "256M"
uses = ["system", "secret"]

[resources.system]
kind = "disk"
label = "own-disk"
file = "installed.raw"

[resources.secret]
kind = "disk"
label = "other-disk"
file = "secret.raw"
size = "8M"
"""


class Screen:
    """The console of the real command, for somebody who types."""

    def __init__(self, node: Cli, domain: str) -> None:
        self._command = node.popen("console", domain, stdin=subprocess.PIPE)
        self.text = ""

    def shows(self, words: str, deadline_s: float) -> None:
        """Wait until it has shown these words."""
        out, end = self._command.stdout, time.monotonic() + deadline_s
        assert out is not None
        while words not in self.text:
            left = end - time.monotonic()
            ready, _, _ = select.select([out], [], [], max(left, 0))
            assert ready, f"{words!r} is not in: {self.text[-2000:]}"
            self.text += os.read(out.fileno(), 65536).decode(errors="replace")

    def type(self, line: str) -> None:
        """Type a line."""
        assert self._command.stdin is not None
        self._command.stdin.write(line + "\n")
        self._command.stdin.flush()

    def leave(self) -> None:
        """Leave it."""
        self._command.communicate(input="\x1d", timeout=20)


@pytest.fixture
def node() -> Iterator[Cli]:
    """A node of its own, in whose directory the files lie."""
    cli = Cli()
    try:
        yield cli
    finally:
        cli.down()


def test_an_installed_debian_runs_as_a_domain(node: Cli) -> None:
    """By BIOS, its own loader, kernel and init, with the disk that the policy lets it have and no
    other; console and power button serve, a command says at once that nobody is there to run it,
    and its disk keeps what it wrote."""
    disk = node.home / "installed.raw"
    copy_disk(disk)
    (node.home / "policy.toml").write_text(POLICY)
    (node.home / "system.toml").write_text(SYSTEM)
    began = node.run("up", str(node.home / "system.toml"), "--detach")
    assert began.returncode == 3, began.stderr
    assert "other-disk" in began.stderr, "the policy does not let it have the other disk"
    assert [(r["name"], r["state"]) for r in node.rows("ps")] == [("own", "running")]
    screen = Screen(node, "own")
    screen.shows("SYSLINUX", 60)
    screen.shows(installed.LOGGED_IN.decode(), BOOT_S)
    screen.type("echo by-$(test -d /sys/firmware/efi && echo uefi || echo bios)")
    screen.shows("by-bios", 20)
    screen.type("cat /sys/block/vda/serial /proc/1/comm; echo; ls /sys/block")
    screen.shows("systemsystemd", 20)
    screen.type("ls /sys/block | grep -c vd; ls /dev/virtio-ports")
    screen.shows("1\r\nskerry.control\r\n", 20)
    screen.type("echo written-to-the-$((6*7)) >/root/kept; sync; echo s-ynced | tr -d -")
    screen.shows("synced", 20)
    start = time.monotonic()
    told = node.run("exec", "own", "--", "true")
    assert (told.returncode, "no agent of ours" in told.stderr) == (1, True), told.stderr
    assert "skerry console own" in told.stderr
    assert time.monotonic() - start < 10
    stopped = node.ok("stop", "own", "--timeout", str(int(STOP_S)))
    assert "the guest switched itself off" in stopped
    screen.leave()
    assert b"written-to-the-42\n" in disk.read_bytes()


def test_an_installed_debian_boots_by_uefi(host: Host, tmp_path: Path) -> None:
    """The same disk: its loader for UEFI, its kernel, which knows by what it was started, and its
    own first program."""

    async def run(disk: BareDisk) -> None:
        machine = await host.make(
            "uefi", firmware="uefi", kernel=None, initrd=None, memory=256 << 20
        )
        await machine.attach(1, "disk", "system", disk.end.fileno())
        await machine.resume()
        await shows(machine, b"Run /init as init process", BOOT_S)
        text = machine.console.untrusted_text
        assert b"BdsDxe: starting Boot" in text
        assert b"efi: EFI v" in text
        with pytest.raises(MachineError):
            await machine.agent.ready(5)
        machine.kill()

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


def test_an_heir_presses_the_power_button_too(host: Host) -> None:
    """A restarted node knows by QEMU itself that there is no agent to ask; UEFI goes on with its
    variables, of which the heir has no descriptor."""

    async def run() -> None:
        name = "domain:own/1"
        first = await host.make("own", firmware="uefi", kernel=None, initrd=None, incarnation=name)
        await first.resume()
        await host.abandon(first)
        heir = await host.heir("own", name)
        await heir.adopt()
        await shows(heir, b"UEFI Interactive Shell", 60)
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
