"""The channel table: every channel from *binding* to *cut*, with the twins of both ends.

A channel stands in the table from before it is decided, so that a change of policy or label that
comes in between judges it too.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Iterable, Iterator

from skerry.errors import LimitReached, NotFound
from skerry.label import Label
from skerry.monitor.domain import ALIVE, Domain, Resource, State
from skerry.monitor.protocols import COLD, Bridge, Kind, Overflow

MAX_CHANNELS = 10_000
"""Most channels of one node, binding ones included. At the limit a bind is refused."""


OTHERS = WRITER, JOINED = "writer", "joined"
"""Before a number: the party that is a label which has written the resource, or that of a domain
which live channels join to an end, over any number of others."""


def hook_of(kind: Kind, one_way: bool) -> str:
    """Return the hook that decides a channel of this kind and direction."""
    if kind not in ("stream", "link", "memory"):
        return "resource_read" if one_way else "resource_both"
    if kind == "memory":
        return "memory_read" if one_way else "memory_both"
    return "channel_one_way" if one_way else "channel_two_way"


class Phase(enum.Enum):
    """Where a channel stands; a cut one is no longer in the table."""

    BINDING = "binding"
    LIVE = "live"
    CUT = "cut"


class Channel:
    """One channel. `generation` and `record` are those of the decision that allowed it (0 before).

    `attaching` is true while its machines are taking their ends. `for_s` bounds a grant: so many
    seconds after it went live it is cut; None is no bound. `overflow` is what a one-way stream
    does while its sink does not read, `size` the bytes of a memory. `asked`: the service by whose
    name the source asked for it.
    """

    def __init__(
        self, number: int, kind: Kind, source: Domain, sink: Domain, port: str, one_way: bool
    ) -> None:
        self.number = number
        self.kind: Kind = kind
        self.source = source
        self.sink = sink
        self.port = port
        self.one_way = one_way
        self.phase = Phase.BINDING
        self.generation = 0
        self.record = 0
        self.since = 0.0
        self.bridge: Bridge | None = None
        self.attaching = False
        self.for_s: float | None = None
        self.overflow: Overflow = "block"
        self.size = 0
        self.asked = ""
        self.timer: asyncio.TimerHandle | None = None

    @property
    def ends(self) -> tuple[Domain, Domain]:
        """Both domains, source first."""
        return self.source, self.sink

    @property
    def machines(self) -> tuple[Domain, ...]:
        """The ends that have a machine: all but a resource."""
        return tuple(end for end in self.ends if not isinstance(end, Resource))

    @property
    def states(self) -> frozenset[State]:
        """The states in which a domain can get an end of it."""
        return frozenset({State.STARTING}) if self.kind in COLD else ALIVE

    @property
    def about(self) -> dict[str, object]:
        """What the trail says of it."""
        names = {"source": self.source.name, "sink": self.sink.name}
        names |= {"asked": self.asked} if self.asked else {}
        return {"channel": self.number, "kind": self.kind, "port": self.port, **names}

    @property
    def hook(self) -> str:
        """The hook that decides this channel."""
        return hook_of(self.kind, self.one_way)

    def parties(
        self,
        label: Callable[[Domain], Label] = lambda end: end.label,
        carry: Callable[[Label], Label] = lambda writer: writer,
    ) -> dict[str, Label]:
        """Return whom its hook is asked about, by the labels of its ends and of its writers.

        Who is being given the resource to write counts already, though it may not get it.
        """
        uses: Iterable[Channel] = self.sink.channels.values() if self.sink.keeps else ()
        others = (use for use in uses if use.writes and use.phase is Phase.LIVE and use is not self)
        writers = {*map(carry, self.sink.written), *(label(use.source) for use in others)}
        ends = {"source": label(self.source), "sink": label(self.sink)}
        return ends | {f"{WRITER}{number}": each for number, each in enumerate(sorted(writers))}

    def wrote(self, label: Label) -> None:
        """Count a label that has it to write among those that have written the resource."""
        if self.writes:
            self.sink.written |= {label}

    @property
    def writes(self) -> bool:
        """Whether what its source writes stays in a resource, for others to read."""
        return self.sink.keeps and not self.one_way

    @property
    def outlives_sink(self) -> bool:
        """Whether its source is not told of the sink's end (law 5)."""
        return self.one_way and self.kind in ("stream", "memory")

    def ends_with(self, domain: Domain) -> bool:
        """Say whether it ends with this domain, which has an end of it."""
        return self.source is domain or not self.outlives_sink

    @property
    def stranded(self) -> bool:
        """Whether it has outlived its sink: nothing arrives anywhere any more."""
        return self.outlives_sink and self.sink.state is State.ENDED


