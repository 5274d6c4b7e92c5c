"""Operators' open sessions with guests (`exec`, `console`), which are cut like channels.

The rule: a session lasts only as long as the decision that opened it stands. When the domain is
relabelled, stopped or ends, or a new policy refuses it, the session ends with a reason.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Iterator
from typing import Any, NamedTuple, TypeVar, cast

from skerry.errors import Denied, LimitReached
from skerry.label import Label

MAX_SESSIONS = 16
"""Most open sessions with one domain; a further one is refused."""

_T = TypeVar("_T")


class Session(NamedTuple):
    """An open session: the hook that was asked, the operator's label, and what cuts it."""

    domain: str
    hook: str
    operator: Label
    cut: asyncio.Future[str]

    def end(self, why: str) -> None:
        """End it now."""
        if not self.cut.done():
            self.cut.set_result(why)


class Sessions:
    """The open sessions of each domain."""

    def __init__(self) -> None:
        self._open: defaultdict[str, set[Session]] = defaultdict(set)

    def __iter__(self) -> Iterator[Session]:
        return iter([session for sessions in self._open.values() for session in sessions])

    async def run(
        self, domain: str, hook: str, operator: Label, work: Coroutine[Any, Any, _T]
    ) -> _T:
        """Do the work unless the session is cut first, which raises `Denied` and cancels it."""
        if len(self._open[domain]) >= MAX_SESSIONS:
            work.close()
            raise LimitReached(f"{domain} has its {MAX_SESSIONS} sessions", fix="close one")
        cut: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        session = Session(domain, hook, operator, cut)
        self._open[domain].add(session)
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait(
                cast(set[asyncio.Future[Any]], {task, cut}), return_when=asyncio.FIRST_COMPLETED
            )
            if cut.done() and not task.done():
                raise Denied(f"the session was cut: {cut.result()}", code="SESSION-CUT")
            return await task
        finally:
            self._open[domain].discard(session)
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def cut(self, domain: str, why: str) -> int:
        """End every session with a domain now; return how many there were."""
        sessions = list(self._open[domain])
        for session in sessions:
            session.end(why)
        return len(sessions)
