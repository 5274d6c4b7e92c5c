"""What the first bytes of a disk image say, read without believing them.

The rules: nothing is allocated by what the bytes say; an image that leads to another file, or lies
about its own length, is refused before any program that understands it sees it.

Layouts: QEMU's `docs/interop/qcow2.txt`; the LUKS1 on-disk format specification, section 2.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from skerry.errors import Denied

HEADER_BYTES = 64 << 10
"""How much of an image is read to judge it: the extensions of a qcow2 header lie within."""

MAX_DISK = 64 << 40
"""Largest disk, in bytes; an image that claims more is refused."""

SECTOR = 512
_QCOW2 = b"QFI\xfb"
_LUKS = b"LUKS\xba\xbe"
_FIELDS = struct.Struct(">4sIQIIQIIQQIIQ")  # up to and without the fields of version 3
_FIELDS_3 = struct.Struct(">QQQII")
_DIRTY, _CORRUPT, _DATA_FILE, _EXTENDED = 1 << 0, 1 << 1, 1 << 2, 1 << 4
_KNOWN = 0b11111
_DATA_NAME, _BACKING_FORMAT = 0x44415441, 0xE2792ACA
_PAYLOAD = struct.Struct(">I")


class BadImage(Denied):
    """A disk image that is not served: broken, or not what it should be."""

    code = "DISK-IMAGE"


class Layout(NamedTuple):
    """Where the tables of a qcow2 image are, by its header: offsets and lengths in bytes.

    `first` is the table of tables; `extended`: an entry of these has a second word, which leads
    nowhere. `counts` is the table of reference counts, empty where nobody goes by it.
    """

    cluster_bits: int
    first: tuple[int, int]
    counts: tuple[int, int]
    extended: bool


def is_luks(untrusted: bytes) -> bool:
    """Say whether an image begins as an encrypted one of ours does."""
    return untrusted[:8] == _LUKS + b"\0\x01"


def check_raw(length: int, untrusted: bytes, encrypted: bool, size: int = 0) -> None:
    """Refuse a raw image that is cut off, or has no LUKS header where it must have one.

    `size` is that of the disk by the system file, in bytes; 0 if it says none. Raises `BadImage`
    with words that follow the file's name.
    """
    if length == 0 or length % SECTOR:
        raise BadImage(f"is truncated: {length} bytes are no whole number of sectors of {SECTOR}")
    if length > MAX_DISK:
        raise BadImage(f"is longer than {MAX_DISK} bytes")
    if not encrypted:
        _check_size(length, size)
        return
    if not is_luks(untrusted) or len(untrusted) < 592:
        raise BadImage("is not encrypted, or not as it was made here")
    (payload,) = _PAYLOAD.unpack_from(untrusted, 104)
    if payload * SECTOR > length:
        raise BadImage("is truncated: its LUKS header reaches beyond its end")
    _check_size(length - payload * SECTOR, size)


def _check_size(found: int, size: int) -> None:
    """Refuse a disk that is smaller than the system file says; what is larger was made to grow."""
    if found < size:
        raise BadImage(
            f"is truncated: {found} bytes of a disk that has a `size` of {size} bytes",
            fix="restore the whole image; or, if it is meant to be as it is, correct its `size`",
        )


def check_qcow2(length: int, untrusted: bytes, size: int = 0) -> Layout:
    """Refuse a qcow2 image by its header, and return where the tables are that it leads to.

    `length` is the file's, `untrusted` its first `HEADER_BYTES`; `size`: see `check_raw`. Raises
    `BadImage`: it is none, is broken or cut off, or names another file.
    """
    if len(untrusted) < _FIELDS.size or untrusted[:4] != _QCOW2:
        raise BadImage("is no qcow2 image: it has another beginning")
    (_, version, backing, backing_length, cluster_bits, disk, crypt, l1_size, l1_at) = (
        _FIELDS.unpack_from(untrusted)[:9]
    )
    refcounts_at, refcount_clusters, snapshots, snapshots_at = _FIELDS.unpack_from(untrusted)[9:]
    if version not in (2, 3):
        raise BadImage(f"is a qcow2 image of version {version}; 2 and 3 are known")
    if backing or backing_length:
        raise BadImage("names a backing file; make it one image with `qemu-img convert`")
    if not 9 <= cluster_bits <= 21:
        raise BadImage("has a broken qcow2 header: its cluster size is impossible")
    if not 0 < disk <= MAX_DISK:
        raise BadImage(f"has a broken qcow2 header: a disk has 1 to {MAX_DISK} bytes")
    if crypt:
        raise BadImage("is encrypted, but not as it is done here")
    tables = (
        (l1_at, l1_size * 8),
        (refcounts_at, refcount_clusters << cluster_bits),
        (snapshots_at, 1 if snapshots else 0),
    )
    for start, long in tables:
        if start + long > length or start & ((1 << cluster_bits) - 1):
            raise BadImage("is truncated: its qcow2 tables lie beyond its end")
    features = _check_version_3(untrusted, 1 << cluster_bits) if version == 3 else 0
    _check_size(disk, size)
    # Of an image that was not closed the counts are made anew.
    counts = (0, 0) if features & _DIRTY else tables[1]
    return Layout(cluster_bits, tables[0], counts, bool(features & _EXTENDED))


def _check_version_3(untrusted: bytes, cluster: int) -> int:
    """Refuse what version 3 has besides; return the features that one must know."""
    if len(untrusted) < _FIELDS.size + _FIELDS_3.size:
        raise BadImage("has a broken qcow2 header: it is cut off")
    incompatible, _, _, order, length = _FIELDS_3.unpack_from(untrusted, _FIELDS.size)
    if incompatible & _DATA_FILE:
        raise BadImage("keeps its data in another file; make it one image with `qemu-img convert`")
    if incompatible & _CORRUPT:
        raise BadImage("is marked as corrupt; `qemu-img check -r all` may mend it")
    if incompatible & ~_KNOWN:
        raise BadImage("has a qcow2 header with features that are not known")
    if order > 6 or length < _FIELDS.size + _FIELDS_3.size or length > cluster:
        raise BadImage("has a broken qcow2 header: a field of it is impossible")
    _check_extensions(untrusted[: min(cluster, HEADER_BYTES)], length)
    return int(incompatible)


def _check_extensions(untrusted: bytes, at: int) -> None:
    while at + 8 <= len(untrusted):
        kind, long = struct.unpack_from(">II", untrusted, at)
        if kind == 0:
            return
        if kind in (_DATA_NAME, _BACKING_FORMAT):
            raise BadImage("names another file; make it one image with `qemu-img convert`")
        at += 8 + (long + 7 & ~7)
    raise BadImage("has a broken qcow2 header: its extensions have no end")
