"""The program that gives a clone of a template what its shell can't: one step, machine code.

After a write to /dev/urandom the kernel (6.1) goes on to draw from what it had, for up to a minute;
only a call that no program of busybox makes has it begin anew at once. The clock is set here too,
as each process costs a clone more than all of this.

The rule: it writes a newline only if the kernel took all that it was given, and draws from it from
then on; else it ends. Having written it stays and sleeps, as the end of a process costs a clone
more time than its answer, and 2 MB in which its QEMU keeps what it has translated.
"""

from __future__ import annotations

import struct

from skerry.wire.agent import SEED

GIVEN = 8 + SEED
"""Bytes that the program reads from its standard input, all at once: Unix seconds, little-endian,
and random bytes. Its descriptor 3 is the kernel's source of random numbers, open to write."""

_BASE = 0x400000
_ELF, _HEADER = 64, 56
_CODE = bytes.fromhex(
    "4883ec58"  # sub rsp, 88
    "31c031ff4889e6ba480000000f05"  # read(0, rsp, 72)
    "83f8480f8588000000"  # fail unless 72 came
    "488b0424488944244848c744245000000000"  # a struct timeval of the seconds, at rsp + 72
    "c7042400020000c744240440000000"  # before the random bytes: 512 bits in 64 bytes
    "bf03000000be035208404889e2b8100000000f05"  # ioctl(3, RNDADDENTROPY, rsp)
    "85c0754f"  # fail
    "bf03000000be07520000b8100000000f05"  # ioctl(3, RNDRESEEDCRNG)
    "85c0753a"  # fail
    "488d7c244831f6b8a40000000f05"  # settimeofday(rsp + 72, NULL)
    "85c07528"  # fail
    "c604240abf010000004889e6ba01000000b8010000000f05"  # write(1, "\\n", 1)
    "83f801750b"  # fail
    "b8220000000f0531ffeb05"  # pause(), exit(0)
    "bf01000000"  # fail: exit(1)
    "b83c0000000f05"
)


def program() -> bytes:
    """Return the program, a static ELF for x86-64, to be run as root."""
    size = _ELF + _HEADER + len(_CODE)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    start = _BASE + _ELF + _HEADER
    elf = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, start, _ELF, 0, 0, 64, 56, 1, 0, 0, 0)
    # One segment: the whole file, to be read and executed.
    header = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return elf + header + _CODE
