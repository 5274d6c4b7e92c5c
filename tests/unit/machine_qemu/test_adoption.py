"""A control socket is adopted from a dead node, whatever it and QEMU had left in it."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
from collections.abc import Callable

import pytest

from skerry.errors import MachineError
from skerry.machine.qemu import qmp as module
from skerry.machine.qemu.command import MAX_PORTS
from skerry.machine.qemu.machine import QemuMachine
from skerry.machine.qemu.ports import Ports
from skerry.machine.qemu.qmp import QemuRefused
from skerry.machine.qemu.sockets import SOCKETS
from skerry.machine.qemu.sync import GIVEN, SYNC_MAX, TAIL_MAX
from tests.support.qmp import Order, adoption, event, go, refuses, returns


def test_a_session_goes_on_and_events_come() -> None:
    """After the adoption commands work, and events come that were sent before, within and after."""

    async def main() -> None:
        async with adoption() as a:
            await a.qemu.send(event("STOP"))
            a.qemu.say["qmp_capabilities"] = lambda order: (
                json.dumps(event("DEVICE_DELETED", device="x")).encode() + b"\n" + refuses(order)
            )
            a.qemu.say["query-status"] = returns({"running": True})
            await a.qmp.adopt()
            assert a.events == [("STOP", {}), ("DEVICE_DELETED", {"device": "x"})]
            assert await a.qmp.execute("query-status") == {"running": True}
            await a.qemu.send(event("SHUTDOWN", reason="guest"))
            await a.qmp.execute("query-status")
            assert a.events[-1] == ("SHUTDOWN", {"reason": "guest"})

    go(main())


def test_what_the_dead_node_left_in_qemu_is_replaced() -> None:
    """First comes a byte that ends any text, then /dev/null takes a waiting descriptor's place."""

    async def main() -> None:
        async with adoption() as a:
            await a.qmp.adopt()
            assert a.qemu.heard.startswith(b"\xff\n")
            orders = [(order["execute"], order.get("arguments")) for order in a.qemu.orders]
            name = {"fdname": GIVEN}
            assert orders == [("qmp_capabilities", None), ("getfd", name), ("closefd", name)]
            assert [os.fstat(fd).st_rdev for fd in a.qemu.given] == [os.makedev(1, 3)]

    go(main())


LEFT = {
    "nothing": b"",
    "half an answer": b'"desc": "x"}, "id": "__qmp#00003"}\r\n',
    "an answer": b'{"return": {}, "id": "__qmp#00003"}\r\n',
    "a greeting": b'{"QMP": {"version": {}, "capabilities": ["oob"]}}\r\n',
    "no text at all": b"\x00\xff\xfe\r\n\r\n{\r\n",
    "a text that is too deep": b'{"a":' + b"[" * 100_000 + b"\r\n",
    "an answer without an object": b"[]\r\n7\r\n",
}


@pytest.mark.parametrize("left", LEFT)
def test_what_was_half_read_is_dropped(left: str) -> None:
    """Whatever the dead node had not read to its end, the next command gets its own answer."""

    async def main() -> None:
        async with adoption() as a:
            a.qemu.sock.send(LEFT[left])
            a.qemu.say["query-status"] = returns("mine")
            await a.qmp.adopt()
            assert await a.qmp.execute("query-status") == "mine"
            assert a.events == []

    go(main())


@pytest.mark.parametrize("counted", [False, True], ids=["ids of its own", "control"])
def test_a_late_answer_to_the_dead_node_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, counted: bool
) -> None:
    """It is dropped; the control counts from 0, as every node did, and takes it for its own."""
    if counted:
        monkeypatch.setattr(secrets, "randbits", lambda _bits: 0)

    async def main() -> None:
        async with adoption() as a:
            late = b"".join(
                json.dumps({"return": "late", "id": f"__qmp#{n:05d}"}).encode() + b"\r\n"
                for n in range(20)
            )
            a.qemu.say["query-status"] = lambda order: late + returns("mine")(order)
            await a.qmp.adopt()
            assert await a.qmp.execute("query-status") == ("late" if counted else "mine")

    go(main())


def test_an_event_under_way_behind_the_last_answer_is_read_to_its_end() -> None:
    """The library begins at the beginning of a line, also where QEMU had begun to say one."""

    async def main() -> None:
        async with adoption() as a:
            text = json.dumps(event("SHUTDOWN", reason="guest")).encode() + b"\r\n"
            whole = json.dumps(event("STOP")).encode() + b"\r\n"
            a.qemu.say["closefd"] = lambda order: returns({})(order) + whole + text[:30]
            a.qemu.say["query-status"] = returns("mine")
            adopting = asyncio.ensure_future(a.qmp.adopt())
            await asyncio.wait_for(a.came.wait(), 5)
            a.qemu.sock.send(text[30:] + whole)
            await adopting
            assert await a.qmp.execute("query-status") == "mine"
            assert [name for name, _ in a.events] == ["STOP", "SHUTDOWN", "STOP"]

    go(main())


