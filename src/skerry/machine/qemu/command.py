"""The command line of a QEMU: a pure function from what a domain is to what is started.

The rules it keeps: nothing that the domain was not given exists (no default devices, no user
configuration), QEMU's own sandbox is on, everything outside comes by descriptor, and the
processors do not run until told to.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from skerry.machine.qemu.firmware import Firmware, firmware_files, firmware_machine
from skerry.wire.hypercall import PORT as CONTROL_PORT

Board = Literal["auto", "microvm", "q35", "pc"]
Accel = Literal["tcg", "kvm"]

BINARY = "/usr/bin/qemu-system-x86_64"

SOCKET_FDS = QMP_FD, CONSOLE_FD, AGENT_FD, CONTROL_FD = 3, 4, 5, 6
"""Where QEMU finds its sockets; 0 is /dev/null, 1 and 2 are the bounded error output."""

AGENT_PORT = "skerry.agent"
"""The port of the guest's agent; no channel may have this name."""

OWN_PORTS = (AGENT_PORT, CONTROL_PORT)
"""The ports that a machine is made with; no channel may have these names."""

MAX_PORTS = 28
"""Channels of one domain: a virtio-serial bus has 31 ports, of which 0 is reserved (for a
console), one is the agent's and one leads to the node."""

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
"""QEMU's own filter of system calls, under the jail's."""

MAX_TRANSLATED = 128 << 20
"""Bytes that an emulated machine keeps of the code that it has translated; at the limit it forgets
all of it and goes on. QEMU's own choice is up to 1 GiB, which its control group has no room for."""

_RESIDUE = "mem-merge=off,dump-guest-core=off"
"""Guest memory is never merged with another's nor written to a core file (law 6)."""


class QemuSpec(msgspec.Struct, frozen=True):
    """What one QEMU machine is; `memory` in bytes, `tsc_khz` 0 for none given to the guest, `tpm`:
    it may have a TPM. Without a `label` its guest is told neither that nor its name.

    It has a kernel and an initrd, or a `firmware` that looks for a disk; then no agent either.
    """

    name: str
    label: str
    kernel: Path | None = None
    bzimage: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""
    firmware: Firmware | None = None
    memory: int = 192 << 20
    cpus: int = 1
    board: Board = "auto"
    accel: Accel = "tcg"
    tsc_khz: int = 0
    tpm: bool = False

    @property
    def machine(self) -> Board:
        """The board that is really used: unless another is asked for, the quickest that will do."""
        if self.board == "auto":
            return "pc" if self.firmware else "microvm"
        return self.board


def command(spec: QemuSpec, path: Callable[[Path], str]) -> list[str]:
    """Return the argv; `path` names a file as the machine will see it."""
    argv = [BINARY, *("-name", _comma(spec.name))]
    argv += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-S"]
    argv += ["-sandbox", SANDBOX]
    machine = [spec.machine, _RESIDUE, *firmware_machine(spec.firmware)]
    argv += ["-machine", ",".join(machine)]
    if spec.accel == "kvm":
        argv += ["-accel", "kvm", "-cpu", "host"]
    else:
        argv += ["-accel", f"tcg,tb-size={MAX_TRANSLATED >> 20}"]
    argv += ["-smp", str(spec.cpus), "-m", f"size={spec.memory}B"]
    if spec.kernel and spec.initrd:
        argv += ["-kernel", path(spec.kernel), "-initrd", path(spec.initrd)]
        argv += ["-append", _cmdline(spec)]
    argv += firmware_files(spec.firmware)
    argv += [*_socket("qmp", QMP_FD), "-mon", "chardev=qmp,mode=control"]
    argv += [*_socket("console", CONSOLE_FD), "-serial", "chardev:console"]
    bus = "virtio-serial-device" if spec.machine == "microvm" else "virtio-serial-pci"
    argv += ["-device", f"{bus},id=ports,max_ports={MAX_PORTS + 1 + len(OWN_PORTS)}"]
    if spec.firmware is None:
        argv += _port("agent", AGENT_FD, AGENT_PORT)
    argv += _port("control", CONTROL_FD, CONTROL_PORT)
    identity = (("label", spec.label), ("name", spec.name)) if spec.label else ()
    for item, text in identity:
        argv += ["-fw_cfg", f"name=opt/skerry/{item},string={_comma(text)}"]
    return argv


def _cmdline(spec: QemuSpec) -> str:
    """Add the host's TSC rate: without it a microvm under TCG hangs in calibrating it.

    The table by which a kernel finds a TPM is not on a microvm, so there it is told to look.
    """
    words = [spec.cmdline]
    if spec.tsc_khz:
        words.append(f"tsc_early_khz={spec.tsc_khz}")
    if spec.tpm and spec.machine == "microvm":
        words.append("tpm_tis.force=1 tpm_tis.interrupts=0")
    return " ".join(words)


def _socket(name: str, descriptor: int) -> list[str]:
    return ["-chardev", f"socket,id={name},fd={descriptor}"]


def _port(name: str, descriptor: int, shown: str) -> list[str]:
    port = f"virtserialport,bus=ports.0,id={name},chardev={name},name={shown}"
    return [*_socket(name, descriptor), "-device", port]


def _comma(text: str) -> str:
    """Double the commas, which separate QEMU's options."""
    return text.replace(",", ",,")