class ChannelTable:
    """All channels by number, up to a limit. Numbers are never used twice in a node's life."""

    def __init__(self, limit: int, remembers: Callable[[], bool]) -> None:
        """`remembers` says whether a wall keeps a history; if none does, nobody is joined."""
        self.limit = limit
        self._remembers = remembers
        self._next = 1
        self._channels: dict[int, Channel] = {}

    def __iter__(self) -> Iterator[Channel]:
        return iter(list(self._channels.values()))

    def __len__(self) -> int:
        return len(self._channels)

    def made(self, kind: Kind, source: Domain, sink: Domain, port: str, one_way: bool) -> Channel:
        """Return a channel with the next number, to be entered; its port is called by that if it
        is given no name. Raises `LimitReached`."""
        if len(self._channels) >= self.limit:
            raise LimitReached(
                f"the node has its {self.limit} channels", fix="cut one, or raise limits.channels"
            )
        return Channel(self._next, kind, source, sink, port or f"ch{self._next}", one_way)

    def enter(self, channel: Channel) -> None:
        """Enter a channel that has its number; later ones get higher numbers."""
        self._channels[channel.number] = channel
        for domain in channel.ends:
            domain.channels[channel.number] = channel
        self.skip(channel.number)

    def skip(self, number: int) -> None:
        """Never give this number, or one below it, again."""
        self._next = max(self._next, number + 1)

    def parties(
        self, channel: Channel, label: Callable[[Domain], Label] = lambda end: end.label
    ) -> dict[str, Label]:
        """Return whom a channel's hook is asked about before it is granted: also all to whom comes
        what an end of it learns later, or who may tell it more."""
        others = {label(domain) for domain in self.joined(channel) - {*channel.ends}}
        joined = {f"{JOINED}{number}": each for number, each in enumerate(sorted(others))}
        return channel.parties(label) | joined

    def joined(self, channel: Channel) -> set[Domain]:
        """Return the domains among which information goes once a channel is live.

        Who uses a resource is joined to all that use it, if one of them writes it.
        """
        found = {*channel.ends}
        queue = [*found] if self._remembers() else []
        for domain in queue:
            uses = [c for c in self.of(domain) if c.phase is Phase.LIVE and not c.stranded]
            written = any(c.writes for c in (*uses, channel) if c.sink is domain)
            if written or not isinstance(domain, Resource):
                new = {end for c in uses for end in c.ends} - found
                found |= new
                queue += new
        return {domain for domain in found if not isinstance(domain, Resource)}

    def get(self, number: int) -> Channel:
        """Return a channel. Raises `NotFound`."""
        try:
            return self._channels[number]
        except KeyError:
            raise NotFound(
                f"there is no channel {number}", fix="`skerry channels` lists them"
            ) from None

    def of(self, domain: Domain) -> list[Channel]:
        """Return the channels with an end in this incarnation of a domain."""
        return list(domain.channels.values())

    def port_taken(self, domain: Domain, port: str) -> bool:
        """Say whether one of the domain's channels already has this port name."""
        return any(c.port == port for c in self.of(domain))

    def remove(self, channel: Channel) -> None:
        """Take a channel out of the table. Idempotent."""
        self._channels.pop(channel.number, None)
        for domain in channel.ends:
            domain.channels.pop(channel.number, None)