def _flood(piece: bytes, size: int) -> Callable[[Order], bytes]:
    return lambda order: (piece * (size // len(piece) + 1))[: size + 1]


HOSTILE: dict[str, tuple[str, Callable[[Order], bytes], str]] = {
    "a line without end": ("qmp_capabilities", _flood(b"x", SYNC_MAX), "did not answer"),
    "lines without end": ("qmp_capabilities", _flood(b"{\n", SYNC_MAX), "did not answer"),
    "another's id": ("getfd", lambda order: returns({})({"id": "x"}), "in time"),
    "silence": ("qmp_capabilities", lambda order: b"", "in time"),
    "silence later": ("closefd", lambda order: b"", "in time"),
    "a refused getfd": ("getfd", refuses, "refused getfd"),
    "a refused closefd": ("closefd", refuses, "refused closefd"),
    "a tail without end": (
        "closefd",
        lambda order: returns({})(order) + b"y" * (TAIL_MAX + 1),
        "at once",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_qemu_that_does_not_follow_is_an_error(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Flood, silence and refusal end by the deadline in a `MachineError` and bounded memory."""
    monkeypatch.setattr(module, "COMMAND_S", 1.0)
    command, say, words = HOSTILE[what]

    async def main() -> None:
        async with adoption() as a:
            a.qemu.say[command] = say
            with pytest.raises(MachineError, match=words):
                async with asyncio.timeout(5):
                    await a.qmp.adopt()

    go(main())


def test_the_last_words_of_a_qemu_that_has_ended_are_heard() -> None:
    """Its events come, whether it is adopted or only let go; adopting it is an error."""

    async def main() -> None:
        for adopted in (True, False):
            async with adoption() as a:
                await a.qemu.send(event("SHUTDOWN", reason="guest"))
                a.qemu.sock.shutdown(socket.SHUT_RDWR)
                if adopted:
                    with pytest.raises(MachineError, match="has ended"):
                        await a.qmp.adopt()
                else:
                    await a.qmp.drained(1)
                assert a.events == [("SHUTDOWN", {"reason": "guest"})]

    go(main())


def test_a_refused_use_of_a_descriptor_closes_it_and_no_other_comes_between() -> None:
    """Each descriptor is named, used and, if refused, closed before the next one is named."""

    async def main() -> None:
        async with adoption() as a:
            await a.qmp.adopt()
            a.qemu.orders.clear()
            a.qemu.say["chardev-add"] = refuses
            with open(os.devnull) as null:  # noqa: ASYNC230, PTH123
                results = await asyncio.gather(
                    *(a.qmp.give(null.fileno(), ("chardev-add", {"id": str(n)})) for n in range(3)),
                    return_exceptions=True,
                )
            assert [type(result) for result in results] == [QemuRefused] * 3
            names = [order["execute"] for order in a.qemu.orders]
            assert names == ["getfd", "chardev-add", "closefd"] * 3

    go(main())


def _chardevs(count: int) -> list[dict[str, str]]:
    return [{"label": f"channel{n}"} for n in range(count)]


@pytest.mark.parametrize("untrusted", [None, {}, "x", _chardevs(MAX_PORTS + 1)])
def test_what_an_adopted_qemu_claims_to_hold_is_checked(untrusted: object) -> None:
    """No list, or more channels than a machine has, is an error; as many as it has are taken."""

    async def main() -> None:
        async with adoption() as a:
            await a.qmp.adopt()
            ports = Ports("a", a.qmp)
            a.qemu.say["qom-list"] = returns([{"name": "agent"}, {"name": "channel0-port"}, 7])
            a.qemu.say["query-chardev"] = returns(untrusted)
            with pytest.raises(MachineError):
                await ports.find()
            others: list[object] = [{"label": "qmp"}, {"label": "channel-1"}, {}, [], None]
            a.qemu.say["query-chardev"] = returns(_chardevs(MAX_PORTS) + others)
            await ports.find()
            assert ports.channels == set(range(MAX_PORTS))

    go(main())


class Ended:
    """A process that had ended."""

    pid, pidfd = 1, -1

    def __init__(self) -> None:
        self.exited = asyncio.get_running_loop().create_future()
        self.exited.set_result(256)

    def kill(self) -> None:
        """Nothing is left to kill."""


def test_a_machine_whose_sockets_were_not_all_kept_is_not_taken_over() -> None:
    """What is missing is named and the others are closed; with all four it is taken over."""

    async def main() -> None:
        for missing in ("qmp", ""):
            kept = {}
            for item in SOCKETS:
                near, far = socket.socketpair()
                far.close()
                kept[f"d/a/1.{item}"] = near.detach()
            if missing:
                os.close(kept.pop(f"d/a/1.{missing}"))
                with pytest.raises(MachineError, match="did not keep its qmp"):
                    QemuMachine.heir("a", "a", "d/a/1", Ended(), kept)
            else:
                machine = QemuMachine.heir("a", "a", "d/a/1", Ended(), kept)
                assert (await machine.exited).reason == "QEMU ended, and nobody can say how"

    go(main())
