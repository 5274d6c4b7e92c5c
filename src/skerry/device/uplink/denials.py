"""What the helpers of an uplink say is refused, on its way into the audit trail.

The rule: a helper is not believed and not waited for. What it says is bounded and shown as text;
only so many records are written in a time, the rest waits in the pipe until the helper counts it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

import msgspec

from skerry.device.uplink.report import MAX_ASKED, MAX_REPORT, Refused

BURST, REFILL_S = 20, 5.0
"""Refusals of one use that are recorded at once; then one in so many seconds, and what comes
meanwhile is counted: the next record says how many more there were."""

EVENT = "uplink-refused"
"""The event of these records."""

MAX_MORE = 1 << 32
"""The highest number of further refusals that a record names; a higher one is cut down to it."""

Note = Callable[[str, Mapping[str, object]], None]
"""Records an event: `AuditLog.note`."""


class Denials:
    """Reads the reports of one use and records them with what it is `about`, until it is closed.

    The descriptor stays the caller's.
    """

    def __init__(self, pipe: int, note: Note, about: Mapping[str, object]) -> None:
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self._note, self._about = note, dict(about)
        self._left: float = BURST
        self._loop = asyncio.get_running_loop()
        self._then = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(pipe, self._read)

    def close(self) -> None:
        """Read no more."""
        self._loop.remove_reader(self._pipe)
        if self._timer is not None:
            self._timer.cancel()

    def _read(self) -> None:
        now = self._loop.time()
        self._left = min(BURST, self._left + (now - self._then) / REFILL_S)
        self._then = now
        if self._left < 1:
            self._loop.remove_reader(self._pipe)
            self._timer = self._loop.call_later((1 - self._left) * REFILL_S, self._again)
            return
        try:
            untrusted = os.read(self._pipe, MAX_REPORT)
        except BlockingIOError:
            return
        if not untrusted:  # its helpers have ended
            self._loop.remove_reader(self._pipe)
            return
        self._left -= 1
        self._note(EVENT, {**self._about, **_checked(untrusted)})

    def _again(self) -> None:
        self._loop.add_reader(self._pipe, self._read)


def _checked(untrusted: bytes) -> dict[str, object]:
    """Return the fields of a report; its text is a guest's, and escaped where it is shown."""
    try:
        report = msgspec.json.decode(untrusted, type=Refused)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {"reason": "its helper says something that is no report"}
    asked, reason = report.asked[:MAX_ASKED], report.reason[:MAX_ASKED]
    more = min(max(report.more, 0), MAX_MORE)
    fields = {"asked": asked, "reason": reason or "as told before", "more": more}
    return {key: value for key, value in fields.items() if value}
