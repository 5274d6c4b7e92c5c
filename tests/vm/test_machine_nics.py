"""A real machine's network cards, seen from the other end of the wire."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

import pytest

from skerry.channel.stream import StreamBridges
from skerry.errors import LimitReached
from skerry.machine.qemu.machine import QemuMachine
from skerry.machine.qemu.nics import MAX_NICS, mac
from tests.support.machines import Host, sh

GUEST, OURS = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 9))
STATION = b"\x02\0\0\0\0\x09"
WAIT_S = 20.0


@pytest.fixture(scope="module")
def machine(host: Host) -> QemuMachine:
    """A jailed machine with slots."""
    return host.run(host.boot("nic", board="pc", incarnation="nic#1"))


def answers(wire: socket.socket, address: str) -> bool:
    """Ask who has the guest's address, as another station would, and say whether it is the card."""
    who = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + STATION + OURS + b"\0" * 6 + GUEST
    body = (b"\xff" * 6 + STATION + b"\x08\x06" + who).ljust(60, b"\0")
    wire.settimeout(0.5)
    deadline, got = time.monotonic() + WAIT_S, b""
    while time.monotonic() < deadline:
        wire.sendall(len(body).to_bytes(4, "big") + body)
        with contextlib.suppress(TimeoutError):
            got += wire.recv(65536)
        reply = b"\x08\x06" + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2)
        if reply + bytes.fromhex(address.replace(":", "")) + GUEST in got:
            return True
    return False


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_a_card_comes_and_goes_at_run_time(
    host: Host, machine: QemuMachine, transport: str
) -> None:
    """The guest loads its driver and answers with the card's address; after that it has no card."""
    streams = StreamBridges("tcp" if transport == "tcp" else "auto")

    async def run() -> None:
        bridge = streams.mint()
        await machine.attach(1, "link", "wire", bridge.ends["sink"])
        with socket.socket(fileno=bridge.ends["source"]) as wire:
            assert await sh(machine, "link-up wire 10.0.0.1/24") == (0, "wire\n")
            assert answers(wire, mac("nic", "wire"))
            wire.detach()
        await machine.detach(1)
        assert not machine.attached
        assert await sh(machine, "ls /sys/class/net") == (0, "lo\n")
        bridge.cut()

    try:
        host.run(run())
    finally:
        streams.close()


def test_garbage_on_the_wire_ends_the_link_and_nothing_else(
    host: Host, machine: QemuMachine
) -> None:
    """QEMU closes its end of what is no frame; the guest lives, and the port can be bound anew."""

    async def run() -> None:
        for channel, data in ((2, b"\xff" * 5000), (3, b"\0" * 5000), (4, b"")):
            ours, theirs = socket.socketpair()
            with ours, theirs:
                await machine.attach(channel, "link", "wire", theirs.fileno())
                assert (await sh(machine, "link-up wire 10.0.0.1/24"))[0] == 0
                assert answers(ours, mac("nic", "wire"))
                with contextlib.suppress(OSError):
                    ours.sendall(data)
                assert await sh(machine, "echo alive") == (0, "alive\n")
                await machine.detach(channel)
                assert await sh(machine, "ls /sys/class/net") == (0, "lo\n")

    host.run(run())


def test_a_card_more_than_there_may_be_is_refused(host: Host, machine: QemuMachine) -> None:
    """The limit is reached before the slots are; all go again."""

    async def run() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for channel in range(100, 100 + MAX_NICS):
                await machine.attach(channel, "link", f"c{channel}", theirs.fileno())
            with pytest.raises(LimitReached, match="MAX_NICS"):
                await machine.attach(999, "switch", "more", theirs.fileno())
            for channel in machine.attached:
                await machine.detach(channel)
        assert await sh(machine, "ls /sys/class/net") == (0, "lo\n")

    host.run(run())


def test_the_next_node_finds_the_cards(host: Host, machine: QemuMachine) -> None:
    """Those that carry, and can take them away. Last: the machine is another object then."""

    async def run() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            await machine.attach(7, "uplink", "out", theirs.fileno())
            await host.abandon(machine)
            heir = await host.heir("nic", "nic#1")
            await heir.adopt()
            await heir.agent.ready(WAIT_S)
            assert heir.attached == {7}
            assert (await sh(heir, "link-up out 10.0.0.1/24"))[0] == 0
            assert answers(ours, mac("nic", "out"))
            await heir.detach(7)
            assert not heir.attached
            assert await sh(heir, "ls /sys/class/net") == (0, "lo\n")

    host.run(run())
