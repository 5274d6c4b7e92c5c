r"""A record for people, with nothing in it that could act on their terminal.

The rule: whatever came from a guest is shown as plain text in its own order. Every character
that is not printable, changes the direction of the text, joins onto its neighbour or looks like
nothing is written as an escape (`\x1b`, `\u202e`), and a backslash as two, so that no text can
pass for an escape.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection, Mapping

from skerry.audit.record import Record

MAX_VALUE = 200
"""Longest value in a line of `audit tail`, in characters; the rest is cut, `why` shows it all."""

_RIGHT_TO_LEFT = {"R", "AL", "AN"}
_INVISIBLE = set("\u115f\u1160\u3164\uffa0\u2800\u17b4\u17b5")


def escape(untrusted_text: str) -> str:
    """Return the text with every character escaped that could do more than be read."""
    if untrusted_text.isascii() and untrusted_text.isprintable() and "\\" not in untrusted_text:
        return untrusted_text
    return "".join(_escape(char) for char in untrusted_text)


def _escape(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if char.isascii() and char.isprintable():
        return char
    harmless = (
        char.isprintable()
        and char not in _INVISIBLE
        and not unicodedata.category(char).startswith("M")
        and unicodedata.bidirectional(char) not in _RIGHT_TO_LEFT
    )
    return char if harmless else char.encode("unicode_escape").decode()


def summary(record: Record) -> str:
    """Return a record as one line: number, time, event, fields."""
    fields = " ".join(f"{escape(k)}={_short(v)}" for k, v in record.fields.items())
    return f"{record.n:>6} {escape(record.time)} {escape(record.event)} {fields}".rstrip()


def details(record: Record, without: Collection[str] = ()) -> list[str]:
    """Return a record in full, one field a line, nested ones indented."""
    fields = {key: value for key, value in record.fields.items() if key not in without}
    return [
        f"record {record.n}: {escape(record.event)}",
        f"  time: {escape(record.time)}",
        *_nested(fields, "  "),
        f"  hash: {escape(record.hash)}",
    ]


def _nested(value: Mapping[str, object], indent: str) -> list[str]:
    lines: list[str] = []
    for key, part in value.items():
        name = f"{indent}{escape(key)}:"
        if isinstance(part, dict) and part:
            lines += [name, *_nested(part, indent + "  ")]
        elif isinstance(part, list) and part:
            lines.append(name)
            lines += [line for item in part for line in _item(item, indent + "  ")]
        else:
            lines.append(f"{name} {_plain(part)}")
    return lines


def _item(item: object, indent: str) -> list[str]:
    if not isinstance(item, dict) or not item:
        return [f"{indent}- {_plain(item)}"]
    first, *rest = _nested(item, indent + "  ")
    return [f"{indent}- {first.lstrip()}", *rest]


def _short(value: object) -> str:
    text = _plain(value)
    if isinstance(value, str) and (not text or set(' ="') & set(text)):
        text = '"' + text.replace('"', '\\"') + '"'
    return text if len(text) <= MAX_VALUE else text[:MAX_VALUE] + "…"


def _plain(value: object) -> str:
    if isinstance(value, str):
        return escape(value)
    return escape(json.dumps(value, separators=(",", ":"), ensure_ascii=False))
