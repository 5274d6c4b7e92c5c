"""Denials that no module decided, as a limit's: on record, with the record's number.

The rule: whoever is denied is given the number of a record that says why, if the trail can be
written; what can't be recorded is denied too.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from skerry.errors import AuditUnavailable, Denied, LimitReached
from skerry.monitor.mediate import Mediator


async def put_on_record(mediator: Mediator, error: Denied, about: Mapping[str, object]) -> None:
    """Record a denial that has no record yet, and give it its number.

    The trail is called in the same step, before anything is waited for.
    """
    if error.record or isinstance(error, AuditUnavailable):
        return
    fields = {**about, "why": {"code": error.code, "sentence": error.message}}
    try:
        error.record = await mediator.audit.append("deny", fields)
    except Denied:
        mediator.audit.note("deny", fields)


@contextlib.asynccontextmanager
async def limits_on_record(mediator: Mediator, hook: str, **about: object) -> AsyncIterator[None]:
    """Put it on record if what is done within meets a limit."""
    try:
        yield
    except LimitReached as error:
        await put_on_record(mediator, error, {"hook": hook, **about})
        raise
