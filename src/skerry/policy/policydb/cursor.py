"""A bounded view of an untrusted file that is read from front to back.

The rules this module keeps: nothing is read past the end; a count is checked against what is left
of the file before anything is made of it; the memory taken by sets is bounded in total; and every
failure is one `PolicyError` that names the offset.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from skerry.errors import PolicyError, Problem

MAX_SET_BITS = 65_536
"""Highest value in a set; types are numbered in 16 bits, and nothing else is more numerous."""

MAX_SETS_BYTES = 48 * 1024 * 1024
"""Memory for all sets of a file together; a file whose sets need more is refused."""

MAX_NAME = 4096
"""Longest name in a policy, in bytes."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_BITMAP_HEAD = struct.Struct("<III")
_BITMAP_NODE = struct.Struct("<IQ")


class Cursor:
    """Reads numbers, names and sets; `offset` is where the next one begins."""

    def __init__(self, untrusted: bytes, file: str) -> None:
        self.data = untrusted
        self.file = file
        self.offset = 0
        self._sets_bytes = 0
        self._sets: dict[bytes, int] = {}

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self.data) - self.offset

    def fail(self, message: str, offset: int | None = None) -> PolicyError:
        """Return the error for damage here, or at another offset."""
        at = self.offset if offset is None else offset
        return PolicyError([Problem(self.file, 0, f"damaged policy at offset {at}: {message}")])

    def _need(self, size: int) -> int:
        start = self.offset
        if size > len(self.data) - start:
            raise self.fail(f"{size} bytes are needed, {len(self.data) - start} are left")
        self.offset = start + size
        return start

    def raw(self, size: int) -> bytes:
        """Return the next bytes."""
        start = self._need(size)
        return self.data[start : self.offset]

    def u32(self) -> int:
        """Return the next number of 32 bits."""
        number: int = _U32.unpack_from(self.data, self._need(4))[0]
        return number

    def u64(self) -> int:
        """Return the next number of 64 bits."""
        number: int = _U64.unpack_from(self.data, self._need(8))[0]
        return number

    def u32s(self, count: int) -> tuple[int, ...]:
        """Return the next `count` numbers; `count` is the caller's own, never the file's."""
        return struct.unpack_from(f"<{count}I", self.data, self._need(4 * count))

    def count(self, item_size: int) -> int:
        """Return how many items follow, each of at least `item_size` bytes."""
        start = self.offset
        count = self.u32()
        return self.check_count(count, item_size, start)

    def check_count(self, count: int, item_size: int, offset: int) -> int:
        """Return a count that was read, if as many items can still follow."""
        if count * item_size > self.left:
            raise self.fail(f"{count} items announced, {self.left} bytes left", offset)
        return count

    def within(self, number: int, low: int, high: int, what: str) -> int:
        """Return a number just read if it lies between two bounds, both included."""
        if not low <= number <= high:
            raise self.fail(f"{what} is {number}, not from {low} to {high}")
        return number

    def identifier(self, length: int) -> str:
        """Return a name of the policy language: printable ASCII without blanks and colons."""
        start = self.offset
        self.within(length, 1, MAX_NAME, "length of a name")
        untrusted = self.raw(length)
        try:
            name = untrusted.decode("ascii")
        except UnicodeDecodeError:
            raise self.fail("a name is not ASCII", start) from None
        if not name.isprintable() or " " in name or ":" in name:
            raise self.fail("a name has a character that names cannot have", start)
        return name

    def text(self, length: int) -> str:
        """Return a file name or path, which may hold any bytes; odd ones are escaped."""
        self.within(length, 0, MAX_NAME, "length of a text")
        return self.raw(length).decode("utf-8", "backslashreplace")

    def bitmap(self, most: int = MAX_SET_BITS) -> int:
        """Return a set, as an `int`. No value in it is greater than `most`."""
        start = self.offset
        unit, high, nodes = _BITMAP_HEAD.unpack_from(self.data, self._need(12))
        if unit != 64:
            raise self.fail(f"a set has units of {unit} bits, not 64", start)
        self.check_count(nodes, 12, start)
        if nodes * 64 > MAX_SET_BITS or high > MAX_SET_BITS:
            raise self.fail(f"a set goes up to {high}, at most {MAX_SET_BITS} are allowed", start)
        body = self.raw(12 * nodes)
        known = self._sets.get(body)
        if known is None:
            known = self._sets[body] = self._assemble(body, high, start)
        if known.bit_length() > most:
            raise self.fail(f"a set names {known.bit_length()}, at most {most} exist", start)
        return known

    def _assemble(self, body: bytes, high: int, start: int) -> int:
        packed = bytearray()
        for position, unit in _nodes(body):
            if position % 64 or position // 8 < len(packed) or position >= high:
                raise self.fail("the units of a set are out of order", start)
            packed += bytes(position // 8 - len(packed)) + unit.to_bytes(8, "little")
        # The body stays too, as the key under which the same set is found again.
        self._sets_bytes += len(packed) + len(body) + 128
        if self._sets_bytes > MAX_SETS_BYTES:
            raise self.fail(f"the sets of this policy need over {MAX_SETS_BYTES} bytes", start)
        return int.from_bytes(packed, "little")

    def forget_sets(self) -> None:
        """Free the table of sets that were read, once reading is done."""
        self._sets.clear()


def _nodes(body: bytes) -> Iterator[tuple[int, int]]:
    return _BITMAP_NODE.iter_unpack(body)
