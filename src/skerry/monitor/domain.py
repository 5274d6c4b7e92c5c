"""The life cycle of a domain as a named state machine.

`starting → paused ⇄ running → stopping → ended`, and `ended` from every state, because a machine
may die at any moment. A call in the wrong state is a `StateError` that names both.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable, Collection
from typing import Any

from skerry.errors import Denied, StateError
from skerry.label import Label
from skerry.monitor.protocols import Bridges, Exit, Kind, Machine


class State(enum.Enum):
    """Where a domain stands; the values are what `skerry ps` shows."""

    STARTING = "starting"
    PAUSED = "paused"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


_NEXT: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.PAUSED, State.STOPPING, State.ENDED}),
    State.PAUSED: frozenset({State.RUNNING, State.STOPPING, State.ENDED}),
    State.RUNNING: frozenset({State.PAUSED, State.STOPPING, State.ENDED}),
    State.STOPPING: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
}

ALIVE = frozenset({State.PAUSED, State.RUNNING})
"""The states in which a domain may hold channels."""


class Domain:
    """One incarnation of a domain: a start that was asked for, until its machine has ended.

    `admitted` is true from the Chinese Wall's yes until the machine has ended: only then does the
    label count as running; that of the node's own services never does. `gone` is set once the end
    was noted. `since` is the clock's time of the last change of state, `started` that of the start
    that was asked for, in seconds. `channels` are those in the table, by number. `keeps` and
    `written` are a resource's.
    """

    keeps = False
    written: frozenset[Label] = frozenset()

    def __init__(self, name: str, label: Label, now: float) -> None:
        self.name = name
        self.label = label
        self.since = now
        self.started = now
        self.admitted = False
        self.machine: Machine | None = None
        self.end: Exit | None = None
        self.gone = asyncio.Event()
        self.channels: dict[int, Any] = {}  # the table's `Channel`s
        self._state = State.STARTING

    @property
    def state(self) -> State:
        """The state now; changed by `move` only."""
        return self._state

    def move(self, state: State, now: float) -> None:
        """Go to a state. Raises `StateError` if the life cycle has no such step."""
        if state not in _NEXT[self._state]:
            raise StateError(
                f"domain {self.name} is {self._state.value} and cannot become {state.value}"
            )
        self._state = state
        self.since = now

    def require(self, states: Collection[State], what: str) -> Machine:
        """Return the machine if the domain is in one of these states, else raise `StateError`."""
        if self._state not in states or self.machine is None:
            wanted = " or ".join(sorted(state.value for state in states))
            raise StateError(
                f"domain {self.name} is {self._state.value}: cannot {what}",
                fix=f"that works while it is {wanted}",
            )
        return self.machine


class Resource(Domain):
    """What the host gives to domains: the sink of a channel that has no machine and never ends.

    `kind` is that of every use of it, which `bridges` mint. `written` are the labels that have had
    it to write: who uses it exchanges with each of them. `keeps`: what is written can be read.
    """

    keeps = True

    def __init__(self, name: str, label: Label, kind: Kind, bridges: Bridges) -> None:
        super().__init__(name, label, 0.0)
        self.kind: Kind = kind
        self.bridges = bridges

    def carry(self, new: Callable[[Label], Label]) -> None:
        """Take the labels that another policy has for these; one that it lacks is refused then."""
        with contextlib.suppress(Denied):
            self.label = new(self.label)
            self.written = frozenset(map(new, self.written))


def end_of(exited: asyncio.Future[Exit]) -> Exit:
    """Return how a machine ended, also if it broke its word and does not say."""
    try:
        return exited.result()
    except (Exception, asyncio.CancelledError) as error:
        return Exit(-1, f"its machine was lost: {error!r:.200}")
