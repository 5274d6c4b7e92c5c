"""From the bytes of a compiled policy to the frozen model.

The format is that of libsepol's `policydb_write` and of Linux's and Xen's `policydb_read`, for
versions 24 to 33 and the targets SELinux and Xen.

The rule this module keeps: whatever the bytes, the result is a model in which every reference
holds, or one `PolicyError` that names the offset.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from skerry.policy.policydb.cursor import Cursor
from skerry.policy.policydb.objects import ObjectReader, table_counts
from skerry.policy.policydb.rules import RuleReader
from skerry.policy.policydb.symbols import Symbols
from skerry.xsm.flask.model import OBJECT_ROLE, FlaskPolicy, Flavour

MAGIC = bytes.fromhex("8cff7cf9")
"""The first bytes of every compiled policy."""

VERSIONS = range(24, 34)
"""Versions of the format that are read."""

_TARGETS: dict[bytes, Flavour] = {b"SE Linux": "selinux", b"XenFlask": "xen"}
_TABLES = 8
_MLS, _REJECT_UNKNOWN, _ALLOW_UNKNOWN = 1, 2, 4


def read_policydb(untrusted: bytes, file: str) -> FlaskPolicy:
    """Read a compiled policy. Raises `PolicyError`, with the offset of the damage."""
    cursor = Cursor(untrusted, file)
    flavour, version, config = _header(cursor)
    mls = bool(config & _MLS)
    capabilities, permissive = cursor.bitmap(), cursor.bitmap()
    symbols = Symbols(cursor, version)
    reader = RuleReader(cursor, version, symbols)
    rules = reader.rules()
    conditionals = reader.conditionals()
    role_transitions, role_allows = reader.role_transitions(), reader.role_allows()
    file_transitions = reader.file_transitions() if version >= 25 else ()
    objects = ObjectReader(cursor, flavour, version, mls, symbols)
    contexts = (*objects.contexts(), *objects.file_systems())
    ranges = reader.range_transitions()
    attributes = _attributes(cursor, symbols)
    if cursor.left:
        raise cursor.fail(f"{cursor.left} bytes follow the end of the policy")
    if OBJECT_ROLE not in symbols.roles:
        raise cursor.fail("the role object_r is missing")
    cursor.forget_sets()
    return FlaskPolicy(
        file,
        hashlib.sha256(untrusted).hexdigest(),
        flavour,
        version,
        mls,
        _unknown(config),
        capabilities,
        permissive,
        symbols.commons,
        symbols.classes,
        symbols.roles,
        symbols.types,
        symbols.users,
        symbols.booleans,
        symbols.sensitivities,
        symbols.categories,
        rules,
        conditionals,
        tuple(reader.extended),
        role_transitions,
        role_allows,
        file_transitions,
        contexts,
        ranges,
        attributes,
    )


def _header(cursor: Cursor) -> tuple[Flavour, int, int]:
    if cursor.raw(len(MAGIC)) != MAGIC:
        raise cursor.fail("not a compiled policy", 0)
    length = cursor.within(cursor.u32(), 8, 8, "length of the target's name")
    target = cursor.raw(length)
    if target not in _TARGETS:
        raise cursor.fail(f"the target is {target!r}; known are SE Linux and XenFlask", 8)
    flavour = _TARGETS[target]
    start = cursor.offset
    version, config, tables, contexts = cursor.u32s(4)
    if version not in VERSIONS:
        raise cursor.fail(f"version {version}; 24 to 33 are read", start)
    if tables != _TABLES or contexts != table_counts(flavour, version):
        raise cursor.fail(f"{tables} and {contexts} tables do not fit version {version}", start)
    if config & ~(_MLS | _REJECT_UNKNOWN | _ALLOW_UNKNOWN):
        raise cursor.fail(f"unknown settings {config:#x}", start + 4)
    return flavour, version, config


def _unknown(config: int) -> Literal["deny", "reject", "allow"]:
    if config & _REJECT_UNKNOWN:
        return "reject"
    return "allow" if config & _ALLOW_UNKNOWN else "deny"


def _attributes(cursor: Cursor, symbols: Symbols) -> dict[int, int]:
    """Read, for each type, the set of itself and its attributes."""
    cursor.check_count(symbols.type_count, 12, cursor.offset)
    found: dict[int, int] = {}
    for value in range(1, symbols.type_count + 1):
        attributes = cursor.bitmap(symbols.type_count)
        # Linux and Xen add the type itself, which some writers leave out.
        found[value] = attributes | 1 << value - 1
    return found
