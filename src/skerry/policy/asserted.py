"""What a policy asserts of itself: flows that must never be possible under it.

sHype's XML and a compiled FLASK policy can't hold assertions, so they stand beside the policy, in a
TOML file of the same name with the ending `.assert`; a policy in TOML may hold them itself:

    min-weight = 5                      # optional, FLASK: least weight of a permission that counts
    exclude-classes = ["argo"]          # optional, FLASK: classes that the system does not have
    contexts = ["u:*:*:s0"]             # optional, FLASK: of these whole contexts, not of types

    [[assert]]
    never = "bank-a -> bank-b"
    except = ["broker"]                 # optional
    history = true                      # optional: walls with history close whole paths

The rules this module keeps: unknown keys and wrong values are errors with their lines, all of them
at once; no assertions and `assert = []` are two things, the second says so on purpose.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8 as BYTE_ORDER_MARK
from collections.abc import Mapping
from pathlib import Path

import msgspec

from skerry.errors import InputError, PolicyError, Problem
from skerry.policy.files import read_regular
from skerry.system.section import Report, Section, echo
from skerry.system.toml_lines import parse_toml
from skerry.wire.system_files import MAX_ASSERTIONS

SUFFIX = ".assert"
"""A policy's assertions stand beside it, under its name with this ending."""

MAX_WRITTEN = 1_000
"""Most assertions of one policy; a policy with more is refused."""

_MAX_WEIGHT = 10


class Asserted(msgspec.Struct, frozen=True):
    """One assertion as written: `never` is `A -> B`, names set apart by commas on either side."""

    never: str
    except_: tuple[str, ...] = ()
    file: str = ""
    line: int = 0
    history: bool = False

    def __str__(self) -> str:
        words = f"never {self.never}"
        words += f" except {', '.join(self.except_)}" if self.except_ else ""
        return f"{words} by history" if self.history else words

    def meaning(self) -> tuple[str, tuple[str, ...], bool]:
        """Return what is asserted, wherever it was written."""
        return self.never, self.except_, self.history


class Assertions(msgspec.Struct, frozen=True):
    """A policy's assertions, and what counts as a flow where they are proven.

    `places` are the lines of `file` in which the classes and contexts stand, by name.
    """

    written: tuple[Asserted, ...] = ()
    min_weight: int = 1
    exclude_classes: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    file: str = ""
    places: Mapping[str, int] = {}

    def meaning(self) -> tuple[object, ...]:
        """Return what is asserted, wherever it was written."""
        written = tuple(one.meaning() for one in self.written)
        return written, self._of()

    def within(self, other: Assertions) -> bool:
        """Tell whether all that is asserted here is asserted there, of the same flows."""
        if not self.written:
            return True
        known = {one.meaning() for one in other.written}
        return self._of() == other._of() and all(one.meaning() in known for one in self.written)

    def names(self) -> frozenset[str]:
        """Return every name that is used, as far as commas set them apart."""
        sides = (text for one in self.written for text in (*one.never.split("->"), *one.except_))
        return frozenset(name.strip() for side in sides for name in side.split(","))

    def _of(self) -> tuple[object, ...]:
        return self.min_weight, self.exclude_classes, self.contexts


NOTHING = Assertions()
"""No assertion at all."""


def read_assertions(policy_path: str | Path) -> bytes:
    """Read what stands beside a policy as its assertions, nothing if there is no such file.

    Raises `PolicyError` if there is one that can't be read.
    """
    path = Path(f"{policy_path}{SUFFIX}")
    try:
        content = read_regular(path, MAX_ASSERTIONS)
    except FileNotFoundError:
        return b""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise PolicyError([Problem(str(path), 0, f"cannot be read: {reason}")]) from None
    if not content:  # a file that was lost must not pass for one that was never there
        raise PolicyError([Problem(str(path), 0, "is empty; assert = [] asserts nothing")])
    return content


def assertions_of(content: bytes, untrusted: bytes, file: str) -> Assertions | None:
    """Return the assertions of a policy: those in it and those in `untrusted`, which stood beside.

    None if there are neither. Raises `PolicyError` with every problem.
    """
    inside = _parse(content, file, inside=True) if _may_hold(content) else None
    beside = _parse(untrusted, file + SUFFIX, inside=False) if untrusted else None
    if inside is None or beside is None:
        return inside or beside
    return msgspec.structs.replace(beside, written=(*inside.written, *beside.written))


def write_assertions(asserted: Assertions) -> str:
    """Write assertions as tables of TOML, which are read back as the same."""
    lines: list[str] = []
    for one in asserted.written:
        lines += ["[[assert]]", f"never = {json.dumps(one.never, ensure_ascii=False)}"]
        if one.except_:
            lines.append(f"except = {json.dumps(one.except_, ensure_ascii=False)}")
        if one.history:
            lines.append("history = true")
        lines.append("")
    return "\n".join(lines)


def _may_hold(content: bytes) -> bool:
    """Tell whether a policy's content is TOML, and might have assertions in it."""
    text = content.removeprefix(BYTE_ORDER_MARK).lstrip()
    # Nothing but an escape writes the key in other letters than its own.
    named = b"assert" in content or b"\\" in content
    return named and b"\0" not in content and not text.startswith(b"<")


def _parse(untrusted: bytes, file: str, *, inside: bool) -> Assertions | None:
    """Read the assertions of a file; `inside` a policy only those, the rest is the policy's."""
    if len(untrusted) > MAX_ASSERTIONS and not inside:
        raise PolicyError([Problem(file, 0, f"longer than {MAX_ASSERTIONS} bytes")])
    try:
        document = parse_toml(untrusted.removeprefix(BYTE_ORDER_MARK).decode("utf-8"), file)
    except InputError as error:
        raise PolicyError(error.problems) from None
    except (ValueError, RecursionError) as error:
        raise PolicyError([Problem(file, 0, f"not readable as TOML: {error}")]) from None
    report = Report(file, document)
    top = Section(report, (), document.data)
    if inside and "assert" not in top:
        return None
    top.require("assert", 'an [[assert]] with never = "A -> B"; or assert = [] to assert nothing')
    tables = top.sections("assert")
    if len(tables) > MAX_WRITTEN:
        report.add(("assert",), f"more than {MAX_WRITTEN} assertions")
        tables = []
    found = Assertions(tuple(_one(table, file) for table in tables))
    if not inside:
        weight = top.number("min-weight", 1, 1, _MAX_WEIGHT)
        texts = top.texts("exclude-classes"), top.texts("contexts")
        places = {
            name: document.line((key, index))
            for key, names in zip(("exclude-classes", "contexts"), texts, strict=True)
            for index, name in enumerate(names)
        }
        found = Assertions(found.written, weight, *texts, file if places else "", places)
        top.end()
    if report.problems:
        unique = dict.fromkeys(report.problems)
        raise PolicyError(sorted(unique, key=lambda problem: problem.line))
    return found


def _one(table: Section, file: str) -> Asserted:
    table.require("never", 'never = "A -> B"')
    never, except_ = table.value("never"), table.texts("except")
    if "never" in table and not (isinstance(never, str) and _has_sides(never)):
        table.problem("never", f'never must be "A -> B", not {echo(never)}')
    if "except" in table and not except_:
        table.problem("except", "except names nothing; leave it out")
    history = table.flag("history", False)
    table.end()
    return Asserted(str(never), except_, file, table.line("never"), history)


def _has_sides(text: str) -> bool:
    sides = text.split("->")
    return len(sides) == 2 and all(side.strip() for side in sides)
