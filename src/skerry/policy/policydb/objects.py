"""Contexts that the policy itself assigns: initial SIDs, ports, devices, file systems.

The rule this module keeps: every context that is returned is made of names that exist.
"""

from __future__ import annotations

from collections.abc import Callable

from skerry.policy.policydb.cursor import Cursor
from skerry.policy.policydb.symbols import Symbols, read_range
from skerry.xsm.flask.model import NO_RANGE, Context, Flavour, ObjectContext

_KINDS: dict[Flavour, tuple[str, ...]] = {
    "selinux": (
        "sid",
        "fscon",
        "portcon",
        "netifcon",
        "nodecon",
        "fs_use",
        "nodecon6",
        "ibpkeycon",
        "ibendportcon",
    ),
    "xen": ("sid", "pirqcon", "ioportcon", "iomemcon", "pcidevicecon", "devicetreecon"),
}
"""The tables of each target, in the file's order; older versions lack the last ones."""

_WIDE_MEMORY_VERSION = 30
_Key = tuple[int | str, ...]


def table_counts(flavour: Flavour, version: int) -> int:
    """Return how many tables of contexts a file of this version has."""
    if flavour == "xen":
        return 6 if version >= 30 else 5
    return 9 if version >= 31 else 7


class ObjectReader:
    """Reads the tables of contexts."""

    def __init__(
        self, cursor: Cursor, flavour: Flavour, version: int, mls: bool, symbols: Symbols
    ) -> None:
        self._cursor = cursor
        self._flavour = flavour
        self._version = version
        self._mls = mls
        self._symbols = symbols

    def contexts(self) -> tuple[ObjectContext, ...]:
        """Read all tables, in the file's order."""
        found: list[ObjectContext] = []
        for kind in _KINDS[self._flavour][: table_counts(self._flavour, self._version)]:
            # A context is three numbers and a range of at least two numbers and a set.
            for _ in range(self._cursor.count(36)):
                key, contexts = self._key(kind)
                found.append(
                    ObjectContext(kind, key, tuple(self._context() for _ in range(contexts)))
                )
        return tuple(found)

    def file_systems(self) -> tuple[ObjectContext, ...]:
        """Read the contexts of files in file systems without labels (genfscon)."""
        cursor = self._cursor
        found: list[ObjectContext] = []
        for _ in range(cursor.count(8)):
            system = cursor.text(cursor.u32())
            for _ in range(cursor.count(44)):
                path = cursor.text(cursor.u32())
                tclass = cursor.u32()
                key = (system, path, tclass)
                found.append(ObjectContext("genfscon", key, (self._context(),)))
        return tuple(found)

    def _key(self, kind: str) -> tuple[_Key, int]:
        cursor = self._cursor
        numbers: dict[str, int] = {
            "sid": 1,
            "pirqcon": 1,
            "pcidevicecon": 1,
            "ioportcon": 2,
            "nodecon": 2,
            "portcon": 3,
            "ibpkeycon": 4,
            "nodecon6": 8,
        }
        if kind in numbers:
            return cursor.u32s(numbers[kind]), 1
        special: dict[str, Callable[[], tuple[_Key, int]]] = {
            "fscon": lambda: ((cursor.text(cursor.u32()),), 2),
            "netifcon": lambda: ((cursor.text(cursor.u32()),), 2),
            "devicetreecon": lambda: ((cursor.text(cursor.u32()),), 1),
            "iomemcon": self._memory,
            "fs_use": self._named,
            "ibendportcon": self._named_after,
        }
        return special[kind]()

    def _memory(self) -> tuple[_Key, int]:
        if self._version >= _WIDE_MEMORY_VERSION:
            return (self._cursor.u64(), self._cursor.u64()), 1
        return self._cursor.u32s(2), 1

    def _named(self) -> tuple[_Key, int]:
        behaviour, length = self._cursor.u32s(2)
        return (behaviour, self._cursor.text(length)), 1

    def _named_after(self) -> tuple[_Key, int]:
        length, port = self._cursor.u32s(2)
        return (self._cursor.text(length), port), 1

    def _context(self) -> Context:
        cursor, symbols = self._cursor, self._symbols
        start = cursor.offset
        user, role, kind = cursor.u32s(3)
        span = read_range(cursor)
        known = user in symbols.users and role in symbols.roles and kind in symbols.types
        if not known:
            raise cursor.fail("a context names what does not exist", start)
        if self._mls:
            symbols.check_level(span.low, span.high)
        return Context(user, role, kind, span if self._mls else NO_RANGE)
