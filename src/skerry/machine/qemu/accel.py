"""Which accelerator a host's domains get: KVM only where a Linux guest was seen to run under it.

An openable `/dev/kvm` is not enough: on some hosts a Linux guest then hangs. So the probe boots
the real kernel without an initrd: under a working KVM it comes as far as its panic over the
missing root in about a second, resets, and QEMU ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from skerry.machine.console import Tail
from skerry.machine.qemu.command import BINARY, SANDBOX, Accel
from skerry.machine.qemu.launch import Launcher

PROBE_S = 10.0
"""How long the probe's guest may take; a slower KVM counts as none."""

PROBE_MEMORY = 192 << 20
"""Bytes that the probe's guest has."""

LAST_WORDS_S = 1.0
"""How long a killed probe may take to be gone."""

_SEEN = (b"Linux version", b"Kernel panic - not syncing")
_CMDLINE = "console=ttyS0 panic=-1 reboot=t 8250.nr_uarts=1"


async def kvm_runs(kernel: Path, cache: Path, probe: Callable[[], Awaitable[bool]]) -> bool:
    """Say whether KVM runs this kernel: `probe` is asked once for each boot of the host.

    `cache` is the file that remembers its answers until then.
    """
    boot, key = _boot(), _key(kernel)
    known = {old: answer for old, answer in _read(cache).items() if old.startswith(boot)}
    if key not in known:
        known[key] = await probe()
        _write(cache, known)
    return known[key]


async def guest_runs(
    accel: Accel, launcher: Launcher, kernel: Path, deadline_s: float = PROBE_S
) -> bool:
    """Boot the kernel under an accelerator and say whether it came to its end in time.

    Raises what the launcher raises: a jail that can't be made says nothing of KVM.
    """
    ours, theirs = socket.socketpair()
    console = Tail(ours)
    null = os.open(os.devnull, os.O_RDWR)
    try:
        with theirs:
            process = await launcher.launch(
                "probe",
                _command(accel, launcher.path(kernel)),
                {0: null, 1: null, 2: null, 3: theirs.fileno()},
            )
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline_s):
                    await asyncio.shield(process.exited)
                    await asyncio.shield(console.closed)
        finally:
            process.kill()
            await asyncio.wait({process.exited}, timeout=LAST_WORDS_S)
        return all(words in console.untrusted_text for words in _SEEN)
    finally:
        console.close()
        os.close(null)


def _command(accel: Accel, kernel: str) -> list[str]:
    argv = [BINARY, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    argv += ["-sandbox", SANDBOX, "-machine", "pc", "-accel", accel]
    if accel == "kvm":
        argv += ["-cpu", "host"]
    argv += ["-m", f"size={PROBE_MEMORY}B", "-kernel", kernel]
    argv += ["-append", _CMDLINE, "-chardev", "socket,id=console,fd=3", "-serial"]
    return [*argv, "chardev:console"]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _key(kernel: Path) -> str:
    """What the answer depends on: this boot of this host's kernel, QEMU, and the guest's kernel."""
    qemu = Path(BINARY).stat()
    return f"{_boot()} {platform.release()} {qemu.st_size}.{qemu.st_mtime_ns} {kernel}"


def _read(cache: Path) -> dict[str, bool]:
    try:
        return msgspec.json.decode(cache.read_bytes(), type=dict[str, bool])
    except (OSError, msgspec.DecodeError):
        return {}


def _write(cache: Path, known: dict[str, bool]) -> None:
    """Remember the answer; a cache that can't be written only costs the next probe's time."""
    with contextlib.suppress(OSError):
        fresh = cache.with_name(f"{cache.name}.{os.getpid()}")
        fresh.write_bytes(msgspec.json.encode(known))
        fresh.replace(cache)
