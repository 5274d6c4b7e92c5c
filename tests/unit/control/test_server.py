"""The control socket against clients that are malformed, oversized, slow, many or gone."""

from __future__ import annotations

import asyncio
import logging
import os
import struct
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from skerry.control import server as module
from skerry.control.client import Client, Remote
from skerry.control.client import call as call_service
from skerry.control.operators import Operators
from skerry.control.server import TELL_S, Broken, ControlServer, Session
from skerry.errors import Denied, StateError, WireError
from skerry.label import Label
from skerry.wire.control import (
    Call,
    Console,
    Done,
    Failed,
    Input,
    Output,
    PolicyLoad,
    Ps,
    Reply,
    Stop,
    decode_reply,
    encode,
)
from skerry.wire.frames import MAX_FRAME, frame, read_frame

OPERATOR = Label((("acm", "op"),))


class Service:
    """A server with a handler that answers simply, and raw clients to it."""

    def __init__(self, path: Path, uid: int) -> None:
        self.path = path
        self.calls: list[Call] = []
        self.server = ControlServer(path, Operators(lambda: {uid: OPERATOR}), self.handle)

    async def handle(self, call: Call, session: Session) -> object:
        """Answer by the kind of the call."""
        self.calls.append(call)
        if isinstance(call, Stop):
            raise StateError("not now", fix="later")
        if isinstance(call, Console):
            while True:
                await session.output("console", b"x" * 60_000)
        return {"operator": str(session.operator)}

    async def raw(self, data: bytes) -> Reply | None:
        """Send bytes, and return the first reply or None if the service just closed."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        writer.write(data)
        try:
            untrusted = await read_frame(reader, 5)
        except ConnectionResetError:
            return None
        finally:
            writer.close()
        return decode_reply(untrusted) if untrusted else None

    async def alive(self) -> bool:
        """Say whether an ordinary call is answered."""
        return isinstance(await self.raw(frame(encode(Ps()))), Done)


def play(scene: Callable[[Service], Awaitable[None]], uid: int | None = None) -> None:
    """Run one scene against a fresh service."""

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            service = Service(Path(folder) / "sock", os.getuid() if uid is None else uid)
            await service.server.listen(os.getuid())
            try:
                await scene(service)
            finally:
                await service.server.close()
            assert not service.path.exists()

    asyncio.run(run())


def test_a_call_is_answered_with_the_label_of_the_peer() -> None:
    """The label comes from the peer's credentials, not from the message."""

    async def scene(service: Service) -> None:
        reply = await service.raw(frame(encode(Ps())))
        assert reply == Done({"operator": "op"})

    play(scene)


def test_a_peer_that_the_map_does_not_name_is_refused_unread() -> None:
    """An unknown uid gets a denial with its reason; nothing of its call is handled."""

    async def scene(service: Service) -> None:
        reply = await service.raw(frame(encode(Ps())))
        assert isinstance(reply, Failed)
        assert (reply.code, reply.exit_code) == ("OPERATOR-UNKNOWN", Denied.exit_code)
        assert service.calls == []

    play(scene, uid=os.getuid() + 1)


def test_an_error_of_a_call_is_one_line_with_what_to_do() -> None:
    """The client gets the message, the fix and the exit code."""

    async def scene(service: Service) -> None:
        reply = await service.raw(frame(encode(Stop("a"))))
        assert isinstance(reply, Failed)
        assert (reply.message, reply.fix, reply.exit_code) == ("not now", "later", 1)

    play(scene)


