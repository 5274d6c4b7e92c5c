"""The program that gives a clone of a template what its shell can't: one step, machine code.

After a write to /dev/urandom the kernel (6.1) goes on to draw from what it had, for up to a minute;
only a call that no program of busybox makes has it begin anew at once. The clock is set here too,
as each process costs a clone more than all of this.

The rule: it ends with 0 only if the kernel took all that it was given, and draws from it from then
on.
"""

from __future__ import annotations

import struct

from skerry.wire.agent import SEED

GIVEN = 8 + SEED
"""Bytes that the program reads from its standard input, all at once: Unix seconds, little-endian,
and random bytes."""

_BASE = 0x400000
_ELF, _HEADER = 64, 56
_CODE = bytes.fromhex(
    "4883ec58"  # sub rsp, 88
    "31c031ff4889e6ba480000000f05"  # read(0, rsp, 72)
    "83f8487574"  # fail unless 72 came
    "488b042448894424484883642450 00"  # a struct timeval of the seconds, at rsp + 72
    "c7042400020000c744240440000000"  # before the random bytes: 512 bits in 64 bytes
    "488d3d5b000000be02000000b8020000000f05"  # open("/dev/random", O_RDWR)
    "85c0783f"  # fail
    "89c389c7be035208404889e2b8100000000f05"  # ioctl(it, RNDADDENTROPY, rsp)
    "85c07528"  # fail
    "89dfbe07520000b8100000000f05"  # ioctl(it, RNDRESEEDCRNG)
    "85c07516"  # fail
    "488d7c244831f6b8a40000000f05"  # settimeofday(rsp + 72, NULL)
    "85c07504"  # fail
    "31ffeb05"  # exit(0)
    "bf01000000"  # fail: exit(1)
    "b83c0000000f05"
)


def program() -> bytes:
    """Return the program, a static ELF for x86-64, to be run as root."""
    body = _CODE + b"/dev/random\0"
    size = _ELF + _HEADER + len(body)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    start = _BASE + _ELF + _HEADER
    elf = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, start, _ELF, 0, 0, 64, 56, 1, 0, 0, 0)
    # One segment: the whole file, to be read and executed.
    header = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return elf + header + body
