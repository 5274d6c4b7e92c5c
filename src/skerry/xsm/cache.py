"""The access vector cache: decisions kept by their requests, for one generation.

The rule this module keeps: a cached answer is the answer that the modules would give. An entry
is found only under the generation it was decided in, and a change of policy empties the cache.
"""

from __future__ import annotations

from skerry.xsm.request import Decision, Request

MAX_ENTRIES = 65_536
"""Most decisions kept; when full, the oldest makes room, and asking it again costs a miss."""

UNCACHED_CODES = frozenset({"MODULE-FAILED"})
"""A failure is not an answer: it denies, and the next question is asked afresh."""


class Avc:
    """Decisions by request (both labels, class, permissions) and generation.

    A label remembers its own hash, so to look a request up costs no more than small numbers would.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max = max_entries
        self._generation = 0
        self._entries: dict[Request, Decision] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, request: Request, generation: int) -> Decision | None:
        """Return the decision of this generation, or None if it must be made."""
        if generation != self._generation:
            return None
        return self._entries.get(request)

    def put(self, decision: Decision) -> None:
        """Keep a decision. One of an older generation is dropped; of a newer one, it flushes."""
        if decision.generation < self._generation:
            return
        if decision.generation > self._generation:
            self.flush(decision.generation)
        if any(answer.code in UNCACHED_CODES for answer in decision.answers):
            return
        if len(self._entries) >= self._max:
            del self._entries[next(iter(self._entries))]
        self._entries[decision.request] = decision

    def flush(self, generation: int) -> None:
        """Forget everything and begin with this generation."""
        self._generation = generation
        self._entries.clear()