@pytest.mark.parametrize(
    "untrusted",
    [
        struct.pack(">I", MAX_FRAME + 1) + b"x",
        struct.pack(">I", 0),
        struct.pack(">I", 0xFFFFFFFF),
        frame(b"\xc1garbage"),
        frame(b"\x81\xa2op\xa3ps2"),
        frame(b"\x82\xa2op\xa2ps\xa5extra\x01"),
        frame(b"\x81\xa2op\xa5start"),
        frame(b"\x91" * 200_000),
        frame(b"\x82\xa2op\xa3cut\xa7channel\xa1x"),
    ],
)
def test_a_malformed_message_is_refused_and_the_service_stays_up(untrusted: bytes) -> None:
    """Bad length, bad bytes, unknown operation, unknown or missing field, wrong type, depth."""

    async def scene(service: Service) -> None:
        reply = await service.raw(untrusted)
        assert isinstance(reply, Failed)
        assert service.calls == []
        assert await service.alive()

    play(scene)


def test_a_slow_message_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that begins and never ends, or never begins, holds nobody up."""
    monkeypatch.setattr("skerry.wire.frames.BODY_S", 0.05)
    monkeypatch.setattr(module, "FIRST_S", 0.05)

    async def scene(service: Service) -> None:
        half, silent = await asyncio.gather(service.raw(b"\0\0"), service.raw(b""))
        assert isinstance(half, Failed)
        assert isinstance(silent, Failed)
        assert await service.alive()

    play(scene)


def test_a_client_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output to it stops when its time is up; others are served meanwhile and after."""
    monkeypatch.setattr(module, "SLOW_S", 0.1)

    async def scene(service: Service) -> None:
        reader, writer = await asyncio.open_unix_connection(service.path, limit=1024)
        writer.write(frame(encode(Console("a"))))
        await asyncio.sleep(0)
        assert await service.alive()
        untrusted = await read_frame(reader, 5)
        assert isinstance(decode_reply(untrusted), Output)
        await asyncio.wait(service.server.connections, timeout=5)
        assert await service.alive()
        writer.close()

    play(scene)


def test_too_many_clients_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit a further client is refused by name, and served again when one has gone."""
    monkeypatch.setattr(module, "MAX_CLIENTS", 2)

    async def scene(service: Service) -> None:
        held = [await asyncio.open_unix_connection(service.path) for _ in range(2)]
        await asyncio.sleep(0.01)
        reply = await service.raw(frame(encode(Ps())))
        assert isinstance(reply, Failed)
        assert reply.code == "LIMIT-REACHED"
        for _, writer in held:
            writer.close()
        await asyncio.sleep(0.05)
        assert await service.alive()

    play(scene)


def test_the_socket_is_the_owners_alone_unless_others_are_operators() -> None:
    """Mode 0600 for a map with only the owner."""

    async def scene(service: Service) -> None:
        assert service.path.stat().st_mode & 0o777 == 0o600

    play(scene)


def test_one_operator_at_the_limit_keeps_no_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is each operator's own, so that the owner can always take authority away."""
    monkeypatch.setattr(module, "MAX_CLIENTS", 1)
    peers = [os.getuid(), os.getuid() + 1]
    monkeypatch.setattr(module, "peer_uid", lambda _: peers.pop() if peers else os.getuid() + 1)

    async def scene(service: Service) -> None:
        both = dict.fromkeys((os.getuid(), os.getuid() + 1), OPERATOR)
        service.server._operators = Operators(lambda: both)
        _, held = await asyncio.open_unix_connection(service.path)
        await asyncio.sleep(0.01)
        assert await service.alive()
        reply = await service.raw(frame(encode(Ps())))
        assert isinstance(reply, Failed)
        assert reply.code == "LIMIT-REACHED"
        held.close()

    play(scene)


def test_a_long_answer_arrives_whole_and_one_too_long_is_an_error_in_words() -> None:
    """The list of all channels of a full node fits; beyond the bound the client is told so."""
    row = {"id": 1, "source": "a" * 31, "sink": "b" * 31, "port": "c" * 31, "kind": "stream"}
    many: list[object] = [row] * 10_000

    async def scene(service: Service) -> None:
        async def answer(call: Call, session: Session) -> object:
            return many * (1 if isinstance(call, Ps) else 20)

        service.server._handle = answer
        path = service.path
        rows = await asyncio.to_thread(call_service, path, Ps())
        assert rows == many
        with pytest.raises(Remote, match="limit"):
            await asyncio.to_thread(call_service, path, Stop("a"))
        assert isinstance(await asyncio.to_thread(call_service, path, Ps()), list)

    play(scene)


