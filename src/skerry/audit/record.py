"""One audit record and its bytes.

The rule: a record has exactly one form. It is one line of JSON, its members in the order of
`Record`, the keys of `fields` sorted, no blanks, and ASCII only, so that neither `cat` nor a
terminal ever meets a raw byte that came from a guest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

MAX_FIELDS = 60_000
"""Longest fields of a record in bytes; an append with more is refused, a note is shortened."""

MAX_LINE = 1 << 16
"""Longest line of a trail; a reader takes a longer one for a broken record."""

MAX_NUMBER = (1 << 53) - 1
"""Highest record number: what every JSON reader holds exactly."""


_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), allow_nan=False, default=msgspec.to_builtins
)


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record as it stands in the trail.

    `n` counts from 1 without gaps; `time` is UTC with microseconds, `mono` nanoseconds of the
    monotonic clock; `prev` and `hash` are hex SHA-256, of the record before and of this one.
    """

    n: int
    time: str
    mono: int
    prev: str
    event: str
    fields: dict[str, object]
    hash: str


class RecordError(ValueError):
    """Fields that can't be recorded, or a line that is no record."""


def fields_json(fields: Mapping[str, object]) -> str:
    """Return the canonical JSON of a record's fields. Raises `RecordError` if that can't be."""
    try:
        text = _CANONICAL.encode(dict(fields))
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise RecordError(f"fields that are no JSON: {error}") from None
    if len(text) > MAX_FIELDS:
        raise RecordError(f"fields of {len(text)} bytes, longer than {MAX_FIELDS}")
    return text


def note_text(fields: Mapping[str, object]) -> str:
    """Return the canonical JSON of a note's fields, shortened if they can't be recorded."""
    try:
        return fields_json(fields)
    except RecordError:
        return shortened_fields(fields)


def shortened_fields(fields: Mapping[str, object]) -> str:
    """Return fields that can always be recorded: each value's text, cut to fit."""
    short = {str(key)[:64]: _text(value) for key, value in list(fields.items())[:32]}
    return fields_json({"shortened": short})


def body_json(n: int, wall_ns: int, mono_ns: int, prev: str, event: str, fields: str) -> str:
    """Return the canonical JSON of a record without its hash; `fields` from `fields_json`."""
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    return (
        f'{{"n":{n},"time":"{_second(seconds)}.{rest // 1000:06d}Z","mono":{mono_ns},'
        f'"prev":"{prev}","event":{_quoted(event)},"fields":{fields}}}'
    )


# The thread that writes has just slept, and what it does first is slow: so it does little.
_quoted = lru_cache(64)(json.dumps)


@lru_cache(2)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def parse_record(untrusted_line: bytes) -> Record:
    """Read a line of a trail; its hash is not checked. Raises `RecordError`."""
    if len(untrusted_line) > MAX_LINE:
        raise RecordError(f"longer than {MAX_LINE} bytes")
    try:
        record = msgspec.convert(json.loads(untrusted_line), Record)
    except (ValueError, RecursionError, msgspec.MsgspecError):
        raise RecordError("not a record") from None
    if not 0 < record.n <= MAX_NUMBER:
        raise RecordError("a number out of range")
    return record


def record_json(record: Record) -> str:
    """Return a record as JSON for programs: the bytes of its line, if the line was canonical."""
    return json.dumps(msgspec.to_builtins(record), separators=(",", ":"))


def _text(value: object) -> str:
    try:
        return repr(value)[:256]
    except Exception as error:  # a foreign __repr__ may raise anything, a note nothing
        return f"<{type(error).__name__}>"
