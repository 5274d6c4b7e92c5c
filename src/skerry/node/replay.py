"""An audit trail's decisions asked again under another policy.

The rules this module keeps: each is asked as it was then: the same hook, the same labels, beside
the domains that ran then, with what was touched by then, as far as the trail tells. A label that
the policy lacks is denied, as it would be. What no policy decided (a limit, a missing layer) is
counted and not asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import msgspec

from skerry.audit.record import Record
from skerry.errors import Denied
from skerry.label import Label
from skerry.monitor.mediate import SERVICES, exchanged, explain_for, judge
from skerry.policy.history import MemoryHistory
from skerry.policy.manager import PolicyManager
from skerry.xsm.acm.module import SECURITY
from skerry.xsm.hooks import HOOKS
from skerry.xsm.stack import Stack

_ROLES = {
    name: {role for q in hook.asks for side in (q.subject, q.target) for role in side.split("->")}
    for name, hook in HOOKS.items()
}
"""The parties of each hook, without which nothing can be asked."""

_SERVICES = {str(label): label for label in SERVICES}
"""The node's own domains, which start as themselves and count in no wall."""


class Answered(msgspec.Struct, frozen=True):
    """One recorded decision, and what the policy says to it now, with the code and the reason."""

    record: int
    hook: str
    parties: Mapping[str, str]
    before: bool
    after: bool
    code: str
    sentence: str


class Replay:
    """Asks record after record, in the trail's order."""

    def __init__(self, stack: Stack) -> None:
        self.skipped = 0
        self._stack = stack
        self._manager = PolicyManager(stack, MemoryHistory())
        self._running: dict[str, Label | None] = {}

    async def ask(self, record: Record) -> Answered | None:
        """Return the answer to a record's decision, None if it holds none."""
        if record.event not in ("allow", "deny"):
            self._follow(record)
            return None
        hook, parties = record.fields.get("hook"), _texts(record.fields.get("parties"))
        if not isinstance(hook, str) or hook not in HOOKS or not _ROLES[hook] <= parties.keys():
            self.skipped += 1
            return None
        allowed = record.event == "allow"
        answered = await self._answer(record.n, hook, parties, allowed)
        if allowed:
            await self._happened(record, hook, parties)
        return answered

    async def _answer(
        self, number: int, hook: str, parties: Mapping[str, str], before: bool
    ) -> Answered:
        try:
            labels = {role: self._label(hook, role, text) for role, text in parties.items()}
            verdict = await judge(self._manager, hook, labels, self._beside(labels))
        except Denied as error:
            return Answered(number, hook, parties, before, False, error.code, error.message)
        why = explain_for(verdict, labels)
        return Answered(number, hook, parties, before, verdict.allowed, why.code, why.sentence)

    def _label(self, hook: str, role: str, text: str) -> Label:
        if text == SECURITY and role == SECURITY:
            return Label(tuple(sorted((name, SECURITY) for name in self._stack.names)))
        if text in _SERVICES:  # where the node's own domains start, as themselves
            return _SERVICES[text]
        resource = role == "console" or (role == "sink" and hook.startswith("resource_"))
        return self._stack.label(text, "resource" if resource else "domain")

    def _beside(self, labels: Mapping[str, Label]) -> tuple[Label, ...]:
        """Return the labels that ran; a domain that changes its label does not count itself."""
        running = [label for label in self._running.values() if label is not None]
        if "new" in labels and labels["domain"] in running:
            running.remove(labels["domain"])
        return tuple(sorted(running))

    async def _happened(self, record: Record, hook: str, parties: Mapping[str, str]) -> None:
        """Let an operation count that was allowed then, as far as the policy knows its labels."""
        name = record.fields.get("domain")
        starts = HOOKS[hook].admission == "start" and parties["domain"] not in _SERVICES
        if starts and isinstance(name, str):
            self._running[name] = None
            with contextlib.suppress(Denied):
                self._running[name] = self._stack.label(
                    parties.get("new", parties["domain"]), "domain"
                )
        with contextlib.suppress(Denied):
            labels = {role: self._label(hook, role, text) for role, text in parties.items()}
            sides = exchanged(hook, labels)
            if sides and SERVICES.isdisjoint(sides):
                await self._manager.touch(*sides)

    def _follow(self, record: Record) -> None:
        """Follow which domains run."""
        if record.event in ("up", "down"):
            self._running.clear()
        elif record.event == "ended":
            self._running.pop(str(record.fields.get("domain")), None)


def _texts(untrusted: object) -> dict[str, str]:
    if not isinstance(untrusted, dict):
        return {}
    found = {str(role): text for role, text in untrusted.items() if isinstance(text, str)}
    return found if len(found) == len(untrusted) else {}
