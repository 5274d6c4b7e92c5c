"""What a program or a shared library of 64-bit Linux needs, as its own headers say.

The rule: nothing is run and nothing beyond the bytes given is read; what is no ELF file needs
nothing, and one whose headers lead out of it is an error. See `elf(5)`.
"""

from __future__ import annotations

import struct

from skerry.errors import SkerryError

MAGIC = b"\x7fELF\x02\x01"
_LOAD, _DYNAMIC, _INTERPRETER = 1, 2, 3
_END, _NEEDED, _STRINGS = 0, 1, 5


def needed(data: bytes) -> tuple[str, ...]:
    """Return the names of the shared libraries that a file needs, its loader's first.

    Names have no folder. Raises `SkerryError` for an ELF file whose headers are damaged.
    """
    if not data.startswith(MAGIC):
        return ()
    try:
        return tuple(_needed(data))
    except (struct.error, OverflowError, ValueError) as error:
        raise SkerryError("it is a damaged ELF file") from error


def _needed(data: bytes) -> list[str]:
    start, size, count = (*struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54))
    parts = [struct.unpack_from("<IIQQQQ", data, start + size * n) for n in range(count)]
    found = [
        _text(data, offset).rpartition("/")[2]
        for kind, _, offset, *_ in parts
        if kind == _INTERPRETER
    ]
    for kind, _, offset, _, _, length in parts:
        if kind == _DYNAMIC:
            pairs = list(struct.iter_unpack("<qQ", data[offset : offset + length // 16 * 16]))
            tags = pairs[: next((n for n, pair in enumerate(pairs) if pair[0] == _END), None)]
            strings = next((value for tag, value in tags if tag == _STRINGS), 0)
            place = _offset(parts, strings)
            found += [_text(data, place + value) for tag, value in tags if tag == _NEEDED]
    return found


def _offset(parts: list[tuple[int, ...]], address: int) -> int:
    """Return where in the file the byte lies that is loaded at an address."""
    for kind, _, offset, start, _, length in parts:
        if kind == _LOAD and start <= address < start + length:
            return offset + address - start
    raise ValueError("an address that nothing is loaded at")


def _text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode("ascii")
