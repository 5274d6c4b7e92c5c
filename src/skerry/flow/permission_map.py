"""The permission map: which way information flows when a permission is used, and how much.

Two forms are read, by their content: the one in TOML that `maps/selinux.toml` and `maps/xen.toml`
have, and that of SETools and apol (`perm_map`). A map is data: the user's own takes the place of
the shipped one as a whole.

The rule this module keeps: a permission that the map lacks is never taken for one without a flow;
it is reported, by class.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from importlib import resources
from typing import Any, Literal

import msgspec

from skerry.errors import InputError, Problem
from skerry.xsm.flask.model import ALLOW, FlaskPolicy, Flavour, PolicyClass, TeRule

MAX_MAP_BYTES = 1 << 20
"""Longest permission map; a longer one is refused."""

MAX_WEIGHT = 10
"""Highest weight of a permission, as in SETools; a higher one is refused."""

Direction = Literal["r", "w", "b", "none"]

_KEY = re.compile(r"(?:([rwb])(10|[1-9])|(none))[a-z]?")
_SETOOLS: dict[str, Direction] = {"r": "r", "w": "w", "b": "b", "n": "none"}
_MAX_INHERITANCE = 8


class Flow(msgspec.Struct, frozen=True):
    """What one permission lets flow: `r` from target to subject, `w` the other way, `b` both."""

    direction: Direction
    weight: int = 0


class Masks(msgspec.Struct, frozen=True):
    """For one class, the permissions that let read, those that let write, those not in the map."""

    read: int
    write: int
    unknown: int


class PermissionMap(msgspec.Struct, frozen=True):
    """A map: by class and permission what flows. `digest` is that of its meaning."""

    file: str
    digest: str
    classes: Mapping[str, Mapping[str, Flow]]

    def masks(self, tclass: PolicyClass, min_weight: int = 1) -> Masks:
        """Return the access vectors of a policy's class that count from a weight on."""
        known = self.classes.get(tclass.name, {})
        read = write = unknown = 0
        for bit, name in enumerate(tclass.permissions):
            if not name:
                continue
            flow = known.get(name)
            if flow is None:
                unknown |= 1 << bit
            elif flow.weight >= min_weight:
                read |= (flow.direction in ("r", "b")) << bit
                write |= (flow.direction in ("w", "b")) << bit
        return Masks(read, write, unknown)

    def lacking(self, policy: FlaskPolicy, rules: Iterable[TeRule]) -> dict[str, tuple[str, ...]]:
        """Return, by class, the permissions that the rules grant and this map lacks."""
        unknown = {value: self.masks(tclass).unknown for value, tclass in policy.classes.items()}
        found: dict[int, int] = {}
        for _, _, tclass, kind, vector in rules:
            if kind == ALLOW and vector & unknown[tclass]:
                found[tclass] = found.get(tclass, 0) | vector & unknown[tclass]
        classes = policy.classes
        named = {classes[value].name: classes[value].names(bits) for value, bits in found.items()}
        return dict(sorted(named.items()))

    def without(self, classes: Collection[str], policy: FlaskPolicy) -> PermissionMap:
        """Return the map in which some of a policy's classes let nothing flow.

        Raises `InputError` for a class that the policy lacks.
        """
        if not classes:
            return self
        changed = dict(self.classes)
        for name in classes:
            known = policy.class_named(name)
            if known is None:
                raise InputError([Problem(policy.file, 0, f"the policy has no class {name!r}")])
            changed[name] = dict.fromkeys(filter(None, known.permissions), Flow("none"))
        return PermissionMap(self.file, _digest(changed), changed)

    def setools(self) -> str:
        """Write the map in the form that SETools reads."""
        lines = [str(len(self.classes))]
        for tclass, permissions in self.classes.items():
            lines += ["", f"class {tclass} {len(permissions)}"]
            for name, flow in permissions.items():
                direction = "n" if flow.direction == "none" else flow.direction
                lines.append(f"{name:>30} {direction} {max(1, flow.weight):>2}")
        return "\n".join(lines) + "\n"


def shipped_map(flavour: Flavour) -> PermissionMap:
    """Return the map for SELinux's classes or for Xen's."""
    file = resources.files("skerry.flow") / "maps" / f"{flavour}.toml"
    return read_map(file.read_bytes(), f"{flavour}.toml")


def map_for(policy: FlaskPolicy) -> PermissionMap:
    """Return the shipped map for a policy. One compiled for SELinux may have Xen's classes."""
    own = shipped_map(policy.flavour)
    lacking = {known.name for known in policy.classes.values()} - own.classes.keys()
    if policy.flavour == "xen" or not lacking:
        return own
    xen = shipped_map("xen").classes
    more = {name: xen[name] for name in sorted(lacking & xen.keys())}
    if not more:
        return own
    classes = {**own.classes, **more}
    return PermissionMap(own.file, _digest(classes), classes)


