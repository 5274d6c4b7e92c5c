"""The rules: access vectors, type rules, extended permissions, conditionals, transitions.

The rule this module keeps: every rule that is returned names classes, types, roles and booleans
that exist.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from skerry.policy.policydb.cursor import Cursor
from skerry.policy.policydb.symbols import Symbols, read_range
from skerry.xsm.flask.model import (
    ALLOW,
    AUDITALLOW,
    AUDITDENY,
    CHANGE,
    MEMBER,
    TRANSITION,
    TYPE_RULES,
    XALLOW,
    XAUDITALLOW,
    XDONTAUDIT,
    Conditional,
    ExtendedRule,
    FileTransition,
    Range,
    RoleTransition,
    TeRule,
    values,
)

XPERM_VERSION = 30

_RULE = struct.Struct("<4HI")
_EXTENDED_SIZE = 8 + 2 + 4 * 8
_BLOCK = 1024
"""How many rules are looked at together."""

_ENABLED = 0x8000
_PLAIN_KINDS = frozenset({ALLOW, AUDITALLOW, AUDITDENY, TRANSITION, MEMBER, CHANGE})
_EXTENDED_KINDS = frozenset({XALLOW, XAUDITALLOW, XDONTAUDIT})
_ROLE_TRANSITION_CLASS, _COMPACT_FILE_TRANSITIONS = 26, 33
MAX_EXPRESSION = 10
"""Deepest stack of a conditional's expression; Linux and Xen refuse deeper ones."""

_OPERATORS = {2: "not", 3: "or", 4: "and", 5: "xor", 6: "==", 7: "!="}


