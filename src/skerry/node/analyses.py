"""Where analyses are made: beside the node's other work in threads, and few at a time.

The rule this module keeps: who asks for analyses holds up other analyses at most, each of which has
a bound; and who plans a system holds up nobody's change of policy, which may be an alarm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

Given = ParamSpec("Given")
Made = TypeVar("Made")

Kind = Literal["plan", "label", "change"]
"""For what the analysis is made: a file that was sent, a label that a domain is to get, or a policy
that is to come into force."""

MAX_PLANS = 1
"""Files of `up` that are proven at once; a further one waits."""

MAX_LABELS = 2
"""Relabels, and starts beside a relabelled domain, that are proven at once; a further one waits."""

MAX_CHANGES = 4
"""Changes of policy that are proven at once, for those who may make them; a further one waits."""

_Rooms = dict[Kind, ThreadPoolExecutor]
_rooms: WeakKeyDictionary[asyncio.AbstractEventLoop, _Rooms] = WeakKeyDictionary()


def _of(loop: asyncio.AbstractEventLoop) -> _Rooms:
    """Return the rooms of one node; a thread begins with the first analysis in it."""
    if loop not in _rooms:
        _rooms[loop] = {
            "plan": ThreadPoolExecutor(MAX_PLANS, "skerry-plan"),
            "label": ThreadPoolExecutor(MAX_LABELS, "skerry-label"),
            "change": ThreadPoolExecutor(MAX_CHANGES, "skerry-change"),
        }
    return _rooms[loop]


async def analysed(
    kind: Kind, work: Callable[Given, Made], *args: Given.args, **kwargs: Given.kwargs
) -> Made:
    """Make an analysis once there is room for one of its kind; return and raise what it does."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_of(loop)[kind], lambda: work(*args, **kwargs))