def read_map(untrusted: bytes, file: str) -> PermissionMap:
    """Read a permission map in either form. Raises `InputError` with every problem."""
    if len(untrusted) > MAX_MAP_BYTES:
        raise InputError([Problem(file, 0, f"longer than {MAX_MAP_BYTES} bytes")])
    try:
        text = untrusted.decode()
    except UnicodeDecodeError as error:
        raise InputError([Problem(file, 0, f"not in UTF-8 (byte {error.start})")]) from None
    written = [line for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]
    in_setools_form = bool(written) and written[0].strip().isdigit()
    classes = _SetoolsReader(file).read(text) if in_setools_form else _from_toml(text, file)
    if not classes:
        raise InputError([Problem(file, 0, "a permission map without a class")])
    return PermissionMap(file, _digest(classes), classes)


def _digest(classes: Mapping[str, Mapping[str, Flow]]) -> str:
    meaning = sorted(
        (tclass, name, flow.direction, flow.weight)
        for tclass, permissions in classes.items()
        for name, flow in permissions.items()
    )
    return hashlib.sha256(msgspec.json.encode(meaning)).hexdigest()


def _from_toml(text: str, file: str) -> dict[str, dict[str, Flow]]:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError([Problem(file, 0, f"not a permission map: {error}")]) from None
    reader = _TomlReader(file, tables)
    found = {name: reader.permissions("class", name) for name in reader.names("class")}
    for name in reader.names("common"):  # also those that no class has
        reader.permissions("common", name)
    if reader.problems:
        raise InputError(list(dict.fromkeys(reader.problems)))
    return found


class _TomlReader:
    def __init__(self, file: str, tables: Mapping[str, Any]) -> None:
        self.problems: list[Problem] = []
        self._file = file
        self._tables = tables
        for name in sorted(tables.keys() - {"class", "common"}):
            self._say(f"unknown table {name!r}; a map has class and common")

    def names(self, kind: str) -> list[str]:
        table = self._tables.get(kind, {})
        return list(table) if isinstance(table, dict) else []

    def permissions(self, kind: str, name: str, depth: int = 0) -> dict[str, Flow]:
        table = self._tables.get(kind, {})
        body = table.get(name) if isinstance(table, dict) else None
        if not isinstance(body, dict):
            self._say(f"there is no table [{kind}.{name}]")
            return {}
        if depth > _MAX_INHERITANCE:
            self._say(f"[{kind}.{name}] is like itself")
            return {}
        found: dict[str, Flow] = {}
        for key, parent in (("common", "common"), ("like", "class")):
            if isinstance(body.get(key), str):
                found |= self.permissions(parent, body[key], depth + 1)
        for key, value in body.items():
            if key not in ("common", "like"):
                self._line(f"[{kind}.{name}]", key, value, found)
            elif not isinstance(value, str):
                self._say(f"[{kind}.{name}] {key} must be a name")
        return found

    def _line(self, where: str, key: str, value: object, found: dict[str, Flow]) -> None:
        match = _KEY.fullmatch(key)
        if match is None:
            self._say(f"{where} has {key!r}; keys are r, w or b with a weight of 1 to 10, or none")
            return
        if not isinstance(value, str):
            self._say(f'{where} {key} must be a text of permissions: {key} = "read getattr"')
            return
        direction: Direction = match[1] or "none"  # type: ignore[assignment]  # r, w or b
        flow = Flow(direction, int(match[2] or 0))
        for permission in value.split():
            if permission in found:
                self._say(f"{where} has {permission!r} twice")
            found[permission] = flow

    def _say(self, message: str) -> None:
        self.problems.append(Problem(self._file, 0, message))


class _SetoolsReader:
    """Reads SETools' form. Its counts are not needed, so wrong ones are no error, as in apol."""

    def __init__(self, file: str) -> None:
        self._file = file

    def read(self, text: str) -> dict[str, dict[str, Flow]]:
        found: dict[str, dict[str, Flow]] = {}
        here: dict[str, Flow] | None = None
        counted = False
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if not counted:
                counted = True
            elif words[0] == "class":
                if len(words) < 2:
                    raise self._fail(number, "a class without a name")
                here = found.setdefault(words[1], {})
            elif here is None:
                raise self._fail(number, "a permission before the first class")
            elif flow := self._flow(number, words):
                here[words[0]] = flow
        return found

    def _flow(self, number: int, words: list[str]) -> Flow | None:
        if len(words) not in (2, 3):
            raise self._fail(number, "a line is a permission, a direction and a weight")
        weight = words[2] if len(words) == 3 else str(MAX_WEIGHT)
        if not weight.isdigit() or not 1 <= int(weight[:9]) <= MAX_WEIGHT:
            raise self._fail(number, f"a weight is a number of 1 to {MAX_WEIGHT}")
        if words[1] == "u":  # SETools' mark for "not mapped yet"
            return None
        if words[1] not in _SETOOLS:
            raise self._fail(number, f"{words[1]!r} is no direction; there are r, w, b and n")
        direction = _SETOOLS[words[1]]
        return Flow(direction, 0 if direction == "none" else int(weight))

    def _fail(self, line: int, message: str) -> InputError:
        return InputError([Problem(self._file, line, message)])
