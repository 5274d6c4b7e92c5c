"""An audit trail's decisions asked again under another policy.

The rules this module keeps: each is asked as it was then: the same hook, the same labels, beside
the domains that ran then, with what was touched by then, as far as the trail tells. A label that
the policy lacks is denied, as it would be. What no policy decided (a limit, a missing layer) is
counted and not asked. Booleans are as they were set then, from the record on that says that the
change is in force, as far as the policy asked has them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping

import msgspec

from skerry.audit.record import Record
from skerry.errors import Denied
from skerry.label import Label
from skerry.monitor.mediate import SERVICES, exchanged, explain_for, judge
from skerry.policy.history import MemoryHistory
from skerry.policy.manager import PolicyManager
from skerry.policy.update import with_booleans
from skerry.xsm.acm.module import SECURITY
from skerry.xsm.flask.module import FlaskModule
from skerry.xsm.hooks import HOOKS
from skerry.xsm.stack import Stack

_ROLES = {
    name: {role for q in hook.asks for side in (q.subject, q.target) for role in side.split("->")}
    for name, hook in HOOKS.items()
}
"""The parties of each hook, without which nothing can be asked."""

_SERVICES = {str(label): label for label in SERVICES}
"""The node's own domains, which start as themselves and count in no wall."""


_CHANGES = ("policy_load", "policy_setbool")
"""The hooks of a change of policy, after which other booleans may be set."""

_SETTING = re.compile(r"([^=]+)=([01])")


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

    def __init__(self, stack: Stack, fixed: Mapping[str, bool] | None = None) -> None:
        """Ask a stack, some of whose booleans are `fixed`, whatever the trail says of them.

        Raises `InputError` for a boolean that it lacks.
        """
        self.skipped = 0
        self._fixed = dict(fixed or {})
        self._file = stack
        flask = next((m for m in stack.modules if isinstance(m, FlaskModule)), None)
        self._known = frozenset(flask.booleans() if flask else ())
        self._set: Mapping[str, bool] = {}
        self._values = self._fixed
        self._coming: _Coming | None = None
        stack = self._stack = with_booleans(stack, self._fixed) if self._fixed else stack
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
        if allowed and hook in _CHANGES and record.fields.get("dry_run") is False:
            self._coming = _coming(record, self._set)
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
        """Follow which domains run, and which booleans are set."""
        if record.event in ("up", "down"):
            self._running.clear()
            self._coming = None
            self._set_booleans({})
        elif record.event == "ended":
            self._running.pop(str(record.fields.get("domain")), None)
        elif self._coming and (
            record.event == "loaded"
            # A node that was killed in between goes on with what it had written down.
            or (record.event == "restarted" and record.fields.get("policy") == self._coming.policy)
        ):
            coming, self._coming = self._coming, None
            self._set_booleans(coming.booleans)
        elif record.event == "not-loaded":
            self._coming = None

    def _set_booleans(self, booleans: Mapping[str, bool]) -> None:
        """Set those of the policy asked; the others are as its file has them."""
        known = {name: value for name, value in booleans.items() if name in self._known}
        self._set, before = booleans, self._values
        self._values = {**known, **self._fixed}
        if self._values != before:
            self._stack = with_booleans(self._file, self._values) if self._values else self._file
            self._manager.load(self._stack)


class _Coming(msgspec.Struct, frozen=True):
    """A change of policy that was allowed: its digest, and the booleans that are set with it."""

    policy: object
    booleans: Mapping[str, bool]


def _coming(record: Record, before: Mapping[str, bool]) -> _Coming:
    """Read a change; where the record does not hold the booleans whole, what it says of them."""
    untrusted, policy = record.fields.get("booleans"), record.fields.get("policy")
    if isinstance(untrusted, dict):
        return _Coming(policy, {str(k): v for k, v in untrusted.items() if isinstance(v, bool)})
    words = str(record.fields.get("change")).split()
    named = [_SETTING.fullmatch(word) for word in words]
    return _Coming(policy, {**before, **{found[1]: found[2] == "1" for found in named if found}})


def _texts(untrusted: object) -> dict[str, str]:
    if not isinstance(untrusted, dict):
        return {}
    found = {str(role): text for role, text in untrusted.items() if isinstance(text, str)}
    return found if len(found) == len(untrusted) else {}
