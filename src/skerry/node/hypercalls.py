"""What guests may ask of their node: their label, and streams to each other by a service's name.

The rules this module keeps: authority is given by the monitor's `bind` and nothing else; a guest is
told labels and rules only of whom it may see; and a name that is unknown, that nobody serves, or
whose server the caller may neither be bound to nor see, gets one answer, from one place, at a time
that says nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from skerry.errors import Denied, LimitReached, SkerryError
from skerry.label import Label
from skerry.machine.control import ControlPort
from skerry.monitor.domain import ALIVE, Domain
from skerry.monitor.monitor import Monitor
from skerry.monitor.table import Channel
from skerry.node.caller import Caller, Refusal
from skerry.node.journal import NodeJournal
from skerry.node.offers import Offers, Taken
from skerry.node.setup import Setup
from skerry.node.sight import may_see
from skerry.wire import hypercall as wire
from skerry.xsm.explain import Explanation, Refused, explain_error

STREAMS_MAX = 16
"""Most streams that one domain has asked for at a time; a further one is refused."""

CALL_S = 20.0
"""How long a call may take, in seconds; what it had begun is undone, and it failed."""

QUANTUM_S = 0.1
"""An answer that there is no such service comes a whole number of these after its call, in
seconds, so that its time does not tell an unknown name from one that is hidden."""

HOOK = "channel_two_way"

NO_SERVICE = "NO-SERVICE"
_NOTHING = "there is no such service for this domain"


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
        self._quantum_s = quantum_s
        self._callers: dict[Domain, Caller] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_due = False

    def attend(self, domain: Domain) -> None:
        """Serve a domain whose machine has a port for it, until it ends. Idempotent."""
        port = getattr(domain.machine, "control", None)
        if not isinstance(port, ControlPort) or domain in self._callers:
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

    def withdrawn(self, name: str, why: str) -> None:
        """What was granted over a domain ends: `Binder.withdrawn`."""
        self.offers.withdrawn(self._monitor.domains.get(name), why)
        if not self._is_due:  # in the next step the domain has its new label, if it gets one
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
        label = self._label(caller.domain)
        if label != caller.told:
            caller.told = label
            news += wire.encode("-label", label)
        numbers, caller.connected = caller.connected, set()
        for channel in self._monitor.channels.of(caller.domain):
            if channel.number in numbers:
                news += wire.encode("-connected", await self._connected(channel))
        return news

    async def _connected(self, channel: Channel) -> wire.Answer:
        """Say of a stream what its server may know: who asked for it only if it may see it."""
        peer = channel.source
        seen = await self._sees(channel.sink.label, peer.label)
        fields = wire.fields(
            service=channel.asked,
            channel=channel.number,
            port=channel.port,
            peer=peer.name if seen else "",
            label=peer.label if seen else "",
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
        try:
            async with asyncio.timeout(CALL_S):
                return await self._do(caller, call)
        except Denied as error:
            return await self._denied(caller, error, None)
        except TimeoutError:
            return wire.Answer("failed", "TIMEOUT")
        except Taken:
            return wire.Answer("failed", "SERVICE-TAKEN")
        except SkerryError:  # in the words of the host, which are not for a guest
            return wire.Answer("failed", "UNAVAILABLE")

    async def _do(self, caller: Caller, call: wire.Call) -> wire.Answer:
        match call.verb:
            case "label":
                return self._label(caller.domain)
            case "offer":
                return await self._offer(caller, call)
            case "connect":
                return await self._connect(caller, call)
            case "close":
                return self._close(caller.domain, call.argument)
            case "why":
                return await self._why(caller, int(call.argument))

    async def _offer(self, caller: Caller, call: wire.Call) -> wire.Answer:
        began, name = asyncio.get_running_loop().time(), call.argument
        if not self.offers.may_offer(caller.domain, name):
            return await self._no_service(caller, call, began, "it may not offer this name")
        await self.offers.offer(caller.domain, name)
        return wire.Answer("ok", fields=wire.fields(service=name))

    async def _connect(self, caller: Caller, call: wire.Call) -> wire.Answer:
        began, name = asyncio.get_running_loop().time(), call.argument
        domain, server = caller.domain, self.offers.server(name)
        if server is domain:
            return wire.Answer("failed", "OWN-SERVICE")
        if server is None:
            return await self._no_service(caller, call, began, "nobody serves this name")
        # Only which answer it gets is found out here; `bind` asks again, on record.
        if not await self._may(domain, server):
            return await self._refused(caller, server, call, began)
        if self._asked(domain) >= STREAMS_MAX:
            full = LimitReached(f"domain {domain.name} has its {STREAMS_MAX} streams")
            self._monitor.mediator.failed(HOOK, full, domain=domain.name, asked=name)
            raise full
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

    def _close(self, domain: Domain, argument: str) -> wire.Answer:
        if not argument.isdecimal():
            is_closed = self.offers.close(domain, argument)
            return wire.Answer("ok") if is_closed else wire.Answer("failed", "NO-OFFER")
        number = int(argument)
        for channel in self._monitor.channels.of(domain):
            if channel.number == number and channel.asked:
                self._monitor.cut(number, f"closed by {domain.name}")
                return wire.Answer("ok")
        return wire.Answer("failed", "NO-CHANNEL")

    async def _why(self, caller: Caller, record: int) -> wire.Answer:
        refusal = caller.refusals.get(record)
        if refusal is None:
            return wire.Answer("failed", "NO-RECORD")
        if refusal.explanation is None:
            return wire.Answer("ok", fields=_nothing(record))
        told = await self._told(caller, refusal.explanation, refusal.about)
        return wire.Answer("ok", fields=told)

    async def _may(self, domain: Domain, server: Domain) -> bool:
        parties = {"source": domain.label, "sink": server.label}
        try:
            return (await self._monitor.mediator.judge(HOOK, parties)).allowed
        except Denied:
            return False

    async def _refused(
        self, caller: Caller, server: Domain, call: wire.Call, began: float
    ) -> wire.Answer:
        """Refuse a stream on record, in the words that the caller may hear."""
        domain, name, label = caller.domain, call.argument, server.label
        about = {"domain": domain.name, "sink": server.name, "asked": name}
        try:
            await self._monitor.mediator.permit(
                HOOK, lambda: {"source": domain.label, "sink": server.label}, about
            )
            return wire.Answer("failed", "UNAVAILABLE")  # the policy changed in between
        except Denied as error:
            service = self._setup().system.names.get(name)
            public = service is not None and service.public
            if public or await self._sees(domain.label, label):
                return await self._denied(caller, error, label if server.label == label else None)
            return await self._no_service(caller, call, began, "", error.record)

    async def _no_service(
        self, caller: Caller, call: wire.Call, began: float, why: str, record: int = 0
    ) -> wire.Answer:
        """Say that there is no such service, at a time that does not say why.

        `record`: that of the modules' refusal, where there is one; the others get one here.
        """
        if why:
            fields = {
                "call": call.verb,
                "domain": caller.domain.name,
                "asked": call.argument,
                "why": {"code": NO_SERVICE, "sentence": why},
            }
            try:
                record = await self._monitor.mediator.audit.append("deny", fields)
            except Denied:
                self._monitor.mediator.audit.note("deny", fields)
        if record:
            caller.refused(record, Refusal())
        await self._until_quantum(began)
        return wire.Answer("denied", NO_SERVICE, _nothing(record))

    async def _until_quantum(self, began: float) -> None:
        if self._quantum_s:
            took = asyncio.get_running_loop().time() - began
            quanta = max(1, math.ceil(took / self._quantum_s))
            await asyncio.sleep(quanta * self._quantum_s - took)

    async def _denied(self, caller: Caller, error: Denied, about: Label | None) -> wire.Answer:
        """Explain a denial as far as the caller may see whom it is about."""
        explanation = explain_error(error)
        if not isinstance(error, Refused):
            about = None  # its sentence is in the words of the host, which are not for a guest
        if explanation.record:
            caller.refused(explanation.record, Refusal(explanation, about))
        told = await self._told(caller, explanation, about)
        return wire.Answer("denied", explanation.code, told)

    async def _told(
        self, caller: Caller, explanation: Explanation, about: Label | None
    ) -> tuple[tuple[str, str], ...]:
        """Return an explanation's fields for a guest; the permissions are words of one text."""
        seen = about is not None and await self._sees(caller.domain.label, about)
        told = explanation.for_guest(seen)
        permissions = told.get("permissions")
        if isinstance(permissions, list):
            told["permissions"] = " ".join(map(str, permissions))
        return wire.fields(**told)

    async def _sees(self, label: Label, other: Label) -> bool:
        return await may_see(self._monitor.mediator, label, other)

    def _asked(self, domain: Domain) -> int:
        channels = self._monitor.channels.of(domain)
        return sum(bool(c.asked) and c.source is domain for c in channels)


def _nothing(record: int) -> tuple[tuple[str, str], ...]:
    return wire.fields(code=NO_SERVICE, sentence=_NOTHING, record=record)
