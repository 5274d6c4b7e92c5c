"""Denials that no module decided, as a limit's: on record, with the record's number.

The rule: whoever is denied is given the number of a record that says why, if the trail can be
written; what can't be recorded is denied too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from skerry.errors import AuditUnavailable, Denied, LimitReached
from skerry.monitor.mediate import Mediator
from skerry.monitor.protocols import Kind
from skerry.monitor.table import Channel, hook_of


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


async def bind_on_record(
    mediator: Mediator,
    bind: Callable[..., Awaitable[Channel]],
    source: str,
    sink: str,
    kind: Kind,
    port: str,
    one_way: bool,
    **how: object,
) -> Channel:
    """Bind a channel as `bind` does; put it on record if a limit is met."""
    try:
        return await bind(source, sink, kind, port, one_way, **how)
    except LimitReached as error:
        about = {"kind": kind, "port": port, "source": source, "sink": sink}
        await put_on_record(mediator, error, {"hook": hook_of(kind, one_way), **about})
        raise