class RuleReader:
    """Reads rule tables with the names that they refer to."""

    def __init__(self, cursor: Cursor, version: int, symbols: Symbols) -> None:
        self.extended: list[ExtendedRule] = []
        self._cursor = cursor
        self._version = version
        self._symbols = symbols

    def rules(self) -> tuple[TeRule, ...]:
        """Read a table of rules; extended ones go into `extended`."""
        left = self._cursor.count(_RULE.size)
        found: list[TeRule] = []
        while left:
            count = min(left, _BLOCK)
            left -= count
            block = self._block(count)
            if block is None:
                for _ in range(count):
                    found += self._rule()
            else:
                found += block
        return tuple(found)

    def _block(self, count: int) -> list[TeRule] | None:
        """Read rules all at once, or None where one of them needs to be looked at closely."""
        cursor = self._cursor
        size = count * _RULE.size
        if size > cursor.left:
            return None
        rules: list[TeRule] = list(
            _RULE.iter_unpack(memoryview(cursor.data)[cursor.offset : cursor.offset + size])
        )
        sources, targets, classes, kinds, _ = map(set, zip(*rules, strict=True))
        types = self._symbols.types.keys()
        if not (sources <= types and targets <= types and classes <= self._symbols.classes.keys()):
            return None
        if not kinds <= _PLAIN_KINDS:
            return None
        if not {rule[4] for rule in rules if rule[3] & TYPE_RULES} <= types:
            return None
        cursor.offset += size
        return rules

    def _rule(self) -> tuple[TeRule, ...]:
        """Read one rule; an extended one goes into `extended`."""
        cursor = self._cursor
        start = cursor.offset
        if _RULE.size > cursor.left:
            raise cursor.fail("the table of rules is cut off")
        source, target, tclass, kind, datum = _RULE.unpack_from(cursor.data, start)
        types = self._symbols.types
        if source not in types or target not in types or tclass not in self._symbols.classes:
            raise cursor.fail("a rule names a type or class that does not exist", start)
        # Conditional rules may carry a stale mark; whether they hold is computed.
        kind &= ~_ENABLED
        if kind in _PLAIN_KINDS:
            if kind & TYPE_RULES and datum not in types:
                raise cursor.fail("a rule names a new type that does not exist", start)
            cursor.offset += _RULE.size
            return ((source, target, tclass, kind, datum),)
        if kind in _EXTENDED_KINDS and self._version >= XPERM_VERSION:
            self.extended.append(self._extended(source, target, tclass, kind))
            return ()
        raise cursor.fail(f"a rule has the unknown kind {kind:#x}", start)

    def _extended(self, source: int, target: int, tclass: int, kind: int) -> ExtendedRule:
        cursor = self._cursor
        cursor.raw(8)
        form, driver = cursor.raw(2)
        cursor.within(form, 1, 3, "form of an extended rule")
        numbers = int.from_bytes(cursor.raw(_EXTENDED_SIZE - 10), "little")
        return ExtendedRule(source, target, tclass, kind, form, driver, numbers)

    def conditionals(self) -> tuple[Conditional, ...]:
        """Read the conditional rules."""
        return tuple(self._conditional() for _ in range(self._cursor.count(16)))

    def _conditional(self) -> Conditional:
        cursor = self._cursor
        cursor.within(cursor.u32(), 0, 0xFFFFFFFF, "state")
        start = cursor.offset
        expression: list[tuple[str, int]] = []
        depth = 0
        for _ in range(cursor.count(8)):
            operation, boolean = cursor.u32s(2)
            if operation == 1 and boolean in self._symbols.booleans:
                step, needed, change = ("bool", boolean), 0, 1
            elif operation in _OPERATORS:
                step, needed = (_OPERATORS[operation], 0), 1 if operation == 2 else 2
                change = 1 - needed
            else:
                raise cursor.fail("a condition has an unknown operator or boolean", start)
            if depth < needed or depth + change > MAX_EXPRESSION:
                raise cursor.fail("a condition's expression does not add up", start)
            depth += change
            expression.append(step)
        if depth != 1:
            raise cursor.fail("a condition's expression does not add up", start)
        before = len(self.extended)
        rules = Conditional(tuple(expression), self.rules(), self.rules())
        if len(self.extended) != before:
            raise cursor.fail("a conditional holds an extended rule, which none can", start)
        return rules

    def role_transitions(self) -> tuple[RoleTransition, ...]:
        """Read the role transitions; before version 26 they hold for the class of what acts."""
        cursor, symbols = self._cursor, self._symbols
        named = self._version >= _ROLE_TRANSITION_CLASS
        found = []
        for _ in range(cursor.count(16 if named else 12)):
            role, kind, new_role = cursor.u32s(3)
            tclass = cursor.u32() if named else 0
            if role not in symbols.roles or new_role not in symbols.roles:
                raise cursor.fail("a role transition names a role that does not exist")
            if kind not in symbols.types or (named and tclass not in symbols.classes):
                raise cursor.fail("a role transition names a type or class that does not exist")
            found.append(RoleTransition(role, kind, tclass, new_role))
        return tuple(found)

    def role_allows(self) -> frozenset[tuple[int, int]]:
        """Read which role may change to which."""
        cursor, roles = self._cursor, self._symbols.roles
        found = set()
        for _ in range(cursor.count(8)):
            role, new_role = cursor.u32s(2)
            if role not in roles or new_role not in roles:
                raise cursor.fail("a role allow names a role that does not exist")
            found.add((role, new_role))
        return frozenset(found)

    def file_transitions(self) -> tuple[FileTransition, ...]:
        """Read the type transitions by name of the new object."""
        found: list[FileTransition] = []
        compact = self._version >= _COMPACT_FILE_TRANSITIONS
        for _ in range(self._cursor.count(16)):
            if compact:
                self._compact_transition(found)
            else:
                name = self._cursor.text(self._cursor.u32())
                source, target, tclass, new = self._cursor.u32s(4)
                found.append(self._file_transition(source, target, tclass, name, new))
        return tuple(found)

    def _compact_transition(self, found: list[FileTransition]) -> None:
        cursor = self._cursor
        name = cursor.text(cursor.u32())
        target, tclass = cursor.u32s(2)
        for _ in range(cursor.count(16)):
            sources = cursor.bitmap(self._symbols.type_count)
            new = cursor.u32()
            if len(found) + sources.bit_count() > len(cursor.data):
                raise cursor.fail("more file transitions than the file has bytes")
            for source in values(sources):
                found.append(self._file_transition(source, target, tclass, name, new))

    def _file_transition(
        self, source: int, target: int, tclass: int, name: str, new: int
    ) -> FileTransition:
        types = self._symbols.types
        if not {source, target, new} <= types.keys() or tclass not in self._symbols.classes:
            raise self._cursor.fail("a transition names a type or class that does not exist")
        return FileTransition(source, target, tclass, name, new)

    def range_transitions(self) -> Mapping[tuple[int, int, int], Range]:
        """Read the range transitions."""
        cursor, symbols = self._cursor, self._symbols
        found: dict[tuple[int, int, int], Range] = {}
        for _ in range(cursor.count(32)):
            start = cursor.offset
            source, target, tclass = cursor.u32s(3)
            span = read_range(cursor)
            if not {source, target} <= symbols.types.keys() or tclass not in symbols.classes:
                raise cursor.fail("a range transition names what does not exist", start)
            symbols.check_level(span.low, span.high)
            found.setdefault((source, target, tclass), span)
        return found
