"""Explanations: the only place that words an allow or a denial, for operator, audit and guest.

The rules this module keeps (law 8, *explanation*): the reason and the rule come from the module
that decided; the first question that failed decides the explanation; where several modules are
stacked, each one's answer is listed. A guest is told labels and rule only where it may see the
target, and otherwise a sentence that depends on nothing but the code.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from skerry.errors import Denied
from skerry.label import Label
from skerry.xsm.hooks import HOOKS
from skerry.xsm.request import Answer, Decision, Verdict

_GUEST_SENTENCES: Mapping[str, str] = {
    "STE-NO-SHARED-TYPE": "the policy does not let the two sides share",
    "STE-NOT-SUBSET": "the policy does not let this label be created here",
    "CW-CONFLICT": "a domain that conflicts with this one is running",
    "CW-HISTORY-CONFLICT": "what was touched before does not allow this any more",
    "LABEL-UNKNOWN": "the policy does not define such a label",
    "NOT-PRIVILEGED": "this is reserved to the owner of the node",
    "GENERATION-STALE": "the policy changed meanwhile; asking again is safe",
    "LIMIT-REACHED": "a limit is reached",
}
_OF_OTHERS = frozenset({"CW-HISTORY-CONFLICT"})
"""Codes whose reason may name labels that are neither subject nor target, as of whom is joined."""

_GUEST_DENIED = "the policy does not allow this"
_GUEST_ALLOWED = "the policy allows this"


class Explanation(msgspec.Struct, frozen=True):
    """Why an operation was allowed or refused.

    `sentence` is the deciding module's reason; `rule`, `file`, `line` its place in the policy.
    `answers` holds the answer of every module to the deciding question. `record` is the number
    in the audit trail, 0 until there is one.
    """

    allowed: bool
    code: str
    module: str
    sentence: str
    rule: str = ""
    file: str = ""
    line: int = 0
    subject: str = ""
    target: str = ""
    tclass: str = ""
    permissions: tuple[str, ...] = ()
    granted: tuple[str, ...] = ()
    hook: str = ""
    generation: int = 0
    record: int = 0
    answers: tuple[Answer, ...] = ()

    def text(self) -> str:
        """Return the explanation for people, in several lines."""
        asked = f"{self.tclass} {{ {' '.join(self.permissions)} }}" if self.tclass else ""
        sides = f"{self.subject} -> {self.target}" if self.target else self.subject
        partly = self.granted and not self.allowed
        word, why = "allowed" if self.allowed else "denied", f"{self.sentence} [{self.code}]"
        what = self._what()
        lines = [
            *([f"{word}: {what}", f"  why:        {why}"] if what else [f"{word}: {why}"]),
            *([f"  rule:       {self._place()}"] if self.rule or self.file else []),
            *([f"  labels:     {sides}"] if sides else []),
            *([f"  asked:      {asked}"] if asked else []),
            *([f"  granted:    {' '.join(self.granted)}"] if partly else []),
            *([f"  module:     {self.module}"] if self.module else []),
            *([f"  generation: {self.generation}"] if self.generation else []),
            *([f"  record:     {self.record}"] if self.record else []),
        ]
        if len(self.answers) > 1:
            lines += [f"  {a.module}: {_word(a)}: {a.reason} [{a.code}]" for a in self.answers]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """Return the explanation as an object for `--json` and the audit trail."""
        return {
            "allowed": self.allowed,
            "code": self.code,
            "module": self.module,
            "sentence": self.sentence,
            "rule": self.rule,
            "file": self.file,
            "line": self.line,
            "subject": self.subject,
            "target": self.target,
            "class": self.tclass,
            "permissions": list(self.permissions),
            "granted": list(self.granted),
            "hook": self.hook,
            "generation": self.generation,
            "record": self.record,
            "answers": [
                {
                    "module": answer.module,
                    "allowed": answer.allowed,
                    "code": answer.code,
                    "reason": answer.reason,
                    "rule": str(answer.rule),
                }
                for answer in self.answers
            ],
        }

    def for_guest(self, may_see_target: bool) -> dict[str, object]:
        """Return what a guest may know: code, sentence, record; the rest only on demand."""
        known = _GUEST_ALLOWED if self.allowed else _GUEST_SENTENCES.get(self.code, _GUEST_DENIED)
        if may_see_target:
            return {
                "code": self.code,
                "sentence": known if self.code in _OF_OTHERS else self.sentence,
                "record": self.record,
                "subject": self.subject,
                "target": self.target,
                "class": self.tclass,
                "permissions": list(self.permissions),
                "rule": self._place(),
            }
        return {"code": self.code, "sentence": known, "record": self.record}

    def _what(self) -> str:
        hook = HOOKS.get(self.hook)
        if hook and hook.what:
            return hook.what
        return f"{self.tclass} {' '.join(self.permissions)}".strip() or self.hook

    def _place(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        if self.rule and where:
            return f"{self.rule} ({where})"
        return self.rule or where


class Refused(Denied):
    """The security modules refused an operation; holds the explanation."""

    def __init__(self, explanation: Explanation) -> None:
        super().__init__(explanation.sentence, code=explanation.code, record=explanation.record)
        self.explanation = explanation


def explain(
    verdict: Verdict, *, subject: Label | str = "", target: Label | str = "", record: int = 0
) -> Explanation:
    """Explain a hook's verdict by the first question that failed, or the last one if none did.

    A refusal that nobody gave is explained as such, and never by an answer that allows. `subject`
    and `target` name the two sides of an admission, which has no request of its own.
    """
    failed = next((d for d in verdict.decisions if not d.allowed), None)
    if failed is None and verdict.admission:
        refused = not all(answer.allowed for answer in verdict.admission)
        if refused or not verdict.decisions:
            return _explain(verdict, verdict.admission, str(subject), str(target), record)
    deciding = failed or (verdict.decisions[-1] if verdict.decisions and verdict.allowed else None)
    if deciding is None:
        return Explanation(
            False, "NOT-DECIDED", "", "nobody was asked", hook=verdict.hook, record=record
        )
    return explain_decision(deciding, hook=verdict.hook, record=record)


def explain_decision(decision: Decision, *, hook: str = "", record: int = 0) -> Explanation:
    """Explain the answer to one request."""
    request = decision.request
    verdict = Verdict(hook, decision.allowed, (decision,), (), decision.generation)
    explanation = _explain(
        verdict, decision.answers, str(request.subject), str(request.target), record
    )
    granted = set(request.permissions).intersection(*(a.granted for a in decision.answers))
    return msgspec.structs.replace(
        explanation,
        tclass=request.tclass,
        permissions=request.permissions,
        granted=tuple(sorted(granted)),
    )


def explain_error(
    error: Denied, *, subject: Label | str = "", target: Label | str = "", hook: str = ""
) -> Explanation:
    """Explain a denial that was raised: the modules' own explanation where it carries one."""
    if isinstance(error, Refused):
        if error.record:
            return msgspec.structs.replace(error.explanation, record=error.record)
        return error.explanation
    return Explanation(
        False,
        error.code,
        "",
        str(error),
        subject=str(subject),
        target=str(target),
        hook=hook,
        record=error.record,
    )


def refuse(
    verdict: Verdict, *, subject: Label | str = "", target: Label | str = "", record: int = 0
) -> Refused:
    """Return the error to raise for a verdict that is not an allow."""
    return Refused(explain(verdict, subject=subject, target=target, record=record))


def _explain(
    verdict: Verdict, answers: tuple[Answer, ...], subject: str, target: str, record: int
) -> Explanation:
    deciding = next((answer for answer in answers if not answer.allowed), answers[0])
    return Explanation(
        verdict.allowed and all(answer.allowed for answer in answers),
        deciding.code,
        deciding.module,
        deciding.reason,
        deciding.rule.text,
        deciding.rule.file,
        deciding.rule.line,
        subject,
        target,
        hook=verdict.hook,
        generation=verdict.generation,
        record=record,
        answers=answers,
    )


def _word(answer: Answer) -> str:
    return "allows" if answer.allowed else "denies"
