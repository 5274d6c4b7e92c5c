"""What a verdict must look like, as an answer to its question, before the core believes it.

The rules this module keeps: a verdict answers what was asked, about the parties that were asked
about; somebody has answered each of its questions, and all that it says agrees; what it calls by
name are names, and its sentences are shown to people as words.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from msgspec.structs import replace

from skerry.label import Label
from skerry.policy.messages import MAX_CODE, Exchanged, Hooked, Question
from skerry.wire.escape import escape
from skerry.xsm.hooks import HOOKS
from skerry.xsm.hooks import Question as Asked
from skerry.xsm.request import Answer, Request, Verdict

MAX_TEXT = 16_384
"""Longest sentence or place in a policy of an answer, in characters; the rest is cut off."""


def well_formed(question: Question, verdict: Verdict, generation: int) -> bool:
    """Say whether a verdict answers this question of this generation, and agrees with itself."""
    if verdict.generation != generation:
        return False
    if isinstance(question, Hooked):
        return verdict.hook == question.hook and _decided(question, verdict, generation)
    what = "admit_bind" if isinstance(question, Exchanged) else "admit_start"
    agreed = _agreed(verdict.admission, verdict.allowed)
    return (verdict.hook, verdict.decisions) == (what, ()) and agreed


def _decided(question: Hooked, verdict: Verdict, generation: int) -> bool:
    hook, decisions = HOOKS.get(question.hook), verdict.decisions
    if hook is None or len(decisions) != len(hook.asks):
        return False
    allowed = all(decision.allowed for decision in decisions)
    if allowed and hook.admission == "beside":
        agreed = _agreed(verdict.admission, verdict.allowed)
    else:
        agreed = (verdict.allowed, verdict.admission) == (allowed, ())
    return agreed and all(
        decision.generation == generation
        and _agreed(decision.answers, decision.allowed)
        and _asked(ask, decision.request, question.parties)
        for ask, decision in zip(hook.asks, decisions, strict=True)
    )


def _asked(ask: Asked, request: Request, parties: Mapping[str, Label]) -> bool:
    """Say whether a request is the one that a hook makes of these parties.

    What a label makes toward another (`one->other`) is the modules' to name.
    """
    sides = (ask.subject, request.subject), (ask.target, request.target)
    return (request.tclass, request.permissions) == (ask.tclass, ask.permissions) and all(
        str(label).isprintable() if "->" in role else parties.get(role) == label
        for role, label in sides
    )


def _agreed(answers: tuple[Answer, ...], allowed: bool) -> bool:
    """Say whether somebody answered, each in full, and all together say `allowed`."""
    return (
        bool(answers)
        and all(answer.allowed for answer in answers) == allowed
        and all(len(answer.contexts) in (0, 2) and _named(answer) for answer in answers)
    )


def _named(answer: Answer) -> bool:
    """Say whether an answer's names are names, which may be shown as they are."""
    names = answer.granted, answer.auditallow, answer.dontaudit, answer.contexts
    return max(len(answer.module), len(answer.code)) <= MAX_CODE and all(
        name.isprintable() for name in (answer.module, answer.code, *itertools.chain(*names))
    )


def plain(verdict: Verdict) -> Verdict:
    """Return a verdict whose sentences and places may be shown; the same one if they may."""
    answers = itertools.chain(verdict.admission, *(each.answers for each in verdict.decisions))
    if all(_plain(answer) is answer for answer in answers):
        return verdict
    decisions = tuple(
        [replace(each, answers=tuple(map(_plain, each.answers))) for each in verdict.decisions]
    )
    return replace(verdict, decisions=decisions, admission=tuple(map(_plain, verdict.admission)))


def _plain(answer: Answer) -> Answer:
    untrusted = answer.reason, answer.rule.text, answer.rule.file
    if all(text.isprintable() and len(text) <= MAX_TEXT for text in untrusted):
        return answer
    reason, rule, file = map(shown, untrusted)
    return replace(answer, reason=reason, rule=replace(answer.rule, text=rule, file=file))


def shown(untrusted: str) -> str:
    """Return a manager's words as they may be shown: cut, and without control characters."""
    words = untrusted[:MAX_TEXT]
    return words if words.isprintable() else escape(words)
