"""The node's end of the socket to one policy manager's process, on the event loop.

The rules this module keeps: sending never waits; an order is answered, or fails at once when the
manager is gone, or when its time is over. While one is overdue the manager counts as frozen: every
new order fails at once, until it answers something. A late answer is dropped. Orders are answered
once and in their order: whatever else comes ends the link.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from skerry.errors import DeciderUnavailable, SkerryError, WireError
from skerry.policy import messages
from skerry.policy.messages import (
    Answered,
    Ask,
    Begin,
    Failure,
    Install,
    Made,
    Order,
    Propose,
    Touch,
    Touched,
)

ANSWER_S = 2.0
"""How long the manager may take to answer a question, in seconds."""

MAKE_S = 30.0
"""How long it may take to make a policy, in seconds."""

MAX_WAITING = 4_096
"""Orders that may wait for their answers; one more is a denial."""

_CHUNK = 1 << 18

What = Begin | Propose | Ask | Touch | Install
Reply = Failure | Made | Answered | Touched


class Link:
    """One connection to one process. It ends once, and then every order fails."""

    def __init__(
        self,
        sock: socket.socket,
        lost: Callable[[str], object],
        frozen: Callable[[bool], object],
        answer_s: float = ANSWER_S,
    ) -> None:
        """Take over the socket. `lost` is called once with the reason, `frozen` at each change."""
        sock.setblocking(False)
        self._sock = sock
        self._lost = lost
        self._tell_frozen = frozen
        self._answer_s = answer_s
        self._loop = asyncio.get_running_loop()
        self._last = self._answered = 0
        self._waiting: dict[int, tuple[asyncio.Future[Reply], asyncio.TimerHandle]] = {}
        self._untrusted = bytearray()
        self._unsent = bytearray()
        self.is_frozen = False
        self.ended = ""
        self._loop.add_reader(sock, self._readable)

    def order(self, what: What) -> asyncio.Future[Reply]:
        """Send an order at once; the answer comes later. Raises `DeciderUnavailable`, then too."""
        if self.ended:
            raise DeciderUnavailable(f"the policy manager is gone: {self.ended}")
        if self.is_frozen:
            raise DeciderUnavailable("the policy manager does not answer")
        if len(self._waiting) >= MAX_WAITING:
            raise DeciderUnavailable(f"{MAX_WAITING} questions wait for the policy manager")
        number = self._last = self._last + 1
        future: asyncio.Future[Reply] = self._loop.create_future()
        future.add_done_callback(_heard)
        time_s = MAKE_S if isinstance(what, Begin | Propose) else self._answer_s
        data = messages.packed(Order(number, what))
        timer = self._loop.call_later(time_s, self._overdue, number)
        self._waiting[number] = future, timer
        self._send(data)
        return future

    def _send(self, data: bytes) -> None:
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.end(error.strerror or str(error))
            return
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]
            self._loop.add_writer(self._sock, self._writable)

    def _writable(self) -> None:
        try:
            del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError as error:
            self.end(error.strerror or str(error))
            return
        if not self._unsent:
            self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            chunk = self._sock.recv(_CHUNK)
            if not chunk:
                self.end("its process ended")
                return
            self._untrusted += chunk
            while (body := messages.take(self._untrusted, messages.MAX_ANSWER)) is not None:
                self._take(messages.answer(body))
        except BlockingIOError:
            return
        except OSError as error:
            self.end(error.strerror or str(error))
        except SkerryError as error:
            self.end(error.message)

    def _take(self, answer: messages.Answer) -> None:
        if not self._answered < answer.number <= self._last:
            raise WireError("it answered what it was not asked")
        self._answered = answer.number
        if self.is_frozen:
            self.is_frozen = False
            self._tell_frozen(False)
        future, timer = self._waiting.pop(answer.number, (None, None))
        if timer is not None:
            timer.cancel()
        if future is not None and not future.done():
            future.set_result(answer.what)

    def _overdue(self, number: int) -> None:
        future, _ = self._waiting.pop(number)
        if not future.done():
            future.set_exception(DeciderUnavailable("the policy manager did not answer in time"))
        if not self.is_frozen:
            self.is_frozen = True
            self._tell_frozen(True)

    def end(self, reason: str) -> None:
        """Close the link and fail what waits. Idempotent."""
        if self.ended:
            return
        self.ended = reason or "ended"
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for future, timer in self._waiting.values():
            timer.cancel()
            if not future.done():
                future.set_exception(DeciderUnavailable(f"the policy manager is gone: {reason}"))
        self._waiting.clear()
        self._lost(self.ended)


def _heard(future: asyncio.Future[Reply]) -> None:
    """Take note of a failure that nobody waits for any more."""
    if not future.cancelled():
        future.exception()
