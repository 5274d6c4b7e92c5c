"""Where each key of a TOML document stands, and the document itself, with bounds.

`tomllib` gives values without positions. The scanner here walks the same text and keeps the line
of every key, table and array element; it trusts nothing and stops where the text stops being
TOML, so `tomllib` alone says what is valid. The rule: depth is bounded before `tomllib` sees the
text, because its time and its recursion grow with the depth.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from collections.abc import Mapping

import msgspec

from skerry.errors import InputError, Problem

Path = tuple[str | int, ...]
"""A place in a document: table and key names, and indices (from 0) of array elements."""

MAX_DEPTH = 32
"""Longest path in a document; a deeper one is refused with its line."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BASIC = re.compile(r'"(?:\\.|[^"\\\n])*"')
_LITERAL = re.compile(r"'[^'\n]*'")
_STRING = re.compile(
    r'"{3}(?:\\.|[^\\])*?"{3,5}|\'{3}.*?\'{3,5}|' + f"{_BASIC.pattern}|{_LITERAL.pattern}", re.S
)
_SCALAR = re.compile(r"[^,\]}#\n]+")


class TomlDocument(msgspec.Struct, frozen=True):
    """A parsed document and the lines of its parts."""

    data: dict[str, object]
    lines: Mapping[Path, int]

    def line(self, path: Path) -> int:
        """Return the line (from 1) of `path`, else that of the nearest part around it, else 0."""
        return nearest_line(self.lines, path)


def parse_toml(untrusted_text: str, file: str) -> TomlDocument:
    """Parse a document. Raises `InputError` with file and line if it is no TOML or too deep."""
    text = untrusted_text.replace("\r\n", "\n")
    scanner = _Scanner(text)
    try:
        lines = scanner.scan()
        return TomlDocument(tomllib.loads(text), lines)
    except _TooDeepError:
        message = f"nested deeper than {MAX_DEPTH} levels"
        raise InputError([Problem(file, scanner.line_here(), message)]) from None
    except tomllib.TOMLDecodeError as error:
        raise InputError([_syntax_problem(text, file, error)]) from None
    except ValueError:  # Python's own bound on the digits of a number
        message = "holds a number of more than 4300 digits"
        raise InputError([Problem(file, 0, message)]) from None


def key_line(text: str, path: Path) -> int:
    """Return the line (from 1) of a key, table or array element in a TOML document.

    A table has the line of its header, an array element the line where it begins. A path that
    does not exist has the line of the nearest part around it; 0 where there is none.
    """
    try:
        return nearest_line(_Scanner(text.replace("\r\n", "\n")).scan(), path)
    except _TooDeepError:
        return 0


def nearest_line(lines: Mapping[Path, int], path: Path) -> int:
    """Return the line of `path` or of the longest part of it that has one, else 0."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 0)


def _syntax_problem(text: str, file: str, error: tomllib.TOMLDecodeError) -> Problem:
    message = str(error)
    place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
    if place is None:
        return Problem(file, 0, message)
    line = int(place[1]) if place[1] else text.count("\n", 0, len(text.rstrip())) + 1
    return Problem(file, line, message[: place.start()])


class _StopError(Exception):
    """The text is no TOML from here on."""


class _TooDeepError(Exception):
    """A path is longer than `MAX_DEPTH`."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._pos = 0
        self._newlines = [match.start() for match in re.finditer("\n", text)]
        self._lines: dict[Path, int] = {}
        self._tables: dict[Path, int] = {}  # arrays of tables: path -> elements so far

    def line_here(self) -> int:
        return bisect_left(self._newlines, self._pos) + 1

    def scan(self) -> dict[Path, int]:
        """Return the line of every path up to the point where the text stops being TOML."""
        base: Path = ()
        try:
            while True:
                self._match(_BLANK)
                if self._pos == len(self._text):
                    break
                if self._take("["):
                    base = self._header()
                else:
                    self._pair(base)
        except _StopError:
            pass
        return self._lines

    def _header(self) -> Path:
        line = self.line_here()
        of_tables = self._take("[")
        path: Path = ()
        keys = self._keys(0)
        for depth, key in enumerate(keys, 1):
            path = (*path, key)
            if of_tables and depth == len(keys):
                self._lines.setdefault(path, line)
                index = self._tables.get(path, 0)
                self._tables[path] = index + 1
                path = (*path, index)
            elif path in self._tables:  # a header names the newest element of such an array
                path = (*path, self._tables[path] - 1)
            self._lines.setdefault(path, line)
        self._lines[path] = line  # the table's own header, not one that implied it before
        self._check_depth(len(path))
        self._need("]]" if of_tables else "]")
        return path

    def _pair(self, base: Path) -> None:
        line = self.line_here()
        path = base
        for key in self._keys(len(base)):
            path = (*path, key)
            self._lines.setdefault(path, line)
        self._need("=")
        self._match(_SPACE)
        self._value(path)

    def _keys(self, depth: int) -> list[str]:
        keys: list[str] = []
        while True:
            self._match(_SPACE)
            quoted = self._match(_BASIC) or self._match(_LITERAL)
            if quoted:
                keys.append(_unquote(quoted))
            else:
                keys.append(self._must(_BARE_KEY))
            self._check_depth(depth + len(keys))
            self._match(_SPACE)
            if not self._take("."):
                return keys

    def _value(self, path: Path) -> None:
        self._check_depth(len(path))
        if self._take("["):
            self._array(path)
        elif self._take("{"):
            self._inline_table(path)
        elif not self._match(_STRING):
            self._must(_SCALAR)

    def _array(self, path: Path) -> None:
        index = 0
        while True:
            self._match(_BLANK)
            if self._take("]"):
                return
            element = (*path, index)
            self._lines[element] = self.line_here()
            self._value(element)
            index += 1
            self._match(_BLANK)
            if not self._take(","):
                self._need("]")
                return

    def _inline_table(self, path: Path) -> None:
        while True:
            self._match(_BLANK)
            if self._take("}"):
                return
            self._pair(path)
            self._match(_BLANK)
            if not self._take(","):
                self._need("}")
                return

    def _check_depth(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _TooDeepError

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._pos)
        if found is None:
            return ""
        self._pos = found.end()
        return found[0]

    def _must(self, pattern: re.Pattern[str]) -> str:
        found = self._match(pattern)
        if not found:
            raise _StopError
        return found

    def _take(self, text: str) -> bool:
        if not self._text.startswith(text, self._pos):
            return False
        self._pos += len(text)
        return True

    def _need(self, text: str) -> None:
        if not self._take(text):
            raise _StopError


def _unquote(quoted: str) -> str:
    if quoted[0] == "'":
        return quoted[1:-1]
    try:
        return str(tomllib.loads(f"key = {quoted}")["key"])
    except tomllib.TOMLDecodeError:
        raise _StopError from None
