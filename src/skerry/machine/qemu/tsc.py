"""The rate of the host's time-stamp counter, which a guest under TCG sees as its own.

A microvm has no timer to calibrate it against, so the guest is told (`tsc_early_khz`).
"""

from __future__ import annotations

import ctypes
import mmap
import re
import time
from functools import cache
from pathlib import Path

from skerry.errors import MachineError

MEASURE_S = 0.02
"""How long one measurement takes; it is done once for each process."""

_RDTSC = bytes.fromhex("0f3148c1e2204809d0c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret


@cache
def tsc_khz() -> int:
    """Measure the counter against the clock, in kHz.

    Where no memory may be executed, what the kernel writes of the processor. Raises
    `MachineError` if that says nothing either.
    """
    try:
        return _measure()
    except OSError:
        return _from_cpuinfo(Path("/proc/cpuinfo").read_text())


def _measure() -> int:
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as m:
        m.write(_RDTSC)
        place = (ctypes.c_char * len(_RDTSC)).from_buffer(m)
        read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(place))
        ticks, start = read(), time.monotonic_ns()
        time.sleep(MEASURE_S)
        ticks, passed = read() - ticks, time.monotonic_ns() - start
        del read, place
    return int(ticks * 1_000_000 / passed)


def _from_cpuinfo(text: str) -> int:
    found = re.search(r"^model name.*@ ([0-9.]+)GHz", text, re.MULTILINE)
    if found:
        return int(float(found[1]) * 1_000_000)
    found = re.search(r"^cpu MHz\s*: ([0-9.]+)", text, re.MULTILINE)
    if found:
        return int(float(found[1]) * 1_000)
    raise MachineError("the rate of the processor's time-stamp counter is unknown")
