"""KVM in the jail: through a device node of the domain's own, which goes with the machine."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from skerry.errors import MachineError
from skerry.jail import device
from skerry.machine.qemu.accel import guest_runs
from skerry.machine.qemu.command import BINARY
from skerry.machine.qemu.launch import Launcher
from skerry.machine.qemu.qmp import Qmp
from skerry.machine.qemu.root import INITRD, KERNEL
from skerry.node import paths
from skerry.node.jails import Identities, Inmate, MachineJails
from tests.support.machines import Host, cache


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's directories, where the domains' uids can reach them."""
    folder = cache() / "kvm"
    folder.mkdir(exist_ok=True, parents=True)
    monkeypatch.setenv("SKERRY_HOME", str(folder))
    monkeypatch.delenv("SKERRY_SHARE", raising=False)


def inmate(host: Host, kvm: bool) -> Inmate:
    """A machine that is never let run."""
    image = host.image
    files = {KERNEL: image.kernel, INITRD: image.initrd}
    return Inmate("accelerated", "pc", files, 64 << 20, kvm)


async def enabled(launcher: Launcher) -> object:
    """Start a QEMU that must use KVM; return what it says of it."""
    argv = [BINARY, "-nodefaults", "-no-user-config", "-display", "none", "-S", "-m", "64"]
    argv += ["-machine", "pc", "-accel", "kvm", "-chardev", "socket,id=q,fd=3"]
    argv += ["-mon", "chardev=q,mode=control"]
    ours, theirs = socket.socketpair()
    null = os.open(os.devnull, os.O_RDWR)
    qmp = Qmp("accelerated", lambda _name, _data: None)
    with theirs:
        fds = {0: null, 1: null, 2: null, 3: theirs.fileno()}
        process = await launcher.launch("accelerated", argv, fds)
    os.close(null)
    try:
        qmp.hold(ours)
        await qmp.connect()
        return await qmp.execute("query-kvm")
    finally:
        process.kill()
        await qmp.close()
        await process.exited


def test_a_jailed_qemu_uses_kvm_through_its_own_node(host: Host) -> None:
    """It makes a virtual machine in the jail; its node is gone after. Without one it can't."""

    async def run() -> None:
        identities = Identities()
        jails = MachineJails(host.client, {"cgroup", "uid"}, identities)
        try:
            if not jails.has_kvm():
                with pytest.raises(MachineError, match="no /dev/kvm"):
                    jails.make(inmate(host, kvm=True))
                return
            jail = jails.make(inmate(host, kvm=True))
            assert jail.device
            if Path(jail.device) != device.KVM:
                status = os.stat(jail.device)  # noqa: PTH116 nothing else runs
                assert (status.st_uid != os.getuid(), status.st_mode & 0o777) == (True, 0o600)
            assert await enabled(jail.launcher) == {"enabled": True, "present": True}
            jails.ended(jail.groups, jail.device)
            without = jails.make(inmate(host, kvm=False))
            with pytest.raises(MachineError):
                await enabled(without.launcher)
            jails.ended(without.groups, without.device)
        finally:
            await jails.close()
            identities.close()
        assert list(paths.devices_dir().iterdir()) == []

    host.run(run())


def test_the_probe_in_the_jail_agrees_with_the_bare_one(host: Host) -> None:
    """Whether a guest runs under KVM does not depend on the jail; the probe keeps its deadline."""

    async def run() -> None:
        identities = Identities()
        jails = MachineJails(host.client, {"cgroup", "uid"}, identities)
        try:
            if not jails.has_kvm():
                return
            jail = jails.make(inmate(host, kvm=True))
            bare = host.launcher(host.spec("bare"), jailed=False)
            async with asyncio.timeout(24):
                kernel = host.image.kernel
                jailed = await guest_runs("kvm", jail.launcher, kernel)
                assert jailed == await guest_runs("kvm", bare, kernel)
            jails.ended(jail.groups, jail.device)
        finally:
            await jails.close()
            identities.close()

    host.run(run())
