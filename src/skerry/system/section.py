"""One table of a TOML file, read key by key, with every mistake kept.

The rule: reading never stops at a mistake. A key of the wrong type is reported at its line and
read as its default; `end` reports every key that nobody asked for.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar, get_args

from skerry.errors import Problem
from skerry.label import MAX_LABEL
from skerry.system.model import RawLabel
from skerry.system.toml_lines import Path, TomlDocument

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
NAME_WORDS = "1 to 31 of a-z, 0-9 and -, beginning with a letter"
"""What a domain, a resource, an alarm or a system may be called."""

_SIZE = re.compile(r"([1-9][0-9]{0,8})([KMGT])")
_SHIFT = {"K": 10, "M": 20, "G": 30, "T": 40}
_MAX_ECHO = 60
_MAX_GUESSES = 100

Choice = TypeVar("Choice", bound=str)


class Report:
    """The mistakes found in one document, with their lines."""

    def __init__(self, file: str, document: TomlDocument) -> None:
        self.file = file
        self.document = document
        self.problems: list[Problem] = []

    def add(self, path: Path, message: str) -> None:
        """Report a mistake at the line of `path`."""
        self.problems.append(Problem(self.file, self.document.line(path), message))


class Section:
    """A table at `path`; a value that is no table is reported and read as an empty one."""

    def __init__(self, report: Report, path: Path, untrusted_value: object) -> None:
        self.path = path
        self._report = report
        self._asked: set[str] = set()
        self._table: Mapping[str, object] = {}
        if isinstance(untrusted_value, dict):
            self._table = untrusted_value
        else:
            report.add(path, f"{dotted(path)} must be a table, not {kind_of(untrusted_value)}")

    def __contains__(self, key: str) -> bool:
        return key in self._table

    def names(self) -> Iterable[str]:
        """Return the keys, in the file's order; all count as asked for."""
        self._asked.update(self._table)
        return self._table.keys()

    def problem(self, key: str, message: str) -> None:
        """Report a mistake at a key's line."""
        self._report.add((*self.path, key), message)

    def report(self, below: Path, message: str) -> None:
        """Report a mistake at the line of something below this table."""
        self._report.add((*self.path, *below), message)

    def line(self, key: str) -> int:
        """Return a key's line."""
        return self._report.document.line((*self.path, key))

    def value(self, key: str) -> object:
        """Return a raw value or None."""
        self._asked.add(key)
        return self._table.get(key)

    def require(self, key: str, hint: str) -> None:
        """Report a missing key; it then counts as known."""
        self._asked.add(key)
        if key not in self._table:
            where = f" in {dotted(self.path)}" if self.path else ""
            self.problem(key, f"missing key {key!r}{where}; write {hint}")

    def section(self, key: str) -> Section:
        """Return the table under a key, empty if it is missing."""
        return Section(self._report, (*self.path, key), self._table_at(key))

    def _table_at(self, key: str) -> object:
        value = self.value(key)
        return {} if value is None else value

    def sections(self, key: str) -> list[Section]:
        """Return the tables of an array of tables, none if it is missing."""
        value = self.value(key)
        if not isinstance(value, list):
            if value is not None:
                self.problem(key, f"{key} must be written [[{key}]], not as {kind_of(value)}")
            return []
        return [Section(self._report, (*self.path, key, i), v) for i, v in enumerate(value)]

    def text(self, key: str, default: str, pattern: re.Pattern[str], words: str) -> str:
        """Return a text that matches `pattern` whole; `words` say what it must be."""
        value = self.value(key)
        if value is None:
            return default
        if isinstance(value, str) and pattern.fullmatch(value):
            return value
        self.problem(key, f"{key} must be {words}, not {echo(value)}")
        return default

    def choice(self, key: str, default: Choice, of: object) -> Choice:
        """Return one of the texts of a `Literal` type."""
        choices = get_args(of)
        value = self.value(key)
        if value is None:
            return default
        for choice in choices:
            if isinstance(value, str) and value == choice:
                return choice  # type: ignore[no-any-return]  # an argument of the Literal `of`
        self.problem(
            key, f"{key} must be {one_of(choices)}, not {echo(value)}{meant(value, choices)}"
        )
        return default

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.value(key)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.problem(key, f"{key} must be true or false, not {echo(value)}")
        return default

    def number(self, key: str, default: int, low: int, high: int) -> int:
        """Return a whole number within bounds."""
        value = self.value(key)
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        self.problem(key, f"{key} must be a number from {low} to {high}, not {echo(value)}")
        return default

    def size(self, key: str, default: int, low: str, high: str) -> int:
        """Return bytes from a text with a binary unit: `192M`."""
        value = self.value(key)
        if value is None:
            return default
        found = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            message = f'a size with its unit (K, M, G), like "192M", not {echo(value)}'
            self.problem(key, f"{key} must be {message}")
            return default
        size = int(found[1]) << _SHIFT[found[2]]
        if not _bytes(low) <= size <= _bytes(high):
            self.problem(key, f"{key} must be from {low} to {high}, not {value}")
        return size

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts without repetitions."""
        value = self.value(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            self.problem(key, f"{key} must be a list of texts, not {echo(value)}")
            return ()
        found: dict[str, None] = {}
        for index, item in enumerate(value):
            place = (*self.path, key, index)
            if not isinstance(item, str):
                self._report.add(place, f"{key} must hold texts, not {echo(item)}")
            elif item in found:
                self._report.add(place, f"{key} names {echo(item)} twice")
            else:
                found[item] = None
        return tuple(found)

    def label(self, key: str) -> RawLabel:
        """Return a label as written; only its form is checked."""
        value = self.value(key)
        parts = list(value.values()) if isinstance(value, dict) else [value]
        if not parts or not all(_is_label(part) for part in parts):
            form = f"a text of 1 to {MAX_LABEL} printable characters, or such a text per module"
            self.problem(key, f"the label {dotted((*self.path, key))} must be {form}")
            return ""
        return dict(value) if isinstance(value, dict) else str(value)

    def end(self) -> None:
        """Report every key that nobody asked for."""
        for key in self._table.keys() - self._asked:
            where = f" in {dotted(self.path)}" if self.path else ""
            self.problem(key, f"unknown key {echo(key)}{where}{meant(key, self._asked)}")


def dotted(path: Path) -> str:
    """Write a path as in the file: `domains.a`, `channels[2]` (from 1)."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        else:
            text += ("." if text else "") + (part if part.isprintable() else ascii(part))
    return text


def echo(value: object) -> str:
    """Write a value for a message: short, on one line, without control characters."""
    if isinstance(value, list | dict) or (isinstance(value, int) and value.bit_length() > 256):
        return kind_of(value)
    text = ascii(value) if not str(value).isprintable() else repr(value)
    return text if len(text) <= _MAX_ECHO else text[:_MAX_ECHO] + "…"


def kind_of(value: object) -> str:
    """Name a TOML value's type for people."""
    names: dict[type, str] = {dict: "a table", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "a date")


def one_of(choices: Iterable[str]) -> str:
    """Write the choices: `"a", "b" or "c"`."""
    quoted = [f'"{choice}"' for choice in choices]
    return " or ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))


def meant(value: object, choices: Iterable[str]) -> str:
    """Return `; did you mean …?` if one of the choices is near, else nothing."""
    known = sorted(choices)
    if not isinstance(value, str) or len(value) > _MAX_ECHO or len(known) > _MAX_GUESSES:
        return ""
    near = difflib.get_close_matches(value, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _is_label(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_LABEL and value.isprintable()


def _bytes(size: str) -> int:
    return int(size[:-1]) << _SHIFT[size[-1]]
