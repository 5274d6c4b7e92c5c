"""Where analyses are made: beside the node's other work in threads, and one at a time.

The rule this module keeps: who asks for analyses holds up other analyses at most, each of which has
a bound; and who plans a system holds up nobody's change of policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, ParamSpec, TypeVar

Given = ParamSpec("Given")
Made = TypeVar("Made")

Kind = Literal["plan", "change"]
"""For what the analysis is made: a file that was sent, or a policy that is to come into force."""

_ROOMS = {
    kind: ThreadPoolExecutor(1, f"skerry-{kind}") for kind in ("plan", "change")
}  # a thread begins with the first analysis


async def analysed(
    kind: Kind, work: Callable[Given, Made], *args: Given.args, **kwargs: Given.kwargs
) -> Made:
    """Make an analysis when those before it of its kind are made; return and raise what it does."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_ROOMS[kind], lambda: work(*args, **kwargs))
