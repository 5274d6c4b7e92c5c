"""The eight tables of names: commons, classes, roles, types, users, booleans, levels, categories.

The rules this module keeps: a name and a value stand for one thing; a value lies within the
number that the table announces; what one table says of another is checked once both are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from skerry.policy.policydb.constraints import MAX_TERMS, read_constraints
from skerry.policy.policydb.cursor import Cursor
from skerry.xsm.flask.model import (
    NO_RANGE,
    Boolean,
    Category,
    Level,
    PolicyClass,
    PolicyType,
    Range,
    Role,
    Sensitivity,
    User,
)

MAX_VALUE = 65_535
"""Highest value in any table: rules hold classes and types in 16 bits."""

PERMISSIONS = 32
"""Most permissions of a class: an access vector has 32 bits."""

_NEW_OBJECT_DEFAULTS, _DEFAULT_TYPE = 27, 28
_MAX_BOUNDS = 4
_T = TypeVar("_T", Role, PolicyType, User, Boolean, Category, PolicyClass)


class Symbols:
    """All tables of a file, by value; filled in the file's order."""

    def __init__(self, cursor: Cursor, version: int) -> None:
        self.commons: dict[str, tuple[str, ...]] = {}
        self.classes: dict[int, PolicyClass] = {}
        self.roles: dict[int, Role] = {}
        self.types: dict[int, PolicyType] = {}
        self.users: dict[int, User] = {}
        self.booleans: dict[int, Boolean] = {}
        self.sensitivities: dict[int, Sensitivity] = {}
        self.categories: dict[int, Category] = {}
        self.type_count = 0
        self._cursor = cursor
        self._version = version
        self._names: set[str] = set()
        self._most = 0
        self._known = 0
        self._terms = 0
        for read in (
            self._common,
            self._class,
            self._role,
            self._type,
            self._user,
            self._boolean,
            self._sensitivity,
            self._category,
        ):
            self._table(read)
        self._check()

    def _table(self, read: Callable[[], None]) -> None:
        cursor = self._cursor
        self._most = cursor.within(cursor.u32(), 0, MAX_VALUE, "number of a table's values")
        self._names = set()
        for _ in range(cursor.count(8)):
            read()
        if read == self._type:
            self.type_count = self._most

    def _name(self, length: int) -> str:
        start = self._cursor.offset
        name = self._cursor.identifier(length)
        if name in self._names:
            raise self._cursor.fail(f"the name {name} stands twice in its table", start)
        self._names.add(name)
        return name

    def _value(self, value: int) -> int:
        return self._cursor.within(value, 1, self._most, "value of a name")

    def _put(self, table: dict[int, _T], item: _T) -> None:
        if item.value in table:
            raise self._cursor.fail(f"{item.name} has the value of {table[item.value].name}")
        table[item.value] = item

    def _permissions(self, count: int, inherited: tuple[str, ...]) -> tuple[str, ...]:
        """Read a class's own permissions and return them with the inherited ones, by bit."""
        cursor = self._cursor
        cursor.check_count(count, 9, cursor.offset)
        cursor.within(count, 0, PERMISSIONS, "number of permissions")
        names = [*inherited, *[""] * (PERMISSIONS - len(inherited))]
        for _ in range(count):
            length, value = cursor.u32s(2)
            cursor.within(value, 1, PERMISSIONS, "value of a permission")
            name = cursor.identifier(length)
            if names[value - 1] or name in names:
                raise cursor.fail(f"the permission {name} is not the only one of its kind")
            names[value - 1] = name
        while names and not names[-1]:
            names.pop()
        return tuple(names)

    def _common(self) -> None:
        length, value, _, count = self._cursor.u32s(4)
        self._value(value)
        name = self._name(length)
        self.commons[name] = self._permissions(count, ())

    def _class(self) -> None:
        cursor = self._cursor
        length, common_length, value, _, count, constraints = cursor.u32s(6)
        self._value(value)
        name = self._name(length)
        common = cursor.identifier(common_length) if common_length else ""
        if common and common not in self.commons:
            raise cursor.fail(f"class {name} inherits the unknown common {common}")
        permissions = self._permissions(count, self.commons.get(common, ()))
        known = sum(1 << bit for bit, permission in enumerate(permissions) if permission)
        always = read_constraints(cursor, constraints, self._version, known, False)
        trans = read_constraints(cursor, cursor.u32(), self._version, known, True)
        self._terms += sum(len(constraint.terms) for constraint in (*always, *trans))
        cursor.within(self._terms, 0, MAX_TERMS, "number of terms of all constraints")
        user = role = rank = kind = 0
        if self._version >= _NEW_OBJECT_DEFAULTS:
            user, role, rank = cursor.u32s(3)
        if self._version >= _DEFAULT_TYPE:
            kind = cursor.u32()
        if max(user, role, kind) > 2 or rank > 7:
            raise cursor.fail(f"class {name} has unknown defaults for new objects")
        item = PolicyClass(name, value, permissions, common, always, trans, user, role, rank, kind)
        self._put(self.classes, item)

    def _role(self) -> None:
        length, value, bounds = self._cursor.u32s(3)
        name = self._name(length)
        dominates = self._cursor.bitmap(self._most)
        types = self._cursor.bitmap()
        self._put(self.roles, Role(name, self._value(value), bounds, dominates, types))

    def _type(self) -> None:
        length, value, properties, bounds = self._cursor.u32s(4)
        name = self._name(length)
        self._value(value)
        primary, attribute = properties & 1, bool(properties & 2)
        known = self.types.get(value)
        if primary or attribute:
            aliases = known.aliases if known else ()
            if known and known.name:
                raise self._cursor.fail(f"{name} has the value of {known.name}")
            self.types[value] = PolicyType(name, value, attribute, bounds, aliases)
        elif known:
            self.types[value] = msgspec.structs.replace(known, aliases=(*known.aliases, name))
        else:
            self.types[value] = PolicyType("", value, aliases=(name,))

    def _user(self) -> None:
        length, value, bounds = self._cursor.u32s(3)
        name = self._name(length)
        roles = self._cursor.bitmap()
        span = read_range(self._cursor)
        item = User(name, self._value(value), bounds, roles, span, read_level(self._cursor))
        self._put(self.users, item)

    def _boolean(self) -> None:
        value, state, length = self._cursor.u32s(3)
        self._cursor.within(state, 0, 1, "state of a boolean")
        self._put(self.booleans, Boolean(self._name(length), self._value(value), bool(state)))

    def _sensitivity(self) -> None:
        length, alias = self._cursor.u32s(2)
        name = self._name(length)
        level = read_level(self._cursor)
        rank = self._value(level.sensitivity)
        known = self.sensitivities.get(rank)
        aliases = known.aliases if known else ()
        if alias:
            first = known.name if known else ""
            level = known.level if known and first else level
            self.sensitivities[rank] = Sensitivity(first, level, (*aliases, name))
        elif known and known.name:
            raise self._cursor.fail(f"{name} has the rank of {known.name}")
        else:
            self.sensitivities[rank] = Sensitivity(name, level, aliases)

    def _category(self) -> None:
        length, value, alias = self._cursor.u32s(3)
        name = self._name(length)
        known = self.categories.get(self._value(value))
        aliases = known.aliases if known else ()
        if alias:
            first = known.name if known else ""
            self.categories[value] = Category(first, value, (*aliases, name))
        elif known and known.name:
            raise self._cursor.fail(f"{name} has the value of {known.name}")
        else:
            self.categories[value] = Category(name, value, aliases)

    def _check(self) -> None:
        """Check what the tables say of one another. Raises `PolicyError` at the tables' end."""
        fail = self._cursor.fail
        tables = (self.types, self.sensitivities, self.categories)
        if not all(item.name for table in tables for item in table.values()):
            raise fail("an alias stands for a name that is missing")
        types, roles = set_of(self.types), set_of(self.roles)
        self._known = set_of(self.categories)
        for role in self.roles.values():
            if role.types & ~types or role.dominates & ~roles:
                raise fail(f"role {role.name} has types or roles that do not exist")
        for user in self.users.values():
            if user.roles & ~roles:
                raise fail(f"user {user.name} has roles that do not exist")
            if user.range != NO_RANGE or user.default_level != NO_RANGE.low:
                self.check_level(user.range.low, user.range.high, user.default_level)
        for sensitivity in self.sensitivities.values():
            self.check_level(sensitivity.level)
        for table in (self.roles, self.users, self.types):
            _check_bounds(self._cursor, table)

    def check_level(self, *levels: Level) -> None:
        """Raise `PolicyError` unless sensitivities and categories of all levels exist."""
        for level in levels:
            if level.sensitivity not in self.sensitivities or level.categories & ~self._known:
                raise self._cursor.fail("a level names what does not exist")


