"""What a hostile QEMU says costs the node little, is not printed, and ends at most its session."""

from __future__ import annotations

import asyncio
import json
import logging
import socket

import pytest
from qemu.qmp import QMPClient
from qemu.qmp.message import Message

from skerry.errors import MachineError
from skerry.machine.console import PIECE
from skerry.machine.qemu import client as module
from skerry.machine.qemu.blocks import Blocks
from skerry.machine.qemu.client import MAX_REPLY, MIN_COST, Client
from skerry.machine.qemu.nics import Nics
from skerry.machine.qemu.ports import Ports
from skerry.machine.qemu.qmp import MAX_WORDS, QemuRefused
from tests.support.qmp import Order, adoption, event, go, returns

DEEP = b'{"event": "X", "a": ' + b"[" * 800 + b"]" * 800 + b"}\n"


def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library's own client speak in place of ours: the control."""
    monkeypatch.setattr(module, "Client", lambda name: QMPClient(name, readbuflen=MAX_REPLY))


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "control"])
def test_no_message_is_printed(monkeypatch: pytest.MonkeyPatch, ours: bool) -> None:
    """Neither what comes nor what is sent is made into a text; the library alone does so."""
    printed = []

    def write_out(message: Message) -> str:
        printed.append(message)
        return ""

    monkeypatch.setattr(Message, "__str__", write_out)
    if not ours:
        library(monkeypatch)

    async def main() -> None:
        async with adoption() as a:
            await a.qmp.adopt()
            a.qemu.say["query-status"] = lambda order: DEEP + returns("mine")(order)
            assert await a.qmp.execute("query-status") == "mine"
            assert a.events == [("X", {})]

    go(main())
    assert bool(printed) is not ours


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "control"])
def test_a_flood_leaves_the_loop_to_others(monkeypatch: pytest.MonkeyPatch, ours: bool) -> None:
    """Between two turns of the loop few messages are taken, and all come; the library takes all."""
    if not ours:
        library(monkeypatch)
    lines = 1000
    most = 2 * PIECE // MIN_COST

    async def main() -> None:
        async with adoption() as a:
            await a.qmp.adopt()
            a.qemu.sock.send(b'{"event": "X"}\n' * lines)
            bursts = [0]
            while sum(bursts) < lines:
                await asyncio.sleep(0)
                bursts.append(len(a.events) - sum(bursts))
            assert (max(bursts) <= most) is ours

    go(main())


STRANGE = {
    "unknown": {"return": 1, "id": "x\nskerry: the operator ended it\x1b[2K"},
    "refused": {"error": {"class": "x", "desc": "\x1b[2K"}, "id": "\x1b[2K"},
    "a number": {"return": 1, "id": 7},
    "a list": {"return": 1, "id": []},
    "none": {"return": 1},
    "an event without a name": {"event": [[[1]]], "data": 7},
}


@pytest.mark.parametrize("strange", STRANGE)
def test_what_answers_nothing_says_nothing(strange: str, caplog: pytest.LogCaptureFixture) -> None:
    """An answer that nobody waits for is dropped without a word, and the session goes on."""

    async def main() -> None:
        async with adoption() as a:
            await a.qmp.adopt()
            caplog.set_level(logging.INFO)
            a.qemu.say["query-status"] = lambda order: (
                json.dumps(STRANGE[strange]).encode() + b"\n" + returns("mine")(order) * 3
            )
            assert await a.qmp.execute("query-status") == "mine"
            assert await a.qmp.execute("query-status") == "mine"
            assert a.events == [] and caplog.messages == []

    go(main())


def _answer(order: Order, **said: object) -> bytes:
    return json.dumps({"id": order["id"], **said}).encode() + b"\n"


WRONG = {
    "no JSON": lambda order: b"SECRET\n",
    "no object": lambda order: b'["SECRET"]\n',
    "too deep": lambda order: b"[" * 50_000 + b"SECRET\n",
    "too long": lambda order: b" " * MAX_REPLY + b'{"event": "SECRET"}\n',
    "an error of nobody": lambda order: b'{"error": {"class": "a", "desc": "SECRET"}}\n',
    "an answer without a result": lambda order: _answer(order, SECRET=1),
    "an error without words": lambda order: _answer(order, error={"class": "SECRET"}),
    "an error that is none": lambda order: _answer(order, error="SECRET"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_breaks_the_protocol_ends_the_session(
    wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The command fails at once, as the next one does, and nothing of it is in error or log."""

    async def main() -> None:
        async with adoption() as a:
            await a.qmp.adopt()
            a.qemu.say["query-status"] = WRONG[wrong]
            for _ in range(2):
                with pytest.raises(MachineError) as caught:
                    await a.qmp.execute("query-status")
                assert "SECRET" not in str(caught.value)
            assert not any("SECRET" in words for words in caplog.messages)

    go(main())


def test_a_line_up_to_the_limit_is_taken() -> None:
    """The longest answer that is allowed arrives whole."""

    async def main() -> None:
        async with adoption() as a:
            await a.qmp.adopt()
            text = "x" * (MAX_REPLY - 100)
            a.qemu.say["query-status"] = returns(text)
            assert await a.qmp.execute("query-status") == text
            await a.qemu.send(event("STOP"))
            await a.came.wait()

    go(main())


def test_the_words_of_a_refusal_are_harmless_and_few() -> None:
    """A QEMU that refuses can't write to the terminal of who reads the error, nor fill it."""
    said = {"class": "GenericError", "desc": "\x1b[2Kno " + "x" * 10_000}

    async def main() -> None:
        async with adoption() as a:
            await a.qmp.adopt()
            a.qemu.say["query-status"] = lambda order: _answer(order, error=said)
            with pytest.raises(QemuRefused) as caught:
                await a.qmp.execute("query-status")
            assert "\\x1b[2Kno" in str(caught.value)
            assert len(str(caught.value)) < 2 * MAX_WORDS

    go(main())


def test_our_client_is_a_client_of_the_library() -> None:
    """What it overrides are methods that the library has, so a newer one can't pass it by."""
    for name in ("_cb_inbound", "_cb_outbound", "_do_recv", "_on_message"):
        assert name in vars(Client) and any(name in vars(base) for base in Client.__mro__[1:])


@pytest.mark.parametrize("devices", [Ports, Nics, Blocks])
def test_a_session_that_is_over_is_a_machines_error(
    devices: type[Ports] | type[Nics] | type[Blocks],
) -> None:
    """Also where a descriptor was to be sent to a QEMU that lives on: no defect of the node's."""

    async def main() -> None:
        async with adoption() as a:
            await a.qmp.adopt()
            a.qemu.sock.send(b"no JSON\n")
            with pytest.raises(MachineError):
                await a.qmp.execute("query-status")
            one, other = socket.socketpair()
            with one, other, pytest.raises(MachineError, match="QEMU is gone"):
                await devices("a", a.qmp).add(7, "port", one.fileno())

    go(main())
