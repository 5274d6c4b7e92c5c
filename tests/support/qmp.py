"""QEMU's end of a control socket, for tests: it answers as a script says and counts what came."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from skerry.machine.qemu.qmp import Qmp

Order = Mapping[str, Any]


def go(main: Coroutine[Any, Any, None]) -> None:
    """Run a test and check that it leaves no descriptor behind."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    asyncio.run(main)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


class FakeQemu:
    """The far end of a control socket: answers each order as the script says.

    `say` maps a command to what is sent in its place of the answer, made from the order.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.say: dict[str, Callable[[Order], bytes]] = {}
        self.orders: list[Order] = []
        self.heard = b""
        self.given: list[int] = []

    async def run(self) -> None:
        """Serve until the other side closes."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self.sock, readable.set)
        rest = b""
        try:
            while True:
                readable.clear()
                await readable.wait()
                try:
                    data, ancillary, _, _ = self.sock.recvmsg(65536, socket.CMSG_SPACE(64))
                except BlockingIOError:
                    continue
                for _, _, rights in ancillary:
                    self.given += array.array("i", rights)
                if not data:
                    return
                self.heard += data
                rest = await self._obey(rest + data)
        finally:
            loop.remove_reader(self.sock)
            for fd in self.given:
                os.close(fd)

    async def _obey(self, text: bytes) -> bytes:
        """Obey each whole order, as soon as its last brace has come; return the rest."""
        *flushed, text = text.rsplit(b"\xff", 1)
        if flushed:
            await self.send({"error": {"class": "GenericError", "desc": "JSON parse error"}})
        while text := text.lstrip():
            try:
                order, end = json.JSONDecoder().raw_decode(text.decode())
            except ValueError:
                break
            text = text[end:]
            self.orders.append(order)
            said = self.say.get(order["execute"], returns({}))(order)
            await asyncio.get_running_loop().sock_sendall(self.sock, said)
        return text

    async def send(self, message: object) -> None:
        """Send one message of its own accord."""
        data = json.dumps(message).encode() + b"\r\n"
        await asyncio.get_running_loop().sock_sendall(self.sock, data)


def returns(value: object) -> Callable[[Order], bytes]:
    """Answer with a value."""
    return lambda order: json.dumps({"return": value, "id": order["id"]}).encode() + b"\r\n"


def refuses(order: Order) -> bytes:
    """Answer with an error."""
    error = {"class": "GenericError", "desc": "no"}
    return json.dumps({"error": error, "id": order["id"]}).encode() + b"\r\n"


class Adoption:
    """A session that is to be adopted, the QEMU at its other end, and the events that came."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.events: list[tuple[str, Mapping[str, object]]] = []
        self.came = asyncio.Event()
        self.qmp = Qmp("a", self._event)
        self.qmp.hold(ours)
        self.qemu = FakeQemu(theirs)

    def _event(self, name: str, data: Mapping[str, object]) -> None:
        self.events.append((name, data))
        self.came.set()


@contextlib.asynccontextmanager
async def adoption() -> AsyncIterator[Adoption]:
    """Make both ends, and close them at the end."""
    made = Adoption()
    task = asyncio.ensure_future(made.qemu.run())
    try:
        yield made
    finally:
        await made.qmp.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        made.qemu.sock.close()


def event(name: str, **data: object) -> dict[str, object]:
    """Return an event as QEMU sends it."""
    return {"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}}
