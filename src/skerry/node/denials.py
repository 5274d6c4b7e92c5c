"""How a guest is denied what it called for: on record, and in words and at times that may hide.

The rules this module keeps: every denial has a record that says the real cause; a guest is told
labels and rules only of whom it may see; and a name that is unknown, that nobody serves, or whose
server the caller may neither be bound to nor see, gets one answer. All records of that answer are
written by one function, a whole number of quanta after their calls, in whose order they are; so
neither the time nor the record's number tells which of the three it was.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import NamedTuple

from skerry.errors import Denied
from skerry.label import Label
from skerry.monitor.domain import Domain
from skerry.monitor.mediate import Parties
from skerry.monitor.monitor import Monitor
from skerry.monitor.table import Channel
from skerry.node.caller import Caller, Refusal
from skerry.node.on_record import put_on_record
from skerry.node.setup import Setup
from skerry.node.sight import may_see
from skerry.wire import hypercall as wire
from skerry.xsm.explain import Explanation, Refused, explain_error
from skerry.xsm.request import Verdict

QUANTUM_S = 0.1
"""An answer that there is no such service comes a whole number of these after its call, and so
does its record, in seconds: so neither tells an unknown name from one that is hidden."""

APART_S = 1e-6
"""Least time between two calls that are taken up, in seconds, so that waiting keeps their order."""

HOOK = "channel_two_way"

NO_SERVICE = "NO-SERVICE"
_NOTHING = "there is no such service for this domain"


class Judged(NamedTuple):
    """A verdict that refuses, not recorded yet, and the labels that it is about."""

    verdict: Verdict
    parties: Parties


Cause = Judged | Denied
"""Why a call gets nothing. A `Refused` is that of `bind`, which has recorded it."""


class Denials:
    """Denies the calls of all domains of one node."""

    def __init__(
        self, monitor: Monitor, setup: Callable[[], Setup], quantum_s: float = QUANTUM_S
    ) -> None:
        """`setup` returns what is in force; without a quantum, answers come when they are ready."""
        self._mediator = monitor.mediator
        self._channels = monitor.channels
        self._setup = setup
        self._quantum_s = quantum_s
        self._arrived_s = 0.0

    def arrived(self) -> float:
        """Return the time at which a call is taken up, by the loop's clock, later than any before.

        To be called once for each, in their order.
        """
        now = asyncio.get_running_loop().time()
        self._arrived_s = max(now, self._arrived_s + APART_S)
        return self._arrived_s

    async def judge(self, domain: Domain, server: Domain) -> Cause | None:
        """Return why a domain may not be bound to a server, None if it may; nothing is recorded.

        As `bind` does, of all whom the stream would join: what it alone found would be on record
        at once, and tell by its time that there is such a service.
        """
        stream = Channel(0, "stream", domain, server, "", one_way=False)
        parties = self._channels.parties(stream)
        decider = self._mediator.decider
        # Where no wall has a history, the wall has nothing to say, and its question costs a wait.
        ask = self._mediator.judge if decider.remembers else decider.decide
        try:
            verdict = await ask(HOOK, parties)
        except Denied as error:
            return error
        return None if verdict.allowed else Judged(verdict, parties)

    async def refuse(
        self, caller: Caller, call: wire.Call, arrived: float, server: Domain, cause: Cause
    ) -> wire.Answer:
        """Refuse a stream to a server, in the words that the caller may hear."""
        judged = cause.parties["sink"] if isinstance(cause, Judged) else None
        service = self._setup().system.names.get(call.argument)
        public = service is not None and service.public
        if public or await self.sees(caller.domain, judged or server.label):
            explanation = await self._record(caller, call, cause, server)
            return await self._answer(caller, explanation, judged)
        return await self.hide(caller, call, arrived, cause, server)

    async def hide(
        self,
        caller: Caller,
        call: wire.Call,
        arrived: float,
        cause: Cause | str,
        server: Domain | None = None,
    ) -> wire.Answer:
        """Say that there is no such service, at a time and with a number that do not say why.

        A cause that is a sentence is for the record only.
        """
        if isinstance(cause, str):
            cause = Denied(cause, code=NO_SERVICE)
        quantum = await self._until_quantum(arrived)
        record = (await self._record(caller, call, cause, server)).record
        if record:
            caller.refused(record, Refusal())
        await self._until_quantum(arrived, after=quantum)
        return wire.Answer("denied", NO_SERVICE, _nothing(record))

    async def deny(self, caller: Caller, call: wire.Call, error: Denied) -> wire.Answer:
        """Tell of a denial in words of the host, which are not for a guest: it hears the code."""
        return await self._answer(caller, await self._record(caller, call, error, None), None)

    async def why(self, caller: Caller, record: int) -> wire.Answer:
        """Tell a caller once more why it was denied something, as far as it may hear it now."""
        refusal = caller.refusals.get(record)
        if refusal is None:
            return wire.Answer("failed", "NO-RECORD")
        if refusal.explanation is None:
            return wire.Answer("ok", fields=_nothing(record))
        told = await self._told(caller, refusal.explanation, refusal.about)
        return wire.Answer("ok", fields=told)

    async def sees(self, domain: Domain, other: Label) -> bool:
        """Say whether a domain may see this label, with the label that it has on return."""
        label = domain.label
        return await may_see(self._mediator, label, other) and domain.label == label

    async def _record(
        self, caller: Caller, call: wire.Call, cause: Cause, server: Domain | None
    ) -> Explanation:
        """Record why a call gets nothing, unless that was done, and return it explained.

        The trail is called in the same step, so records have the order of these calls.
        """
        about = {"call": call.verb, "domain": caller.domain.name, "asked": call.argument}
        about |= {"sink": server.name} if server is not None else {}
        if isinstance(cause, Judged):
            return await self._mediator.refusal(cause.verdict, cause.parties, about)
        if not isinstance(cause, Refused):
            await put_on_record(self._mediator, cause, about)
        return explain_error(cause)

    async def _until_quantum(self, arrived: float, after: int = 0) -> int:
        """Wait for the next quantum since a call after this one, and return its number."""
        if not self._quantum_s:
            return 0
        loop = asyncio.get_running_loop()
        quantum = max(after + 1, math.ceil((loop.time() - arrived) / self._quantum_s))
        due = asyncio.Event()
        timer = loop.call_at(arrived + quantum * self._quantum_s, due.set)
        try:
            await due.wait()
        finally:
            timer.cancel()
        return quantum

    async def _answer(
        self, caller: Caller, explanation: Explanation, about: Label | None
    ) -> wire.Answer:
        """Explain a denial as far as the caller may see whom it is about; None is nobody."""
        if explanation.record:
            caller.refused(explanation.record, Refusal(explanation, about))
        told = await self._told(caller, explanation, about)
        return wire.Answer("denied", explanation.code, told)

    async def _told(
        self, caller: Caller, explanation: Explanation, about: Label | None
    ) -> tuple[tuple[str, str], ...]:
        """Return an explanation's fields for a guest; the permissions are words of one text."""
        seen = about is not None and await self.sees(caller.domain, about)
        told = explanation.for_guest(seen)
        permissions = told.get("permissions")
        if isinstance(permissions, list):
            told["permissions"] = " ".join(map(str, permissions))
        return wire.fields(**told)


def _nothing(record: int) -> tuple[tuple[str, str], ...]:
    return wire.fields(code=NO_SERVICE, sentence=_NOTHING, record=record)
