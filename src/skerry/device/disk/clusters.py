"""Whether a qcow2 image still has all that its tables lead to, found without believing them.

The rules: every table is read once, in bounded pieces, and no more of them than `MAX_TABLES`; what
lies beyond the end of the file, which QEMU would read as zeros, is a refusal. A file may end within
its last cluster, as QEMU leaves it where a disk ends there or has grown since: a cluster must begin
within the file, as `qemu-img check` has it. A table must lie in it whole, or what it no longer
names would be missed.

Layouts: QEMU's `docs/interop/qcow2.txt`. What internal snapshots lead to is not looked at: no guest
sees it.
"""

from __future__ import annotations

import array
import functools
import sys
from collections.abc import Callable, Iterator

from skerry.device.disk.header import SECTOR, BadImage, Layout

MAX_FIRST = 32 << 20
"""Largest first table, in bytes: that of QEMU."""

MAX_TABLES = 256 << 20
"""Most bytes of second tables that are looked through: those of a full disk of 2 TiB in clusters of
64 KiB, or of 64 TiB in clusters of 2 MiB. They take one or two seconds, some 15 where all is
compressed; beyond the limit an image is refused."""

_PIECE = 1 << 20
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62

Read = Callable[[int, int], bytes]
"""Returns so many bytes (or, at the end of the file, fewer) from an offset."""


def check_clusters(read: Read, length: int, layout: Layout) -> None:
    """Refuse an image of `length` bytes that is cut off. Raises `BadImage`, `OSError`."""
    if layout.first[1] > MAX_FIRST:
        raise BadImage(f"has a broken qcow2 header: its first table is over {MAX_FIRST} bytes")
    cluster, left, seen = 1 << layout.cluster_bits, MAX_TABLES, set[int]()
    for untrusted in _pieces(read, *layout.first):
        for at in filter(None, _words(_masked(untrusted, (_OFFSET,)))):
            if at in seen:
                continue
            seen.add(at)
            left -= cluster
            if at + cluster > length:
                raise _cut_off(length)
            if left < 0:
                raise BadImage(
                    f"has more than {MAX_TABLES} bytes of tables, too many to look through",
                    fix="give it larger clusters: `qemu-img convert -O qcow2 -o cluster_size=2M`",
                )
            for table in _pieces(read, at, cluster):
                _check_table(table, length, layout)
    for untrusted in _pieces(read, *layout.counts):
        if max(_words(_masked(untrusted, (_OFFSET,))), default=0) >= length:
            raise _cut_off(length)


def _cut_off(length: int) -> BadImage:
    return BadImage(f"is truncated: its tables lead beyond its end, which is at {length} bytes")


def _check_table(untrusted: bytes, length: int, layout: Layout) -> None:
    """Look at a piece of a second table: quickly where it is as most are."""
    masks = (_OFFSET | _COMPRESSED, 0) if layout.extended else (_OFFSET | _COMPRESSED,)
    if max(_words(_masked(untrusted, masks))) < length:
        return
    bits = 62 - (layout.cluster_bits - 8)
    for entry in _words(untrusted)[:: len(masks)]:
        begins = entry & _OFFSET
        if entry & _COMPRESSED:  # by its last sector, of which it says how many sectors on it is
            at, more = entry & (1 << bits) - 1, (entry & _COMPRESSED - 1) >> bits
            begins = (at // SECTOR + more) * SECTOR
        if begins >= length:
            raise _cut_off(length)


def _pieces(read: Read, at: int, long: int) -> Iterator[bytes]:
    """Read a table that lies within the file, a piece at a time. Raises `BadImage`."""
    end = at + long
    while at < end:
        untrusted = read(min(_PIECE, end - at), at)
        if not untrusted or (len(untrusted) % 16 and at + len(untrusted) < end):
            raise BadImage("is truncated: it became shorter while it was looked at")
        yield untrusted
        at += len(untrusted)


def _words(raw: bytes) -> array.array[int]:
    """Return the numbers of 64 bits that a table has, the most significant byte first."""
    words = array.array("Q", raw[: len(raw) & ~7])
    if sys.byteorder == "little":
        words.byteswap()
    return words


def _masked(raw: bytes, masks: tuple[int, ...]) -> bytes:
    """Return a table with its words and masks combined, at once: one by one takes a minute."""
    mask = _repeated(masks, len(raw))
    return (int.from_bytes(raw, "big") & mask).to_bytes(len(raw), "big")


@functools.lru_cache(maxsize=8)
def _repeated(masks: tuple[int, ...], long: int) -> int:
    one = b"".join(mask.to_bytes(8, "big") for mask in masks)
    return int.from_bytes((one * (long // len(one) + 1))[:long], "big")
