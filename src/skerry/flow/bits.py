"""Sets of small numbers as Python's whole numbers: bit `n` stands for member `n`.

The rule this module keeps: what is done for each member of a large set is done by code in C.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import compress
from operator import or_
from typing import TypeVar

_Thing = TypeVar("_Thing")
_Key = TypeVar("_Key")

_DIGITS = bytes.maketrans(b"01", b"\0\1")
_SPARSE = 24
"""Sets of at most this many members are gone through bit by bit, which is then quicker."""


def marks(bits: int) -> bytes:
    """Return a byte for each number from 0 on, 1 for a member of the set, 0 for the others."""
    return f"{bits:b}".encode().translate(_DIGITS)[::-1]


def members(bits: int) -> Sequence[int]:
    """Return the members in ascending order."""
    if bits.bit_count() > _SPARSE:
        return list(compress(range(bits.bit_length()), marks(bits)))
    return list(each(bits))


def picked(things: Sequence[_Thing], bits: int) -> tuple[_Thing, ...]:
    """Return the things whose places are in a set, in their order."""
    return tuple(compress(things, marks(bits)))


def each(bits: int) -> Iterator[int]:
    """Yield the members in ascending order, one at a time: for sets that are left early."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


def bitset(numbers: Iterable[int]) -> int:
    """Return the set of some numbers."""
    return reduce(or_, (1 << number for number in numbers), 0)


def union(rows: Sequence[int], bits: int) -> int:
    """Return all that the rows of a set's members hold."""
    return reduce(or_, compress(rows, marks(bits)), 0)


def gathered(sets: Iterable[tuple[_Key, int]]) -> dict[_Key, int]:
    """Return for each key all that the sets with that key hold, in the order of the keys."""
    found: dict[_Key, int] = {}
    for key, held in sets:
        found[key] = found.get(key, 0) | held
    return found