def set_of(table: dict[int, _T] | dict[int, Sensitivity]) -> int:
    """Return the set of a table's values."""
    bits = bytearray(MAX_VALUE // 8 + 1)
    for value in table:
        bits[(value - 1) // 8] |= 1 << (value - 1) % 8
    return int.from_bytes(bits, "little")


def read_level(cursor: Cursor) -> Level:
    """Read one level; that it exists is checked by the caller."""
    return Level(cursor.u32(), cursor.bitmap())


def read_range(cursor: Cursor) -> Range:
    """Read a range, which the file shortens where low and high are the same."""
    parts = cursor.within(cursor.u32(), 1, 2, "number of levels in a range")
    ranks = cursor.u32s(parts)
    low = Level(ranks[0], cursor.bitmap())
    return Range(low, Level(ranks[1], cursor.bitmap()) if parts == 2 else low)


def _check_bounds(
    cursor: Cursor, table: dict[int, Role] | dict[int, User] | dict[int, PolicyType]
) -> None:
    for item in table.values():
        depth, value = 0, item.bounds
        while value:
            parent = table.get(value)
            depth += 1
            if parent is None or depth == _MAX_BOUNDS:
                raise cursor.fail(f"{item.name} is bounded by nothing, in a circle or too deep")
            if isinstance(parent, PolicyType) and parent.attribute:
                raise cursor.fail(f"{item.name} is bounded by the attribute {parent.name}")
            value = parent.bounds
