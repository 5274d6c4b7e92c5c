"""The library's QMP client, made fit for a QEMU that may be an attacker's.

The rules it keeps: what a QEMU says is never printed, logged or put into an error as it came; a
line is bounded before it is parsed; and a flood is taken at a pace that leaves the loop to the
others. The library writes each message out, indented, before it looks whether anybody reads its
log: deeply nested, 100 kB were 3 s and 170 MB.

Importing it imports the library: only who speaks to a QEMU does.
"""

from __future__ import annotations

import asyncio
import json

from qemu.qmp import QMPClient
from qemu.qmp.error import ProtocolError
from qemu.qmp.message import Message

from skerry.machine.console import PIECE, TICK_S

MAX_REPLY = 32 << 10
"""Longest line that is taken from a QEMU, in bytes; a longer one ends the connection. The longest
answer of an honest QEMU 7.2, with all the devices that it may have, has 4 kB."""

MIN_COST = 256
"""What a line counts at least towards the pace, in bytes: a short one is work as well."""

RATE = PIECE / TICK_S
"""How much is taken from a QEMU in the long run, in bytes a second; the rest waits in it."""

WANTED = (b'"SHUTDOWN"', b'"DEVICE_DELETED"')
"""The events that a machine hears of. A guest can have its QEMU tell of others without end, by each
write to a register of its board's hot-plugging, and what waits in a QEMU takes the host's memory:
so those are dropped unparsed."""

DROPPED = 16
"""How many dropped bytes count as one: some 2 µs of work a line, and at most a fifth of a core."""

_EVENT = b'{"timestamp": '
"""How QEMU begins an event, and nothing else. What begins otherwise is parsed."""


class Client(QMPClient):
    """A session in which the other side is believed nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name, readbuflen=MAX_REPLY)
        self._paid = 0.0

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    async def _do_recv(self) -> Message:
        while _is_unwanted(untrusted_line := await self._readline()):
            await self._pace(max(len(untrusted_line), MIN_COST) / DROPPED)
        await self._pace(max(len(untrusted_line), MIN_COST))
        try:
            untrusted = json.loads(untrusted_line)
        except (ValueError, RecursionError):
            untrusted = None
        if not isinstance(untrusted, dict):
            raise ProtocolError("what QEMU says is no JSON object")
        return Message(untrusted, eager=False)

    async def _pace(self, cost: float) -> None:
        """Pause where more came than is to be taken by now."""
        now = asyncio.get_running_loop().time()
        self._paid = max(self._paid, now) + cost / RATE
        if self._paid > now + TICK_S:
            await asyncio.sleep(self._paid - now)

    async def _on_message(self, msg: Message) -> None:
        """Hand an event or an answer on; what is neither ends the session or says nothing."""
        if "event" in msg:
            await self._event_dispatch(msg)
            return
        untrusted_id = msg.get("id")
        if "id" not in msg and "error" in msg:
            raise ProtocolError("QEMU does not understand what it is told")
        if not isinstance(untrusted_id, str) or untrusted_id not in self._pending:
            return
        if not _is_answer(msg):
            raise ProtocolError("what QEMU says is no answer")
        if self._pending[untrusted_id].empty():
            self._pending[untrusted_id].put_nowait(msg)


def _is_unwanted(untrusted_line: bytes) -> bool:
    return untrusted_line.startswith(_EVENT) and not any(name in untrusted_line for name in WANTED)


def _is_answer(untrusted: Message) -> bool:
    error = untrusted.get("error")
    if error is None:
        return "return" in untrusted
    return isinstance(error, dict) and all(isinstance(error.get(k), str) for k in ("class", "desc"))
