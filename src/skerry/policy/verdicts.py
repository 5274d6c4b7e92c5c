"""Whole verdicts, kept by hook and parties while their generation is in force.

The rule this module keeps: what is kept is what the manager would answer: only hooks whose answers
may be cached, no failure, and of a Chinese Wall only what nothing that was touched since changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain

import msgspec

from skerry.label import Label
from skerry.policy.messages import Question
from skerry.xsm.cache import UNCACHED_CODES
from skerry.xsm.hooks import HOOKS
from skerry.xsm.request import Verdict
from skerry.xsm.stack import History

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
        if not HOOKS[verdict.hook].cached or not _lasts(verdict):
            return
        if len(self._kept) >= self._max:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = verdict


class Walls:
    """What was said of walls under one generation, until somebody touches something new."""

    def __init__(self, now: Callable[[], History]) -> None:
        """`now` returns the history as it is: another object once it has grown."""
        self._now = now
        self._history = now()
        self._max = MAX_VERDICTS
        self._kept: dict[Question, Verdict] = {}

    def make_room(self, count: int) -> None:
        """Keep at least so many."""
        self._max = max(self._max, count)

    def get(self, question: Question) -> Verdict | None:
        """Return what was said, None if it must be asked for."""
        self._forget_old()
        return self._kept.get(question)

    def put(self, question: Question, verdict: Verdict, history: History) -> None:
        """Keep what was said to a question that was asked under a history, if that may be."""
        self._forget_old()
        if history is not self._history or not _lasts(verdict):
            return
        if len(self._kept) >= self._max:
            del self._kept[next(iter(self._kept))]
        self._kept[question] = verdict

    def _forget_old(self) -> None:
        if self._now() is not self._history:
            self._kept.clear()
            self._history = self._now()


def _lasts(verdict: Verdict) -> bool:
    """Say whether a verdict is no failure, and short enough to be kept."""
    answers = chain(verdict.admission, *(each.answers for each in verdict.decisions))
    if any(answer.code in UNCACHED_CODES for answer in answers):
        return False
    return len(msgspec.msgpack.encode(verdict)) <= MAX_KEPT
