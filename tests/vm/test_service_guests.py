"""What the guests of both services do with a host that comes, goes, and breaks its word."""

from __future__ import annotations

import asyncio
import os
import socket

from skerry.audit.replica import Status, read_status
from skerry.image.build import build
from skerry.image.recipe import preset
from skerry.machine.qemu.machine import QemuMachine
from skerry.policy import messages
from skerry.policy.messages import Answer, Answered, Ask, Begin, Failure, Hooked, Made, Order
from skerry.system.model import AUDIT_DOMAIN, MANAGER_DOMAIN
from tests.support.machines import Host, cache, sh
from tests.unit.audit.trails import made_segments
from tests.unit.policy.banks import BANKS, PAUSE

SERVES_S = 90.0
"""How long a guest may take to boot and to answer, on a busy machine."""


async def made(host: Host, name: str, memory: int) -> QemuMachine:
    """Prepare a machine of a service's image."""
    image = build(cache(), preset(name))
    return await host.make(
        name,
        kernel=image.kernel,
        bzimage=image.bzimage,
        initrd=image.initrd,
        cmdline=image.cmdline,
        memory=memory,
    )


class Connection:
    """The node's end of the manager's port."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._untrusted = bytearray()

    async def say(self, data: bytes) -> None:
        """Send bytes."""
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def ask(self, order: Order) -> Answer:
        """Send an order and return its answer."""
        await self.say(messages.packed(order))
        async with asyncio.timeout(SERVES_S):
            while (body := messages.take(self._untrusted, messages.MAX_ANSWER)) is None:
                chunk = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16)
                assert chunk, "the guest ended"
                self._untrusted += chunk
        return messages.answer(body)


async def connected(host: Host, machine: QemuMachine, number: int) -> Connection:
    """Give the guest a new port."""
    ours, theirs = host.bridges.pair()
    with theirs:
        await machine.attach(number, "stream", "skerry.manager", theirs.fileno())
    return Connection(ours)


def test_the_manager_s_guest_begins_anew_with_each_node_and_ends_with_a_broken_one(
    host: Host,
) -> None:
    """What it was told by one node is nothing to the next; a broken order switches it off."""

    async def scene() -> None:
        machine = await made(host, MANAGER_DOMAIN, 512 << 20)
        one = await connected(host, machine, 1)
        await machine.resume()
        begun = await one.ask(Order(1, Begin(3, BANKS.sources, {})))
        assert begun.what == Made(3, BANKS.stack.digest)
        question = Ask(0, (Hooked("domain_pause", PAUSE),))
        answer = (await one.ask(Order(2, question))).what
        assert isinstance(answer, Answered)
        ((verdict, _),) = answer.answers
        assert verdict is not None
        assert (verdict.allowed, verdict.generation) == (True, 3)
        await one.say(messages.packed(Order(3, question))[:-5])  # killed in the middle of a message
        one.sock.close()
        await machine.detach(1)
        other = await connected(host, machine, 2)
        refused = (await other.ask(Order(1, question))).what
        assert isinstance(refused, Failure)
        assert "no policy yet" in refused.message
        assert not machine.exited.done()
        await other.say(b"\0\0\0\4oops")
        end = await asyncio.wait_for(asyncio.shield(machine.exited), SERVES_S)
        assert end.reason == "the guest switched itself off"
        other.sock.close()

    host.run(scene())


def test_the_replica_s_guest_takes_feed_after_feed_and_says_how_it_stands(host: Host) -> None:
    """Each over a pipe of its own; what it writes to its port goes nowhere."""
    first, second = made_segments([40, 30])

    async def feed(machine: QemuMachine, number: int, lines: list[bytes]) -> None:
        given, end = os.pipe()
        await machine.attach(number, "stream", "skerry.trail", given)
        os.close(given)
        for line in lines:
            assert os.write(end, line) == len(line)
        os.close(end)

    async def reaches(machine: QemuMachine, n: int) -> Status:
        there = f"grep -qs '\"n\":{n},' /run/skerry/replica"
        wait = f"for _ in $(seq 400); do {there} && break; sleep 0.2; done"
        code, text = await sh(machine, f"{wait}; cat /run/skerry/replica", SERVES_S)
        assert code == 0
        return read_status(text.encode())

    async def scene() -> None:
        machine = await made(host, AUDIT_DOMAIN, 256 << 20)
        await machine.resume()
        await machine.agent.ready(SERVES_S)
        assert (await reaches(machine, 0)).state == "empty"
        await feed(machine, 1, [*first, second[0][:10]])
        assert (await reaches(machine, 40)).state == "whole"
        await machine.detach(1)
        await feed(machine, 2, second)
        found = await reaches(machine, 70)
        assert (found.state, found.first, found.gaps) == ("whole", 1, ())
        _, text = await sh(machine, "cat /var/replica/* | wc -l")
        assert text.strip() == "70"
        machine.kill()

    host.run(scene())
