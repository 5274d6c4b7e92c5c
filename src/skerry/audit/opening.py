"""How a trail is opened for writing, and how a refusal to write to it is worded.

The rule: whatever is wrong with a trail is a denial that says what to do (law 4).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from skerry.audit.chain import Link
from skerry.audit.ending import DamagedTrailError
from skerry.audit.record import Record, RecordError, fields_json
from skerry.audit.segments import Opened, Segments
from skerry.errors import AuditUnavailable

LOCK_S = 5.0
"""How long a new writer waits for the end of the one before, which may still hold the file."""

_PAUSE_S = 0.05


def open_segments(segments: Segments, at_least: Link | None = None) -> Opened:
    """Open a trail's live segment. Raises `AuditUnavailable`, with what to do."""
    try:
        return segments.open(at_least)
    except OSError as error:
        what = f"the audit trail {segments.path} cannot be opened"
        raise unavailable(f"{what}: {words(error)}") from None
    except DamagedTrailError as error:
        raise AuditUnavailable(
            f"the audit trail {segments.path} is damaged: {error}",
            fix="run 'skerry audit verify', and move audit.log* and audit.head away, as evidence",
        ) from None


def open_again(segments: Segments, reached: Link) -> tuple[Opened, Sequence[Record]]:
    """Open the live segment once the writer before has let it go; waits up to `LOCK_S`.

    Returns the records behind `reached`, which the trail must hold, too. Raises as
    `open_segments`.
    """
    end = time.monotonic() + LOCK_S
    while True:
        try:
            opened = open_segments(segments, reached)
            break
        except AuditUnavailable as error:
            if not isinstance(error.__context__, BlockingIOError) or time.monotonic() > end:
                raise
            time.sleep(_PAUSE_S)
    try:
        written = segments.written_after(opened, reached.n)
    except OSError as error:
        segments.close(opened.fd)
        raise unavailable(f"the audit trail cannot be read: {words(error)}") from None
    return opened, written


def append_text(event: str, fields: Mapping[str, object]) -> str:
    """Return the canonical JSON of a record's fields. Raises `AuditUnavailable` if it has none."""
    try:
        return fields_json(fields)
    except RecordError as error:
        raise unavailable(f"the record {event} cannot be written: {error}") from None


def unavailable(message: str) -> AuditUnavailable:
    """Return the denial that a trail which can't be written is."""
    return AuditUnavailable(message, fix="nothing is allowed until it can; make room or mend it")


def words(error: BaseException) -> str:
    """Return why something failed, in words that are never empty."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
