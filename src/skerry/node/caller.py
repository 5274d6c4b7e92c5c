"""One domain that calls its node: what it sends is taken at a bounded pace, what it gets is sent.

The rules this module keeps: who calls is known by the descriptor that the call came over, and by
nothing in it; a guest costs bounded memory and a bounded number of records, whatever it sends and
whether it reads or not; and whatever becomes of one call, the next is answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from skerry.label import Label
from skerry.machine.control import ControlPort
from skerry.monitor.domain import Domain
from skerry.wire import hypercall as wire
from skerry.xsm.explain import Explanation

RATE = 2.0
"""Calls a second of one domain in the long run, malformed ones too; beyond it they wait in the
guest. Each may leave a record, and this is what keeps a guest from filling the trail."""

BURST = 64
"""Calls of one domain at once, after it was silent for a while; then `RATE` holds."""

CALLS_MAX = 8
"""Calls of one domain under way, or answered and not taken; further ones wait in the guest."""

WHY_MAX = 64
"""Refusals of one domain that `why` knows; the oldest are forgotten."""

log = logging.getLogger("skerry.hypercalls")

Handle = Callable[["Caller", wire.Call], Awaitable[wire.Answer]]
News = Callable[["Caller"], Awaitable[bytes]]


class Refusal(NamedTuple):
    """What a guest was told of a refusal, and the label, as it was then, whom it is about.

    `explanation` is None where it was told nothing but that there is no such service.
    """

    explanation: Explanation | None = None
    about: Label | None = None


class Bucket:
    """Lets `BURST` calls pass at once and `RATE` a second in the long run."""

    def __init__(self) -> None:
        self._left = float(BURST)
        self._then = asyncio.get_running_loop().time()

    async def take(self) -> None:
        """Return when one more may pass. To be called by one task."""
        while True:
            now = asyncio.get_running_loop().time()
            self._left = min(float(BURST), self._left + RATE * (now - self._then))
            self._then = now
            if self._left >= 1.0:
                self._left -= 1.0
                return
            # Never for so short that the clock would stand still.
            await asyncio.sleep(max(0.001, (1.0 - self._left) / RATE))


class Caller:
    """One incarnation of a domain, from when its port is served to its end.

    `handle` answers one call; `news` returns what it is to be told unasked, and is called when it
    can be sent. `told` is what it knows of itself, by the event that said it, and `connected` the
    channels that it is to be told of as a server.
    """

    def __init__(self, domain: Domain, port: ControlPort, handle: Handle, news: News) -> None:
        self.domain = domain
        self.told: dict[str, wire.Answer] = {}
        self.connected: set[int] = set()
        self.refusals: dict[int, Refusal] = {}
        self._port = port
        self._handle = handle
        self._news = news
        self._answers: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._wake.set()
        self._free = asyncio.Semaphore(CALLS_MAX)
        self._calls: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Answer until the machine has ended; then nothing of it is left under way."""
        writing = asyncio.ensure_future(self._write())
        try:
            await self._read()
        finally:
            for task in (writing, *self._calls):
                task.cancel()
            await asyncio.gather(writing, *self._calls, return_exceptions=True)

    def tell(self) -> None:
        """Have what is new sent, when the guest takes it."""
        self._wake.set()

    def refused(self, record: int, refusal: Refusal) -> None:
        """Remember a refusal, so that the guest can ask again."""
        self.refusals[record] = refusal
        while len(self.refusals) > WHY_MAX:
            del self.refusals[next(iter(self.refusals))]

    async def _read(self) -> None:
        bucket, parser = Bucket(), wire.Parser()
        while untrusted := await self._port.read():
            calls = parser.feed(untrusted)
            # A piece costs as much as a call, even if there is none in it.
            if not calls:
                await bucket.take()
            for call in calls:
                await bucket.take()
                await self._free.acquire()
                task = asyncio.ensure_future(self._answer(call))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)

    async def _answer(self, call: wire.Call | wire.Malformed) -> None:
        try:
            if isinstance(call, wire.Malformed):
                answer = wire.Answer("failed", call.code)
            else:
                answer = await self._handle(self, call)
        except Exception:  # a defect of ours; the guest's next call is answered all the same
            log.exception("a call of %s was not answered", self.domain.name)
            answer = wire.Answer("failed", "INTERNAL")
        self._answers.append(wire.encode(call.id, answer))
        self._wake.set()

    async def _write(self) -> None:
        await self._port.write(b"\n")  # ends a line that an earlier node left half written
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._port.write(await self._new())
            while self._answers:
                await self._port.write(self._answers.popleft())
                self._free.release()

    async def _new(self) -> bytes:
        try:
            return await self._news(self)
        except Exception:  # a defect of ours; it is answered all the same
            log.exception("%s was not told what is new", self.domain.name)
            return b""
