"""A bound on the time that an analysis may take.

The rule this module keeps: an analysis that takes longer ends with an error, and never with the
answer that it had so far. It is asked between steps, each of which has a bound by its size.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from skerry.errors import Denied

MAX_ANALYSIS_S = 30.0
"""Longest that assertions are proven before a policy comes into force, in seconds; beyond it the
change is refused."""


Check = Callable[[], None]
"""Called between steps, each of which has a bound by its size; raises what ends the analysis."""


def unbounded() -> None:
    """Let an analysis take what time it takes."""


class TookTooLong(Denied):
    """An analysis went on beyond its bound."""

    code = "ANALYSIS-TOO-LONG"


class Deadline:
    """The end of the time that an analysis has."""

    def __init__(
        self, seconds: float = MAX_ANALYSIS_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._end = clock() + seconds

    def check(self) -> None:
        """Raise `TookTooLong` once the time is over."""
        if self._clock() > self._end:
            raise TookTooLong(f"the analysis took longer than {self._seconds:g} s")

    def again(self) -> Deadline:
        """Return as much time, beginning now."""
        return Deadline(self._seconds, self._clock)
