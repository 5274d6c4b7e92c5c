"""The access vector cache: decisions kept under small numbers, for one generation.

The rule this module keeps: a cached answer is the answer that the modules would give. An entry
is found only under the generation it was decided in, and a change of policy empties the cache.
"""

from __future__ import annotations

from skerry.label import SidTable
from skerry.xsm.request import Decision, Request

MAX_ENTRIES = 65_536
"""Most decisions kept; when full, the oldest makes room, and asking it again costs a miss."""

MAX_SIDS = 65_536
"""Most labels numbered; beyond it, numbers and decisions are forgotten and counted anew."""

UNCACHED_CODES = frozenset({"MODULE-FAILED"})
"""A failure is not an answer: it denies, and the next question is asked afresh."""

_Key = tuple[int, int, str, tuple[str, ...]]


class Avc:
    """Decisions by (subject SID, target SID, class, permissions) and generation."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max = max_entries
        self._generation = 0
        self._entries: dict[_Key, Decision] = {}
        self._sids = SidTable()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, request: Request, generation: int) -> Decision | None:
        """Return the decision of this generation, or None if it must be made."""
        if generation != self._generation:
            return None
        sid = self._sids.sid
        key = (sid(request.subject), sid(request.target), request.tclass, request.permissions)
        return self._entries.get(key)

    def put(self, decision: Decision) -> None:
        """Keep a decision. One of an older generation is dropped; of a newer one, it flushes."""
        if decision.generation < self._generation:
            return
        if decision.generation > self._generation:
            self.flush(decision.generation)
        one, other = self._number(decision.request)
        if max(one, other) >= MAX_SIDS:
            self.flush(self._generation)
            one, other = self._number(decision.request)
        if any(answer.code in UNCACHED_CODES for answer in decision.answers):
            return
        if len(self._entries) >= self._max:
            del self._entries[next(iter(self._entries))]
        request = decision.request
        self._entries[one, other, request.tclass, request.permissions] = decision

    def flush(self, generation: int) -> None:
        """Forget everything and begin with this generation."""
        self._generation = generation
        self._entries.clear()
        self._sids = SidTable()

    def _number(self, request: Request) -> tuple[int, int]:
        return self._sids.sid(request.subject), self._sids.sid(request.target)
