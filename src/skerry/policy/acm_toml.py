"""The TOML form of an ACM policy: the same model as sHype's XML, easier to write.

    [policy]
    name = "example.two-banks"
    version = "1.0"                     # major.minor
    bootstrap = "dom0"                  # the owner's label (Xen: domain 0)
    # optional: url, reference, date, namespace-url (texts),
    # primary = "simple-type-enforcement" | "chinese-wall",
    # from = { name = "example.two-banks", version = "0.9" }    for an update

    [simple-type-enforcement]           # optional; who may share with whom
    types = ["bank-a", "bank-b"]

    [chinese-wall]                      # optional; who may run beside whom
    types = ["bank-a", "bank-b"]

    [[chinese-wall.conflicts]]
    name = "banks"
    types = ["bank-a", "bank-b"]
    history = true                      # optional: what was once touched keeps counting

    [labels.broker-a]                   # labels for domains, in the order of the file
    ste = ["bank-a"]
    cw = ["bank-a"]
    from = "broker"                     # optional: its name in the policy this one updates

    [resources.ledger-a]                # labels for resources: exactly one type
    ste = "bank-a"

    [[assert]]                          # optional: what must never be possible
    never = "bank-a -> bank-b"

The rule this module keeps: unknown keys, wrong kinds of values and all inconsistencies are errors
with their lines, all of them at once; both forms carry everything the model holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TypeVar

from skerry.errors import InputError, PolicyError, Problem
from skerry.system.toml_lines import Path, TomlDocument, parse_toml
from skerry.xsm.acm.check import find_problems, without_echoes
from skerry.xsm.acm.model import (
    AcmPolicy,
    Component,
    ConflictSet,
    FromPolicy,
    ResourceLabel,
    TypeName,
    VmLabel,
)

_PRIMARY: dict[str, Component] = {
    "simple-type-enforcement": "SimpleTypeEnforcement",
    "chinese-wall": "ChineseWall",
}
_HEADER = {"url": "url", "reference": "reference", "date": "date", "namespace-url": "namespace_url"}
_Table = dict[str, object]
_T = TypeVar("_T")


def read_acm_toml(untrusted: bytes, file: str) -> AcmPolicy:
    """Read a policy from TOML; `file` names it in errors and rules. Raises `PolicyError`."""
    try:
        document = parse_toml(untrusted.decode("utf-8"), file)
    except InputError as error:
        raise PolicyError(error.problems) from None
    except (ValueError, RecursionError) as error:
        raise PolicyError([Problem(file, 0, f"not readable as TOML: {error}")]) from None
    reader = _Reader(document, file)
    policy = reader.policy()
    problems = reader.problems + without_echoes(find_problems(policy), reader.problems)
    if problems:
        raise PolicyError(sorted(problems, key=lambda problem: problem.line))
    return policy


class _Reader:
    def __init__(self, document: TomlDocument, file: str) -> None:
        self.document = document
        self.file = file
        self.problems: list[Problem] = []

    def say(self, path: Path, message: str) -> None:
        self.problems.append(Problem(self.file, self.document.line(path), message))

    def policy(self) -> AcmPolicy:
        root: _Table = self.document.data
        known = {"policy", "simple-type-enforcement", "chinese-wall", "labels", "resources"}
        # What a policy asserts decides nothing: `skerry.policy.asserted` reads it.
        self.keys(root, (), {*known, "assert"}, {"policy", "labels"})
        head = self.table(root, "policy", ())
        needed = {"name", "version", "bootstrap"}
        self.keys(head, ("policy",), {*needed, *_HEADER, "primary", "from"}, needed)
        wall = self.table(root, "chinese-wall", ())
        ste = self.table(root, "simple-type-enforcement", ())
        for name, table, optional in (
            ("simple-type-enforcement", ste, set[str]()),
            ("chinese-wall", wall, {"conflicts"}),
        ):
            if name in root:
                self.keys(table, (name,), {"types", *optional}, {"types"})
        return AcmPolicy(
            self.text(head, "name", ("policy",)),
            self.text(head, "version", ("policy",)),
            self.text(head, "bootstrap", ("policy",)),
            self.declared(ste, ("simple-type-enforcement",)),
            self.declared(wall, ("chinese-wall",)),
            self.conflicts(wall),
            self.each(root, "labels", self.vm_label),
            self.each(root, "resources", self.resource_label),
            self.primary(head),
            **{field: self.text(head, key, ("policy",)) for key, field in _HEADER.items()},
            from_policy=self.from_policy(head),
            file=self.file,
            places={
                key: self.document.line(("policy", key))
                for key in ("name", "version", "bootstrap", "from")
            },
        )

    def keys(self, table: _Table, path: Path, known: set[str], needed: set[str]) -> None:
        for key in table:
            if key not in known:
                shown = ", ".join(sorted(known))
                self.say((*path, key), f"unknown key {key!r}; known here: {shown}")
        for key in sorted(needed - table.keys()):
            where = f"[{'.'.join(str(part) for part in path)}]" if path else "the policy"
            self.say(path, f"{where} lacks the key {key!r}")

    def value(self, table: _Table, key: str, path: Path, kind: type[_T], word: str) -> _T | None:
        value = table.get(key)
        if value is None or isinstance(value, kind):
            return value
        self.say((*path, key), f"{key} is not {word}")
        return None

    def text(self, table: _Table, key: str, path: Path) -> str:
        return self.value(table, key, path, str, "a text") or ""

    def table(self, table: _Table, key: str, path: Path) -> _Table:
        return self.value(table, key, path, dict, "a table") or {}

    def texts(self, table: _Table, key: str, path: Path) -> tuple[str, ...]:
        values = self.value(table, key, path, list, "a list of texts") or []
        for index, value in enumerate(values):
            if not isinstance(value, str):
                self.say((*path, key, index), f"{key} holds something that is not a text")
        return tuple(value for value in values if isinstance(value, str))

    def declared(self, table: _Table, path: Path) -> tuple[TypeName, ...]:
        names = self.texts(table, "types", path)
        if "types" in table and table["types"] == []:
            self.say((*path, "types"), "a component needs at least one type")
        line = self.document.line
        return tuple(
            TypeName(name, line((*path, "types", index))) for index, name in enumerate(names)
        )

    def conflicts(self, wall: _Table) -> tuple[ConflictSet, ...]:
        found = self.value(wall, "conflicts", ("chinese-wall",), list, "an array of tables") or []
        return tuple(
            self.conflict(table, ("chinese-wall", "conflicts", index))
            for index, table in enumerate(found)
        )

    def conflict(self, untrusted: object, path: Path) -> ConflictSet:
        table = self.as_table(untrusted, path)
        self.keys(table, path, {"name", "types", "history"}, {"name", "types"})
        history = self.value(table, "history", path, bool, "true or false") or False
        types = self.texts(table, "types", path)
        name = self.text(table, "name", path)
        return ConflictSet(name, types, history, self.document.line(path))

    def as_table(self, untrusted: object, path: Path) -> _Table:
        if isinstance(untrusted, dict):
            return untrusted
        self.say(path, f"{path[-1]} is not a table")
        return {}

    def each(
        self, root: _Table, key: str, make: Callable[[str, _Table, Path], _T]
    ) -> tuple[_T, ...]:
        tables = self.table(root, key, ())
        return tuple(
            make(name, self.as_table(value, (key, name)), (key, name))
            for name, value in tables.items()
        )

    def vm_label(self, name: str, table: _Table, path: Path) -> VmLabel:
        self.keys(table, path, {"ste", "cw", "from"}, set())
        ste, cw = self.texts(table, "ste", path), self.texts(table, "cw", path)
        return VmLabel(name, ste, cw, self.text(table, "from", path), self.document.line(path))

    def resource_label(self, name: str, table: _Table, path: Path) -> ResourceLabel:
        self.keys(table, path, {"ste", "from"}, {"ste"})
        from_ = self.text(table, "from", path)
        return ResourceLabel(name, self.text(table, "ste", path), from_, self.document.line(path))

    def primary(self, head: _Table) -> Component:
        text = self.text(head, "primary", ("policy",))
        if text and text not in _PRIMARY:
            self.say(("policy", "primary"), f"primary is none of: {', '.join(_PRIMARY)}")
        return _PRIMARY.get(text, "")

    def from_policy(self, head: _Table) -> FromPolicy | None:
        if "from" not in head:
            return None
        path: Path = ("policy", "from")
        table = self.table(head, "from", ("policy",))
        self.keys(table, path, {"name", "version"}, {"name", "version"})
        return FromPolicy(self.text(table, "name", path), self.text(table, "version", path))


def write_acm_toml(policy: AcmPolicy) -> str:
    """Return the policy as TOML; `read_acm_toml` reads it back as the same policy."""
    return "\n".join([*_write_header(policy), *_write_components(policy), *_write_labels(policy)])


def _write_header(policy: AcmPolicy) -> Iterator[str]:
    yield "[policy]"
    yield f"name = {_quote(policy.name)}"
    yield f"version = {_quote(policy.version)}"
    yield f"bootstrap = {_quote(policy.bootstrap)}"
    for key, field in _HEADER.items():
        if getattr(policy, field):
            yield f"{key} = {_quote(getattr(policy, field))}"
    for key, component in _PRIMARY.items():
        if policy.primary == component:
            yield f"primary = {_quote(key)}"
    if policy.from_policy:
        name, version = policy.from_policy.name, policy.from_policy.version
        yield f"from = {{ name = {_quote(name)}, version = {_quote(version)} }}"
    yield ""


def _write_components(policy: AcmPolicy) -> Iterator[str]:
    for key, types in zip(_PRIMARY, (policy.ste_types, policy.cw_types), strict=True):
        if types:
            yield f"[{key}]"
            yield f"types = {_quote_all(tuple(declared.name for declared in types))}"
            yield ""
    for conflict in policy.conflicts:
        yield "[[chinese-wall.conflicts]]"
        yield f"name = {_quote(conflict.name)}"
        yield f"types = {_quote_all(conflict.types)}"
        if conflict.history:
            yield "history = true"
        yield ""


def _write_labels(policy: AcmPolicy) -> Iterator[str]:
    for label in policy.labels:
        yield f"[labels.{_key(label.name)}]"
        if label.ste:
            yield f"ste = {_quote_all(label.ste)}"
        if label.cw:
            yield f"cw = {_quote_all(label.cw)}"
        if label.from_:
            yield f"from = {_quote(label.from_)}"
        yield ""
    for resource in policy.resources:
        yield f"[resources.{_key(resource.name)}]"
        yield f"ste = {_quote(resource.ste)}"
        if resource.from_:
            yield f"from = {_quote(resource.from_)}"
        yield ""


def _quote(text: str) -> str:
    # A JSON string is a TOML basic string as long as nothing needs a surrogate pair.
    return json.dumps(text, ensure_ascii=False)


def _quote_all(texts: tuple[str, ...]) -> str:
    one_line = f"[{', '.join(_quote(text) for text in texts)}]"
    if len(one_line) <= 88:
        return one_line
    return "[\n" + "".join(f"    {_quote(text)},\n" for text in texts) + "]"


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else _quote(name)
