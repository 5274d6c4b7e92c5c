"""A flow that must never be: the search for a path that would make it possible.

The rule: an assertion `A -> B except G` holds if no chain of permitted flows leads from A to B
without passing through a member of G. This is the static condition of intransitive separation
(Rushby 1992); it assumes a monitor that enforces the policy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping


def find_path(
    flows: Mapping[str, Collection[str]], source: str, sink: str, through: Collection[str] = ()
) -> list[str]:
    """Return a shortest chain from source to sink that avoids `through`, or an empty list.

    `flows` maps each node to those it may send to. `source` and `sink` themselves are never
    avoided, so a direct flow between them is always found.
    """
    came: dict[str, str] = {source: source}
    queue = deque([source])
    while queue:
        here = queue.popleft()
        for there in sorted(flows.get(here, ())):
            if there in came or (there in through and there != sink):
                continue
            came[there] = here
            if there == sink:
                return _chain(came, sink)
            queue.append(there)
    return []


def _chain(came: Mapping[str, str], sink: str) -> list[str]:
    chain = [sink]
    while came[chain[-1]] != chain[-1]:
        chain.append(came[chain[-1]])
    return chain[::-1]
