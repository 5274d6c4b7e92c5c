"""Asking before doing: decide, record, and compare the generation again.

The rule (laws 2 to 4): an effect happens only after every question was allowed, the allow is on
disk, and neither the policy nor a party's label changed meanwhile. A refusal is recorded too, and
is a refusal even when it can't be.

One answer is the core's own: the two domains that the node itself rests on (`SERVICES`) start where
no policy manager can be asked yet. That is all: of everything else about them the policy is asked,
which knows no such label, and so denies it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from skerry.errors import DeciderUnavailable, Denied, StaleGeneration
from skerry.label import Label
from skerry.monitor.protocols import AuditLog, Decider, Judge
from skerry.monitor.table import OTHERS
from skerry.xsm.explain import Explanation, Refused, explain
from skerry.xsm.flask.avc import AvcMessages
from skerry.xsm.hooks import HOOKS
from skerry.xsm.request import Answer, Verdict

MANAGER, AUDIT = (Label((("core", f"core.{name}"),)) for name in ("policy-manager", "audit"))
SERVICES: Final = frozenset({MANAGER, AUDIT})
"""The labels of the policy manager's domain and of the audit replica's. They have no part for any
module, so no policy defines one, and no text that an operator gives is read as one."""

BOOTSTRAP = Answer("core", True, "BOOTSTRAP", "the node starts its own service as itself")
"""The answer of the fixed rule: operator and domain are the same one of `SERVICES`."""

EXCHANGED = {"start": ("domain", "new"), "bind": ("source", "sink"), "written": ("source",)}
"""The roles between which a hook lets information go, by its admission; `OTHERS` besides."""

MAX_TRIES = 8
"""How often a question is asked again because the policy or a label changed meanwhile."""

Parties = Mapping[str, Label]


class Grant(msgspec.Struct, frozen=True):
    """An allow that is on disk: its record's number and the generation that decided."""

    record: int
    generation: int


class Mediator:
    """Asks the decider, and keeps the trail."""

    def __init__(self, decider: Decider, audit: AuditLog) -> None:
        self.decider = decider
        self.audit = audit
        self._avc = AvcMessages()

    async def permit(
        self,
        hook: str,
        parties: Callable[[], Parties],
        about: Mapping[str, object],
        running: Callable[[], tuple[Label, ...]] = tuple,
    ) -> Grant:
        """Return once the hook is allowed, recorded and still current.

        `parties` and `running` are asked again after the record is written: if they or the
        generation changed, the question is asked anew; who wrote or was joined meanwhile is counted
        in the walls as well, which may refuse it. Nothing else runs between that comparison
        and the return, so the caller may act on the grant up to its next `await`.

        Raises `Refused` (with its record's number), `StaleGeneration` after `MAX_TRIES`, or any
        other `Denied` of the decider or the trail.
        """
        for _ in range(MAX_TRIES):
            asked, beside = parties(), running()
            record = 0
            try:
                verdict = await self.judge(hook, asked, beside)
                if verdict.allowed:
                    record = await self.audit.append("allow", self._fields(verdict, asked, about))
                    await self.touch(hook, asked, parties)
                else:
                    refusal = await self.refusal(verdict, asked, about)
            except Exception as error:
                undone = {"allow": record} if record else {}
                raise self._failure(hook, error, {**about, **undone}) from error
            if not verdict.allowed:
                raise Refused(refusal)
            if (
                self.decider.generation == verdict.generation
                and apart(parties()) == apart(asked)
                and running() == beside
            ):
                return Grant(record, verdict.generation)
            self.audit.note("stale", {"record": record, "generation": verdict.generation})
        why = f"the policy or a label changed {MAX_TRIES} times while {hook} was decided"
        raise self._failure(hook, StaleGeneration(why, fix="try again"), about)

    def _failure(self, hook: str, error: Exception, about: Mapping[str, object]) -> Denied:
        """Record what failed in deciding or recording, and return it: a denial by type."""
        self._avc.forget()  # what should have been recorded perhaps was not
        if not isinstance(error, Denied):
            error = DeciderUnavailable(f"asking {hook} failed: {error!r:.200}")
        self.failed(hook, error, **about)
        return error

    async def judge(self, hook: str, parties: Parties, running: tuple[Label, ...] = ()) -> Verdict:
        """Return the verdict of the policy in force; nothing is recorded."""
        return await judge(self.decider, hook, parties, running)

    async def touch(self, hook: str, asked: Parties, parties: Callable[[], Parties]) -> None:
        """Remember in the walls what an operation exchanges that was allowed for `asked`.

        `parties` are asked again, until all who have written or are joined by then were counted.
        Each round counts somebody more, so there are no more rounds than labels. Raises a `Denied`.
        """
        done: dict[Label, None] = {}
        while apart(now := parties()) == apart(asked):
            done, before = done | dict.fromkeys(exchanged(hook, now)), done
            if done == before or not SERVICES.isdisjoint(done):
                return
            await self.decider.touch(*done)

    async def refusal(
        self, verdict: Verdict, parties: Parties, about: Mapping[str, object]
    ) -> Explanation:
        """Record a refusal and return its explanation; what can't be recorded is refused too."""
        explanation = explain_for(verdict, parties)
        fields = self._fields(verdict, parties, about) | {"why": explanation.as_dict()}
        return msgspec.structs.replace(explanation, record=await self.deny(fields))

    async def deny(self, fields: Mapping[str, object]) -> int:
        """Record a denial and return its number; 0 if it could only be noted."""
        try:
            return await self.audit.append("deny", fields)
        except Exception:
            self.audit.note("deny", fields)
            return 0

    def _fields(
        self, verdict: Verdict, parties: Parties, about: Mapping[str, object]
    ) -> dict[str, object]:
        avc = self._avc.of(verdict)
        return {
            "hook": verdict.hook,
            "generation": verdict.generation,
            "parties": {role: str(label) for role, label in parties.items()},
            "rules": _rules(verdict),
            **about,
            **({"avc": avc} if avc else {}),
        }

    def failed(self, hook: str, error: Denied, **about: object) -> None:
        """Record a denial that no module decided: a limit, a missing layer, a transport."""
        self.audit.note("deny", failure(hook, error, about))


