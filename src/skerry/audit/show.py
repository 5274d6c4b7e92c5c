"""A record for people, with nothing in it that could act on their terminal.

The rule: whatever came from a guest is escaped (`wire.escape`) wherever it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from skerry.audit.record import Record
from skerry.wire.escape import escape

MAX_VALUE = 200
"""Longest value in a line of `audit tail`, in characters; the rest is cut, `why` shows it all."""


_HIDDEN = frozenset({"hook", "why", "parties", "rules", "generation", "avc"})
"""What a line leaves out: `why ID` shows it."""


def summary(record: Record) -> str:
    """Return a record as one line: number, time, event, hook, fields, and why of a denial."""
    fields = record.fields
    words = [f"{record.n:>6}", escape(record.time[:19]), f"{escape(record.event):7}"]
    if isinstance(hook := fields.get("hook"), str):
        words.append(escape(hook))
    words += [f"{escape(k)}={_short(v)}" for k, v in fields.items() if k not in _HIDDEN]
    why = fields.get("why")
    if isinstance(why, dict):
        words.append(f"[{_plain(why.get('code', ''))}] {_plain(why.get('sentence', ''))}")
    elif why is not None:
        words.append(f"why={_short(why)}")
    return " ".join(words).rstrip()


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
