"""What a helper of an uplink tells the node: what was asked for and is refused.

The rules: telling never waits and costs bounded memory; what is told again and again, or finds no
room, is counted, and the count goes with the next report.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict

import msgspec

AGAIN_S = 60.0
"""For how many seconds the same refusal is only counted."""

REMEMBERED = 64
"""Refusals that are remembered as told; the oldest is then told again."""

MAX_ASKED = 300
"""Characters of what was asked; the rest is cut off. A name has 253 at most."""

MAX_REPORT = 2048
"""Bytes of one report, which is one write to a pipe and so not mixed with another's."""


class Refused(msgspec.Struct, frozen=True):
    """One refusal: what was asked, why not, and how many more there were that are not told."""

    asked: str
    reason: str
    more: int = 0


class Reports:
    """Tells of refusals over a pipe in packet mode, whose writing end does not block."""

    def __init__(self, pipe: int) -> None:
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self._told: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._more, self._last = 0, 0.0

    def tell(self, asked: str, reason: str, now: float) -> None:
        """Tell of a refusal, or count it."""
        key = asked[:MAX_ASKED], reason
        if self._told.get(key, 0.0) > now:
            self._more += 1
        elif self._write(Refused(*key, self._more)):
            self._told[key], self._last = now + AGAIN_S, now
            self._told.move_to_end(key)
            if len(self._told) > REMEMBERED:
                self._told.popitem(last=False)

    def settle(self, now: float) -> None:
        """Tell what was only counted, where nothing else was told for some time."""
        if self._more and now > self._last + AGAIN_S and self._write(Refused("", "", self._more)):
            self._last = now

    def _write(self, report: Refused) -> bool:
        try:
            os.write(self._pipe, msgspec.json.encode(report))
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
            self._more += 1 if report.asked else 0
            return False
        self._more = 0
        return True
