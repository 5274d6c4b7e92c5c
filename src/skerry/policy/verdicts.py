"""Whole verdicts, kept by hook and parties while their generation is in force.

The rule this module keeps: what is kept is what the manager would answer: only hooks whose answers
may be cached, no failure, nothing of a Chinese Wall that depends on what runs or was touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import msgspec

from skerry.label import Label
from skerry.xsm.cache import UNCACHED_CODES
from skerry.xsm.hooks import HOOKS
from skerry.xsm.request import Verdict

MAX_VERDICTS = 4_096
"""Most verdicts kept, a channel's taking up to 23 KB; when full, the oldest makes room. A change of
policy keeps as many as it has judged channels, if those are more."""

MAX_KEPT = 32 * 1024
"""Longest verdict kept, in bytes as it is sent; a channel's has some 8 KB. A longer one, of very
long labels, is asked for each time."""

Key = tuple[object, ...]


def key_of(hook: str, parties: Mapping[str, Label]) -> Key:
    """Return what a verdict is kept by."""
    return (hook, *parties.items())


class Verdicts:
    """The verdicts of one generation."""

    def __init__(self, max_verdicts: int = MAX_VERDICTS) -> None:
        self._max = max_verdicts
        self._kept: dict[Key, Verdict] = {}

    def make_room(self, count: int) -> None:
        """Keep at least so many."""
        self._max = max(self._max, count)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> Verdict | None:
        """Return the verdict, None if it must be asked for."""
        return self._kept.get(key)

    def put(self, key: Key, verdict: Verdict) -> None:
        """Keep a verdict, if that may be."""
        answers = chain(verdict.admission, *(each.answers for each in verdict.decisions))
        failed = any(answer.code in UNCACHED_CODES for answer in answers)
        if failed or not HOOKS[verdict.hook].cached or not may_keep(verdict):
            return
        if len(self._kept) >= self._max:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = verdict


def may_keep(verdict: Verdict) -> bool:
    """Say whether a verdict is short enough to be kept."""
    return len(msgspec.msgpack.encode(verdict)) <= MAX_KEPT
