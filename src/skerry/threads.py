"""Work in a thread that nobody leaves before it has ended.

The rule: a thread can't be stopped, so who is cancelled meanwhile waits for it. Else what it was
lent (a descriptor, whose number may be another's by then) would be closed while it works, and what
it makes would be nobody's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Made = TypeVar("Made")


async def in_thread(work: Callable[Given, Made], *args: Given.args, **kwargs: Given.kwargs) -> Made:
    """Do the work in a thread and return what it returns or raise what it raises.

    A cancellation is passed on when it has ended; what it made then is lost, so what must not be
    belongs into something that the caller has.
    """
    doing = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    cancelled: asyncio.CancelledError | None = None
    while not doing.done():
        try:
            await asyncio.wait({doing})
        except asyncio.CancelledError as error:
            cancelled = error.with_traceback(None)
    if cancelled is not None:
        doing.exception()  # looked at
        del doing  # what was made would live as long as the traceback
        raise cancelled
    return doing.result()
