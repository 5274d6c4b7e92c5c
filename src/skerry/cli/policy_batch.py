"""`skerry policy decide --batch`: many questions, a line of JSON for each.

The rules this module keeps: the answer to a line is that of the very modules that a node decides
with, without explanations, and written before more lines are waited for; the first line that is no
question ends the batch with its number, after the answers to those before it.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click

from skerry.cli.policy_ask import askable_permissions, read_label
from skerry.errors import InputError, Problem
from skerry.label import Label
from skerry.xsm.classes import CLASSES
from skerry.xsm.flask.model import PolicyClass
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.module import SecurityModule
from skerry.xsm.stack import Stack

MAX_BATCH_LINE = 16_384
"""Longest line of a batch, in bytes; a longer one ends the batch with an error."""

_CHUNK = 1 << 16
_MAX_KEPT = 1 << 16


class _Side(NamedTuple):
    label: Label
    json: str


class _Class(NamedTuple):
    """A class as it may be asked; `others` are the permissions for modules that are not Flask."""

    json: str
    names: frozenset[str]
    others: frozenset[str]
    known: PolicyClass | None


def decide_batch(stack: Stack, file: str) -> None:
    """Answer every line of a file, or of the input for `-`. Raises `InputError`."""
    answerer = _Answerer(stack, file)
    try:
        with _opened(file) as read:
            for first, lines in _chunks(read, file):
                answerer.answer(first, lines)
    except OSError as error:
        if error.filename is None:  # the output's, not the file's
            raise
        raise _error(file, 0, f"cannot be read: {error.strerror}") from None


@contextlib.contextmanager
def _opened(file: str) -> Iterator[Callable[[int], bytes]]:
    """Yield a function that waits for something to read and returns what has come."""
    if file == "-":
        stdin = sys.stdin.buffer
        yield stdin.read1 if isinstance(stdin, io.BufferedReader) else stdin.read
    else:
        with Path(file).open("rb") as source:
            yield source.read1


def _chunks(read: Callable[[int], bytes], file: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines that have come, with the number of the first, as soon as they come."""
    untrusted_rest, number = b"", 1
    while True:
        untrusted = read(_CHUNK)
        whole, newline, untrusted_rest = (untrusted_rest + untrusted).rpartition(b"\n")
        if not untrusted:
            whole, untrusted_rest = untrusted_rest, b""
        lines = _text(whole, file, number).split("\n") if whole or newline else []
        yield number, lines
        number += len(lines)
        if not untrusted:
            return
        if len(untrusted_rest) > MAX_BATCH_LINE:
            raise _too_long(file, number)


def _text(untrusted: bytes, file: str, number: int) -> str:
    try:
        return untrusted.decode("utf-8")
    except UnicodeDecodeError as error:
        line = number + untrusted.count(b"\n", 0, error.start)
        raise _error(file, line, "not UTF-8") from None


def _too_long(file: str, line: int) -> InputError:
    return _error(file, line, f"line longer than {MAX_BATCH_LINE} bytes")


def _error(file: str, line: int, message: str) -> InputError:
    return InputError([Problem(file, line, message)])


class _Answerer:
    """Answers lines; remembers what labels, classes and vectors look like."""

    def __init__(self, stack: Stack, file: str) -> None:
        self._stack = stack
        self._file = file
        flask = [module for module in stack.modules if isinstance(module, FlaskModule)]
        self._flask = flask[0] if flask else None
        self._sides: dict[str, _Side] = {}
        self._classes: dict[str, _Class] = {}
        self._lists: dict[tuple[str, int], str] = {}

    def answer(self, first: int, untrusted_lines: list[str]) -> None:
        """Print the answers to some lines. Raises `InputError` after those before a bad one."""
        answers: list[str] = []
        try:
            for number, untrusted_line in enumerate(untrusted_lines, first):
                fields = untrusted_line.split()
                if fields:
                    answers.append(self._line(number, untrusted_line, fields))
        finally:
            if answers:
                click.echo("".join(answers), nl=False)

    def _line(self, number: int, untrusted_line: str, fields: list[str]) -> str:
        if len(untrusted_line) > MAX_BATCH_LINE:
            raise _too_long(self._file, number)
        if len(fields) != 3:
            raise _error(self._file, number, "a line is SUBJECT TARGET CLASS")
        subject, target, name = fields
        one = self._sides.get(subject) or self._side(subject, number)
        other = self._sides.get(target) or self._side(target, number)
        tclass = self._classes.get(name) or self._class(name, number)
        allowed, auditallow, dontaudit = self._vectors(one.label, other.label, name, tclass)
        return (
            f'{{"subject": {one.json}, "target": {other.json}, "class": {tclass.json}, '
            f'"allowed": {allowed}, "auditallow": {auditallow}, "dontaudit": {dontaudit}}}\n'
        )

    def _vectors(self, one: Label, other: Label, name: str, tclass: _Class) -> tuple[str, str, str]:
        """Return as JSON what all modules allow, and what is to be recorded and not recorded."""
        flask, known = self._flask, tclass.known
        if flask is None or known is None:
            names = tclass.names
            for module in self._stack.modules:
                names &= self._granted(module, one, other, name, tclass)
            return json.dumps(sorted(names)), "[]", "[]"
        vectors = flask.vectors(one.of(flask.name), other.of(flask.name), name)
        allowed = vectors.allowed
        for module in self._stack.modules:
            if allowed and module is not flask:
                allowed &= known.vector(self._granted(module, one, other, name, tclass))
        return (
            self._listed(known, allowed),
            self._listed(known, vectors.auditallow),
            self._listed(known, vectors.dontaudit),
        )

    def _granted(
        self, module: SecurityModule, one: Label, other: Label, name: str, tclass: _Class
    ) -> frozenset[str]:
        asked = tclass.names if isinstance(module, FlaskModule) else tclass.others
        answer = module.decide(one.of(module.name), other.of(module.name), name, asked)
        return frozenset(answer.granted)

    def _listed(self, known: PolicyClass, vector: int) -> str:
        key = known.name, vector
        found = self._lists.get(key)
        if found is None:
            if len(self._lists) >= _MAX_KEPT:
                self._lists.clear()
            found = self._lists[key] = json.dumps(known.names(vector))
        return found

    def _side(self, untrusted: str, number: int) -> _Side:
        label = read_label(self._stack, untrusted, self._file, number)
        if len(self._sides) >= _MAX_KEPT:
            self._sides.clear()
        found = self._sides[untrusted] = _Side(label, json.dumps(untrusted))
        return found

    def _class(self, name: str, number: int) -> _Class:
        try:
            names = askable_permissions(self._stack, name)
        except InputError as error:
            raise _error(self._file, number, error.problems[0].message) from None
        known = self._flask.classes.get(name) if self._flask else None
        others = names & CLASSES.get(name, names)
        found = self._classes[name] = _Class(json.dumps(name), names, others, known)
        return found
