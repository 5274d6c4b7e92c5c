"""The program by which a guest takes fresh random numbers: 256 bytes of machine code.

A shell can write to /dev/urandom, but the kernel (6.1) then draws from what it had for up to a
minute more; only two calls that no program of busybox makes have it begin anew at once.

The rule: it ends with 0 only if the kernel took all 64 bytes and draws from them from now on.
"""

from __future__ import annotations

import struct

SEED = 64
"""Bytes that the program reads from its standard input, all at once."""

_BASE = 0x400000
_ELF, _HEADER = 64, 56
_CODE = bytes.fromhex(
    "4883ec48"  # sub rsp, 72: what the kernel wants of a seed, and the seed behind it
    "31c031ff488d742408ba400000000f05"  # read(0, rsp + 8, 64)
    "83f8407557"  # not 64 bytes: fail
    "c7042400020000c744240440000000"  # 512 bits of it are entropy, in 64 bytes
    "488d3d4d000000be0200000031d2b8020000000f05"  # open("/dev/random", O_RDWR)
    "85c0782f89c3"  # fail, or keep it
    "89c7be035208404889e2b8100000000f05"  # ioctl(it, RNDADDENTROPY, rsp)
    "85c07518"  # fail
    "89dfbe0752000031d2b8100000000f05"  # ioctl(it, RNDRESEEDCRNG, 0)
    "85c07504"  # fail
    "31ffeb05"  # exit(0)
    "bf01000000"  # fail: exit(1)
    "b83c0000000f05"
)


def program() -> bytes:
    """Return the program, a static ELF for x86-64. As root: `reseed <SEED`."""
    body = _CODE + b"/dev/random\0"
    size = _ELF + _HEADER + len(body)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    start = _BASE + _ELF + _HEADER
    elf = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, start, _ELF, 0, 0, 64, 56, 1, 0, 0, 0)
    # One segment: the whole file, to be read and executed.
    header = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return elf + header + body