def failure(hook: str, error: Denied, about: Mapping[str, object]) -> dict[str, object]:
    """Return what the trail says of a denial that no module decided."""
    return {"hook": hook, **about, "why": {"code": error.code, "sentence": error.message}}


async def judge(
    policy: Judge, hook: str, parties: Parties, running: tuple[Label, ...] = ()
) -> Verdict:
    """Return a policy's verdict of a hook with its Chinese Wall question; nothing is recorded."""
    if hook in ("domain_create", "domain_unpause") and {*parties.values()} in ({MANAGER}, {AUDIT}):
        return Verdict(hook, True, (), (BOOTSTRAP,), policy.generation)
    sides = exchanged(hook, parties)
    wall = verdict = await policy.decide(hook, apart(parties))
    if verdict.allowed and HOOKS[hook].admission == "start":
        wall = await policy.admit(parties.get("new", parties["domain"]), running)
    if wall.allowed and len(sides) > 1:  # at a relabel the domain's memory crosses with it
        wall = await policy.admit_bind(*sides)
    if wall is verdict:
        return verdict
    generation = min(verdict.generation, wall.generation)
    return Verdict(hook, wall.allowed, verdict.decisions, wall.admission, generation)


def apart(parties: Parties) -> Parties:
    """Return those that the policy is asked about: without writers, and who is only joined."""
    return {role: label for role, label in parties.items() if not role.startswith(OTHERS)}


def exchanged(hook: str, parties: Parties) -> list[Label]:
    """Return the labels that exchange information, the source first; one alone is a start."""
    admission = HOOKS[hook].admission
    sides = [parties[role] for role in EXCHANGED.get(admission, ()) if role in parties]
    sides += [label for role, label in parties.items() if role.startswith(OTHERS)]
    return sides if len(sides) > (admission == "written") else []


def explain_for(verdict: Verdict, parties: Parties) -> Explanation:
    """Explain a verdict; the sides of a Chinese Wall question are those of the hook."""
    subject = parties.get("new") or parties.get("source") or parties.get("domain") or ""
    return explain(verdict, subject=subject, target=parties.get("sink", ""))


def _rules(verdict: Verdict) -> list[str]:
    """The distinct reasons of a verdict, in order.

    Where an end of a channel has its maker's label, as ACM gives it, what that label asks of
    itself says nothing. Two domains of one label are another matter.
    """
    answers = [
        answer
        for question, decision in zip(HOOKS[verdict.hook].asks, verdict.decisions, strict=False)
        if decision.request.subject != decision.request.target
        or not question.target.startswith(f"{question.subject}->")
        for answer in decision.answers
    ]
    answers += verdict.admission
    return list(dict.fromkeys(f"{a.module}: {a.code}: {a.reason}" for a in answers))
