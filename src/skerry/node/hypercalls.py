"""What guests may ask of their node: their label, and streams to each other by a service's name.

The rules this module keeps: authority is given by the monitor's `bind` and nothing else; and what
else a guest is told, it is told of itself, or of whom it may see.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from skerry.errors import Denied, LimitReached, SkerryError, StaleGeneration
from skerry.machine.control import ControlPort
from skerry.monitor.domain import ALIVE, Domain
from skerry.monitor.mediate import SERVICES
from skerry.monitor.monitor import Monitor
from skerry.monitor.table import Channel
from skerry.node.caller import Caller
from skerry.node.denials import QUANTUM_S, Denials
from skerry.node.journal import NodeJournal
from skerry.node.offers import Offers, Taken
from skerry.node.setup import Setup
from skerry.wire import hypercall as wire
from skerry.xsm.explain import Refused

STREAMS_MAX = 16
"""Most streams that one domain has asked for at a time; a further one is refused."""

CALL_S = 20.0
"""How long a call may take, in seconds; what it had begun is undone, and it failed."""


class Hypercalls:
    """The calls of all domains of one node; everything runs on its event loop."""

    def __init__(
        self,
        monitor: Monitor,
        setup: Callable[[], Setup],
        journal: NodeJournal | None = None,
        quantum_s: float = QUANTUM_S,
    ) -> None:
        """`setup` returns what is in force; without a quantum, answers come when they are ready."""
        self.offers = Offers(monitor, setup, journal)
        self._monitor = monitor
        self._setup = setup
        self._denials = Denials(monitor, setup, quantum_s)
        self._callers: dict[Domain, Caller] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_due = False

    def attend(self, domain: Domain) -> None:
        """Serve a domain whose machine has a port for it, until it ends. Idempotent.

        The node's own domains call nobody: what they are told and may do, they have by other ports.
        """
        port = getattr(domain.machine, "control", None)
        if not isinstance(port, ControlPort) or domain in self._callers:
            return
        if domain.label in SERVICES:
            return
        caller = Caller(domain, port, self._answer, self._news)
        self._callers[domain] = caller

        async def serve() -> None:
            try:
                await caller.serve()
            finally:
                del self._callers[domain]

        task = asyncio.ensure_future(serve())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def resume(self) -> None:
        """After a restart: serve again what goes on, and who served."""
        self.offers.resume()
        for domain in self._monitor.domains.values():
            self.attend(domain)
        for channel in self._monitor.channels:  # whether it was told of them, nobody knows
            self._tell_server(channel)

    def withdrawn(self) -> None:
        """Look soon, for what was granted over a domain ends: `Binder.withdrawn`.

        In the next step it has its new label, if it gets one; until then it serves what it may.
        """
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self.follow)

    def follow(self) -> None:
        """A label, the policy or the file is another: end what no longer holds, and say so."""
        self._is_due = False
        self.offers.follow()
        for caller in self._callers.values():
            caller.tell()

    async def close(self) -> None:
        """Answer nobody any more."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _news(self, caller: Caller) -> bytes:
        """Return what a guest is to be told unasked, and take it for told."""
        news = b""
        served = " ".join(sorted(self.offers.of(caller.domain)))
        states = {
            "-label": self._label(caller.domain),
            "-offers": wire.Answer("ok", fields=wire.fields(services=served)),
        }
        for event, state in states.items():
            if caller.told.get(event) != state:
                caller.told[event] = state
                news += wire.encode(event, state)
        numbers, caller.connected = caller.connected, set()
        for channel in self._monitor.channels.of(caller.domain):
            if channel.number in numbers:
                news += wire.encode("-connected", await self._connected(channel))
        return news

    async def _connected(self, channel: Channel) -> wire.Answer:
        """Say of a stream what its server may know: who asked for it only if it may see it."""
        peer = channel.source
        label = peer.label
        seen = await self._denials.sees(channel.sink, label) and peer.label == label
        fields = wire.fields(
            service=channel.asked,
            channel=channel.number,
            port=channel.port,
            peer=peer.name if seen else "",
            label=label if seen else "",
        )
        return wire.Answer("ok", fields=fields)

    def _label(self, domain: Domain) -> wire.Answer:
        fields = wire.fields(
            name=domain.name,
            label=domain.label,
            policy=self._setup().stack.digest,
            generation=self._monitor.mediator.decider.generation,
        )
        return wire.Answer("ok", fields=fields)

    async def _answer(self, caller: Caller, call: wire.Call) -> wire.Answer:
        arrived = self._denials.arrived()
        try:
            async with asyncio.timeout(CALL_S):
                return await self._do(caller, call, arrived)
        except Denied as error:
            return await self._denials.deny(caller, call, error)
        except TimeoutError:
            return wire.Answer("failed", "TIMEOUT")
        except Taken:
            return wire.Answer("failed", "SERVICE-TAKEN")
        except SkerryError:  # in the words of the host, which are not for a guest
            return wire.Answer("failed", "UNAVAILABLE")

    async def _do(self, caller: Caller, call: wire.Call, arrived: float) -> wire.Answer:
        match call.verb:
            case "label":
                return self._label(caller.domain)
            case "offer":
                return await self._offer(caller, call, arrived)
            case "connect":
                return await self._connect(caller, call, arrived)
            case "close":
                return await self._close(caller.domain, call.argument)
            case "why":
                return await self._denials.why(caller, int(call.argument))

    async def _offer(self, caller: Caller, call: wire.Call, arrived: float) -> wire.Answer:
        name = call.argument
        if not self.offers.owns(caller.domain, name):
            why = "it may not offer this name"
            return await self._denials.hide(caller, call, arrived, why)
        await self.offers.offer(caller.domain, name)
        return wire.Answer("ok", fields=wire.fields(service=name))

    async def _connect(self, caller: Caller, call: wire.Call, arrived: float) -> wire.Answer:
        domain, server = caller.domain, self.offers.server(call.argument)
        if server is domain:
            return wire.Answer("failed", "OWN-SERVICE")
        if server is None:
            why = "nobody serves this name"
            return await self._denials.hide(caller, call, arrived, why)
        # Only which answer it gets is found out here; `bind` asks again, on record.
        cause = await self._denials.judge(domain, server)
        if cause is None:
            try:
                return await self._bind(domain, server, call.argument)
            except Refused as error:  # by a policy or a label that came meanwhile
                cause = error
            except StaleGeneration:
                cause = await self._denials.judge(domain, server)
                if cause is None:
                    raise
        return await self._denials.refuse(caller, call, arrived, server, cause)

    async def _bind(self, domain: Domain, server: Domain, name: str) -> wire.Answer:
        """Bind a stream that the policy allows. Raises what `bind` does."""
        if self._asked(domain) >= STREAMS_MAX:
            raise LimitReached(f"domain {domain.name} has its {STREAMS_MAX} streams")
        if self.offers.server(name) is not server or domain.state not in ALIVE:
            return wire.Answer("failed", "UNAVAILABLE")  # meanwhile
        # From here to its entering the table `bind` does not wait: the number is its.
        number = self._monitor.channels.made("stream", domain, server, name, False).number
        port = f"{name}.{number}"
        channel = await self._monitor.bind(domain.name, server.name, port=port, asked=name)
        self._tell_server(channel)
        return wire.Answer("ok", fields=wire.fields(channel=channel.number, port=port))

    def _tell_server(self, channel: Channel) -> None:
        """Tell a server of a stream, when it takes it; of one that is cut by then it hears not."""
        server = self._callers.get(channel.sink)
        if server is not None and channel.asked:
            live = {other.number for other in self._monitor.channels.of(channel.sink)}
            server.connected = (server.connected & live) | {channel.number}
            server.tell()

    async def _close(self, domain: Domain, argument: str) -> wire.Answer:
        if not argument.isdecimal():
            try:
                is_closed = await self.offers.close(domain, argument)
            except Denied:  # it is closed, but perhaps not for the next node
                return wire.Answer("failed", "UNAVAILABLE")
            return wire.Answer("ok") if is_closed else wire.Answer("failed", "NO-OFFER")
        number = int(argument)
        for channel in self._monitor.channels.of(domain):
            if channel.number == number and channel.asked:
                self._monitor.cut(number, f"closed by {domain.name}")
                return wire.Answer("ok")
        return wire.Answer("failed", "NO-CHANNEL")

    def _asked(self, domain: Domain) -> int:
        channels = self._monitor.channels.of(domain)
        return sum(bool(c.asked) and c.source is domain for c in channels)
