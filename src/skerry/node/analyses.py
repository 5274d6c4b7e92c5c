"""Where analyses are made: beside the node's other work in threads, and few at a time.

The rule this module keeps: who asks for analyses holds up other analyses at most, each of which has
a bound; and who plans a system holds up nobody's change of policy, which may be an alarm.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, ParamSpec, TypeVar

Given = ParamSpec("Given")
Made = TypeVar("Made")

Kind = Literal["plan", "change"]
"""For what the analysis is made: a file that was sent, or a policy that is to come into force."""

MAX_PLANS = 1
"""Files of `up` that are proven at once; a further one waits."""

MAX_CHANGES = 4
"""Changes of policy that are proven at once, for those who may make them; a further one waits."""

_rooms: dict[Kind, ThreadPoolExecutor] = {}


def _furnish() -> None:
    """Make the rooms; a thread begins with the first analysis in it."""
    _rooms["plan"] = ThreadPoolExecutor(MAX_PLANS, "skerry-plan")
    _rooms["change"] = ThreadPoolExecutor(MAX_CHANGES, "skerry-change")


_furnish()
os.register_at_fork(after_in_child=_furnish)  # a forked process has none of the threads


async def analysed(
    kind: Kind, work: Callable[Given, Made], *args: Given.args, **kwargs: Given.kwargs
) -> Made:
    """Make an analysis once there is room for one of its kind; return and raise what it does."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_rooms[kind], lambda: work(*args, **kwargs))
