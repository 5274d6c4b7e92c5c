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


def told(name: str, **data: object) -> bytes:
    """Return an event as QEMU writes it."""
    head = {"timestamp": {"seconds": 1, "microseconds": 2}, "event": name}
    return json.dumps({**head, "data": data}).encode() + b"\r\n"


FLOOD = told("ACPI_DEVICE_OST", info={"device": "d0", "slot": "0"}) * 2000


def test_events_that_nobody_waits_for_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of them, as a guest can make it, is dropped at once; answers and what a machine
    hears of come through it."""
    parsed = []

    def parse(text: bytes) -> object:
        parsed.append(text)
        return json.JSONDecoder().decode(text.decode())

    monkeypatch.setattr(json, "loads", parse)

    async def main() -> None:
        async with adoption() as a:
            await a.qmp.adopt()
            parsed.clear()
            a.qemu.say["query-status"] = lambda order: FLOOD + returns("mine")(order) + FLOOD
            assert await a.qmp.execute("query-status") == "mine"
            await asyncio.get_running_loop().sock_sendall(
                a.qemu.sock, told("DEVICE_DELETED", device="x") + FLOOD + told("SHUTDOWN")
            )
            assert await a.qmp.execute("query-status") == "mine"
            assert [name for name, _ in a.events] == ["DEVICE_DELETED", "SHUTDOWN"]
            assert len(parsed) == 4

    go(main())


def test_what_is_dropped_leaves_the_loop_to_others_too() -> None:
    """Of what lies there already only so much is dropped until others have their turn."""

    async def main() -> None:
        session, turns = Client("a"), 0
        reader = session._reader = asyncio.StreamReader(limit=1 << 20)
        reader.feed_data(FLOOD * 5 + b'{"return": {}}\r\n')

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.get_running_loop().create_task(others())
        assert dict(await session._do_recv()) == {"return": {}}
        task.cancel()
        most = PIECE * module.DROPPED // MIN_COST
        assert turns >= FLOOD.count(b"\n") * 5 // most

    asyncio.run(main())


@pytest.mark.parametrize(
    ("line", "dropped"),
    [
        (told("VSERPORT_CHANGE", open=True), True),
        (told("SHUTDOWN", reason="guest-reset"), False),
        (told("DEVICE_DELETED", device="x"), False),
        (b'{"return": {"timestamp": 1}, "id": "1"}\r\n', False),
        (b'{"error": {"desc": "{\\"timestamp\\": "}}\r\n', False),
        (b'{"event": "STOP", "timestamp": {}}\r\n', False),
        (b"\r\n", False),
    ],
)
def test_only_an_event_that_nobody_waits_for_is_dropped(line: bytes, dropped: bool) -> None:
    """Whatever else QEMU says is parsed, as it ever was."""
    assert module._is_unwanted(line) is dropped


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
