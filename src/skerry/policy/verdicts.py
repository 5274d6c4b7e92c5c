"""Whole verdicts, kept by hook and parties while their generation is in force.

The rule this module keeps: what is kept is what the manager would answer: only hooks whose answers
may be cached, no failure, nothing of a Chinese Wall. And what a verdict must look like, as an
answer to its question, before the core believes it.
"""

from __future__ import annotations

from collections.abc import Mapping

from skerry.label import Label
from skerry.policy.messages import Exchanged, Hooked, Question
from skerry.xsm.cache import UNCACHED_CODES
from skerry.xsm.hooks import HOOKS
from skerry.xsm.request import Verdict

MAX_VERDICTS = 4_096
"""Most verdicts kept, a channel's taking up to 23 KB; when full, the oldest makes room. A change of
policy keeps as many as it has judged channels, if those are more."""

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
        if not HOOKS[verdict.hook].cached or any(
            answer.code in UNCACHED_CODES
            for decision in verdict.decisions
            for answer in decision.answers
        ):
            return
        if len(self._kept) >= self._max:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = verdict


def well_formed(question: Question, verdict: Verdict, generation: int) -> bool:
    """Say whether a verdict answers this question of this generation, and agrees with itself."""
    if verdict.generation != generation:
        return False
    if not isinstance(question, Hooked):
        what = "admit_bind" if isinstance(question, Exchanged) else "admit_start"
        answers = verdict.admission
        allowed = bool(answers) and all(answer.allowed for answer in answers)
        return (verdict.hook, verdict.decisions, verdict.allowed) == (what, (), allowed)
    hook, decisions = HOOKS.get(question.hook), verdict.decisions
    if hook is None or len(decisions) != len(hook.asks):
        return False
    asked = [(ask.tclass, ask.permissions) for ask in hook.asks]
    allowed = all(
        decision.allowed and decision.answers and all(answer.allowed for answer in decision.answers)
        for decision in decisions
    )
    return (
        (verdict.hook, verdict.admission, verdict.allowed) == (question.hook, (), allowed)
        and [(d.request.tclass, d.request.permissions) for d in decisions] == asked
        and all(decision.generation == generation for decision in decisions)
    )
