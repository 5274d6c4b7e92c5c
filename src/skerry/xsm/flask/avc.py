"""What SELinux would audit of a verdict: refusals and marked grants, as access vectors.

The rule: a record of the trail holds every decision; its access vectors say no more and no less
than a kernel's log would. A refused question gives the permissions refused that the policy does
not hide (dontaudit), a granted one those that it marks (auditallow). What a permissive source was
let pass comes once a generation, as Xen's cache reports it once while its entry lives; and not
only once decided but once recorded, since a decision may be made and cached with no record.
"""

from __future__ import annotations

from skerry.xsm.hooks import HOOKS
from skerry.xsm.request import Answer, Request, Verdict

MAX_AVC_CHARS = 16_384
"""Most characters of contexts among a record's access vectors; what is left out is counted."""

MAX_HEARD = 65_536
"""Most refusals to permissive sources remembered as recorded; beyond it, all come once more."""

_Entry = dict[str, object]


class AvcMessages:
    """Makes the access vectors of records, and remembers which permissive ones were recorded."""

    def __init__(self) -> None:
        self._heard: set[tuple[str, ...]] = set()
        self._generation = 0

    def forget(self) -> None:
        """Take nothing for recorded: what was to be perhaps was not."""
        self._heard.clear()

    def of(self, verdict: Verdict) -> list[_Entry | int]:
        """Return what would be audited; a number at the end says how many did not fit."""
        if verdict.generation != self._generation or len(self._heard) > MAX_HEARD:
            self._heard, self._generation = set(), verdict.generation
        found: list[_Entry | int] = []
        room, left_out = MAX_AVC_CHARS, 0
        for question, decision in zip(HOOKS[verdict.hook].asks, verdict.decisions, strict=False):
            for answer in decision.answers:
                refused, names = self._unheard(decision.request, answer)
                if not names:
                    continue
                room -= sum(map(len, answer.contexts))
                if room < 0:
                    left_out += 1
                    continue
                if refused and answer.permissive:
                    self._heard.update(_keys(decision.request, answer, names))
                sides = {"subject": question.subject, "target": question.target}
                found.append(_entry(refused, names, decision.request, answer) | sides)
        return [*found, left_out] if left_out else found

    def _unheard(self, request: Request, answer: Answer) -> tuple[bool, list[str]]:
        """Say whether something was refused, and which permissions are still to be recorded."""
        if not answer.contexts:
            return False, []
        refused = set(request.permissions) - set(answer.granted)
        names = sorted(refused - set(answer.dontaudit) if refused else answer.auditallow)
        if refused and answer.permissive:
            keys = _keys(request, answer, names)
            names = [name for name, key in zip(names, keys, strict=True) if key not in self._heard]
        return bool(refused), names


def _keys(request: Request, answer: Answer, names: list[str]) -> list[tuple[str, ...]]:
    return [(*answer.contexts, request.tclass, name) for name in names]


def _entry(refused: bool, names: list[str], request: Request, answer: Answer) -> _Entry:
    return {
        "refused": refused,
        "permissions": names,
        "scontext": answer.contexts[0],
        "tcontext": answer.contexts[1],
        "tclass": request.tclass,
        "permissive": answer.permissive,
    }
