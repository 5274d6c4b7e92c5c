"""What starts an unmodified system: a BIOS, or UEFI with variables of its own.

The rules it keeps: the firmware's code is read-only and the same for all; what it can write (UEFI's
variables) is memory of one start, which ends with it, so that nothing goes from one start to the
next, or to another domain, but over a disk.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Literal

from skerry.errors import MachineError

Firmware = Literal["bios", "uefi"]

CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
"""The two parts of UEFI, as the package ovmf has them; the second is only copied."""

VARIABLES_FD = 9
"""Where QEMU finds the memory with UEFI's variables."""

_SET = (1 << 30) + 9
_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def firmware_machine(firmware: Firmware | None) -> list[str]:
    """Return what a firmware adds to the option `-machine`: the BIOS speaks on the serial line."""
    if firmware == "bios":
        return ["graphics=off"]
    return ["graphics=off", "pflash0=uefi-code", "pflash1=uefi-variables"] if firmware else []


def firmware_files(firmware: Firmware | None) -> list[str]:
    """Return the arguments for a firmware's own files; the BIOS is the board's."""
    if firmware != "uefi":
        return []
    code = f"driver=file,node-name=uefi-code,read-only=on,filename={CODE}"
    variables = f"driver=file,node-name=uefi-variables,locking=off,filename=/dev/fdset/{_SET}"
    given = ["-add-fd", f"fd={VARIABLES_FD},set={_SET}"]
    return ["-blockdev", code, *given, "-blockdev", variables]


def open_variables() -> int:
    """Return a descriptor of memory that holds fresh variables; it can't be made larger.

    Raises `MachineError` where the package ovmf is not installed.
    """
    try:
        content = VARIABLES.read_bytes()
    except OSError as error:
        raise MachineError(f"no UEFI: {VARIABLES}: {error.strerror}", fix="install ovmf") from error
    memory = os.memfd_create("uefi-variables", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(memory, content)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        os.close(memory)
        raise MachineError(f"no memory for UEFI's variables: {error.strerror}") from error
    return memory