def test_an_operator_who_is_one_no_more_is_cut_off_at_once() -> None:
    """His open calls end in the step in which the map changes; those of others and the caller's
    own go on, and the socket is closed to others again."""

    async def scene(service: Service) -> None:
        other = os.getuid() + 1
        names = dict.fromkeys((os.getuid(), other), OPERATOR)
        service.server._operators = Operators(lambda: names)
        service.server.operators_changed({other})
        assert service.path.stat().st_mode & 0o777 == 0o666
        clients = []
        for uid in (os.getuid(), other):
            module_uid.append(uid)
            clients.append(await asyncio.open_unix_connection(service.path))
            await asyncio.sleep(0.01)
        del names[other]
        service.server.operators_changed({other})
        assert service.path.stat().st_mode & 0o777 == 0o600
        assert await asyncio.wait_for(clients[1][0].read(), 5) == b""
        clients[0][1].write(frame(encode(Ps())))
        assert isinstance(decode_reply(await read_frame(clients[0][0], 5)), Done)
        for _, writer in clients:
            writer.close()

    module_uid: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "peer_uid", lambda _: module_uid[-1])
        play(scene)


def test_a_half_open_client_holds_nobody_up() -> None:
    """It makes a call and never sends what belongs to it, or closes one direction: others are
    served, at most `MAX_CLIENTS` of one operator wait so, and each ends with its connection."""

    async def scene(service: Service) -> None:
        async def collect(call: Call, session: Session) -> object:
            if isinstance(call, Ps):
                return {}
            async for piece in session.inputs():
                if not piece:
                    return "whole"
            return "closed"

        service.server._handle = collect
        half = []
        for _ in range(module.MAX_CLIENTS - 1):
            half.append(await asyncio.open_unix_connection(service.path))
            half[-1][1].write(frame(encode(PolicyLoad("p"))) + frame(encode(Input(b"x"))))
        await asyncio.sleep(0.05)
        assert await service.alive()
        half[0][1].write_eof()
        assert decode_reply(await read_frame(half[0][0], 5)) == Done("closed")
        half[1][1].write(frame(encode(Input(b""))))
        assert decode_reply(await read_frame(half[1][0], 5)) == Done("whole")
        for _, writer in half:
            writer.close()

    play(scene)


def test_who_is_refused_while_he_sends_a_file_learns_why() -> None:
    """The service closes with most of it unread; the client says the reason, not `broken pipe`."""

    async def scene(service: Service) -> None:
        def send() -> object:
            client = Client(service.path)
            with client.sock:
                client.send(PolicyLoad("p"))
                client.upload(b"x" * 4_000_000)
                return client.result()

        with pytest.raises(Remote, match="not an operator"):
            await asyncio.to_thread(send)

    play(scene, uid=os.getuid() + 1)


def test_broken_connections_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Two thousand in one second are one line; the next second's tells how many there were."""
    now = 5.0
    broken = Broken(lambda: now)
    with caplog.at_level(logging.INFO, "skerry.control"):
        for _ in range(2000):
            broken.tell(WireError("malformed"))
        now += TELL_S
        broken.tell(WireError("malformed"))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert ": 1: malformed" in lines[0]
    assert ": 2000: malformed" in lines[1]


def test_a_client_that_breaks_the_protocol_is_told_of_through_the_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Real connections that break: one line for all of them."""

    async def scene(service: Service) -> None:
        for _ in range(20):
            reader, writer = await asyncio.open_unix_connection(service.path)
            writer.write(b"\xff")
            writer.transport.abort()
            del reader
        await asyncio.sleep(0.1)
        assert await service.alive()

    with caplog.at_level(logging.INFO, "skerry.control"):
        play(scene)
    lines = [r for r in caplog.records if "connections closed" in r.getMessage()]
    assert 0 < len(lines) < 5
