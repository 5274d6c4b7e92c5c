"""The simulated machine keeps the monitor's protocol and fails on command."""

import asyncio
import os
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from skerry.errors import MachineError, StateError
from skerry.machine.simulator.machine import SimulatedMachine
from skerry.machine.simulator.process import Faults, Step
from skerry.monitor.protocols import Machine
from skerry.node.guest import Guest


def go(main: Coroutine[Any, Any, None]) -> None:
    """Run a test and check that it leaves no descriptor behind."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    asyncio.run(main)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def started(name: str = "a", faults: Faults | None = None) -> SimulatedMachine:
    """Return a machine that runs."""
    machine = SimulatedMachine(name, faults)
    await machine.prepare()
    await machine.resume()
    return machine


async def run(machine: SimulatedMachine, *argv: str, timeout_s: float = 5) -> tuple[int, bytes]:
    """Run a command in the guest; return its code and output."""
    pieces: list[bytes] = []
    code = await machine.agent.run(
        argv, output=lambda _, data: pieces.append(data), timeout_s=timeout_s
    )
    return code, b"".join(pieces)


def test_it_has_the_shape_that_monitor_and_node_use() -> None:
    """It is a `Machine` and a `Guest` by type, and is shown as the simulator."""

    async def main() -> None:
        made = SimulatedMachine("a")
        machine: Machine = made
        guest: Guest = made
        assert machine.kind == guest.kind == "simulator"
        machine.kill()
        assert (await machine.exited).reason == "ended before it was started"

    go(main())


def test_a_guest_writes_one_end_of_a_pipe_and_reads_the_other() -> None:
    """One way it carries; what the reader writes vanishes, and the writer reads nothing."""

    async def main() -> None:
        a, b = await started("a"), await started("b")
        read, write = os.pipe()
        await a.attach(1, "stream", "up", write)
        await b.attach(1, "stream", "up", read)
        os.close(read)
        os.close(write)
        assert await run(a, "send", "up", "hello") == (0, b"")
        assert await run(b, "recv", "up") == (0, b"hello")
        assert b.guest.write("up", b"back") == 4
        assert a.guest.read("up") == b.guest.read("up") == b""
        await a.detach(1)
        with pytest.raises(EOFError):
            b.guest.read("up")
        for machine in (a, b):
            machine.kill()

    go(main())


def test_two_guests_talk_over_the_ends_they_were_given() -> None:
    """Bytes cross between two guests after the caller closed its own ends."""

    async def main() -> None:
        a, b = await started("a"), await started("b")
        one, other = socket.socketpair()
        await a.attach(1, "stream", "orders", one.fileno())
        await b.attach(1, "stream", "orders", other.fileno())
        one.close()
        other.close()
        assert await run(a, "send", "orders", "hello") == (0, b"")
        assert await run(b, "recv", "orders") == (0, b"hello")
        assert b.guest.write("orders", b"back") == 4
        assert a.guest.read("orders") == b"back"
        assert a.guest.read("orders") == b""
        assert await run(a, "ports") == (0, b"orders\n")
        b.kill()
        with pytest.raises(EOFError):
            a.guest.read("orders")
        assert await run(a, "recv", "orders") == (1, b"the channel of port orders is over\n")
        a.kill()

    go(main())


def test_detach_closes_the_descriptor_and_takes_the_port_away() -> None:
    """After a detach the machine holds nothing of the channel; a second one is nothing."""

    async def main() -> None:
        a = await started()
        one, other = socket.socketpair()
        with one, other:
            await a.attach(7, "stream", "p", one.fileno())
            held = a.descriptors[7]
            assert held != one.fileno()
            await a.detach(7)
            await a.detach(7)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(held)
            assert a.guest.ports() == []
            assert (await run(a, "recv", "p"))[0] == 1
            await a.attach(7, "stream", "p", one.fileno())
            assert a.guest.write("p", b"x") == 1
        a.kill()

    go(main())


def test_an_attach_that_fails_holds_nothing() -> None:
    """A wrong kind, a closed descriptor or a port taken twice leaves the machine as it was."""

    async def main() -> None:
        a = await started()
        one, other = socket.socketpair()
        with one, other:
            await a.attach(1, "stream", "p", one.fileno())
            with pytest.raises(MachineError):
                await a.attach(2, "memory", "q", one.fileno())
            with pytest.raises(MachineError):
                await a.attach(2, "stream", "q", 1 << 20)
            with pytest.raises(StateError):
                await a.attach(2, "stream", "p", one.fileno())
            with pytest.raises(StateError):
                await a.attach(1, "stream", "q", one.fileno())
            assert list(a.descriptors) == [1]
        a.kill()

    go(main())


@pytest.mark.parametrize("stop", ["pause", "freeze"])
def test_a_guest_that_is_stopped_touches_nothing(stop: str) -> None:
    """Paused or frozen it neither reads nor writes nor answers; after it, it goes on."""

    async def main() -> None:
        a = await started()
        one, other = socket.socketpair()
        with one, other:
            await a.attach(1, "stream", "p", one.fileno())
            other.send(b"waiting")
            if stop == "pause":
                await a.pause()
            else:
                a.guest.freeze()
            assert a.guest.read("p") == b""
            assert a.guest.write("p", b"x") == 0
            with pytest.raises(MachineError, match="did not answer"):
                await run(a, "true", timeout_s=0.01)
            with pytest.raises(MachineError, match="did not answer"):
                await a.agent.ready(0.01)
            await (a.resume() if stop == "pause" else asyncio.to_thread(lambda: None))
            a.guest.thaw()
            assert a.guest.read("p") == b"waiting"
            assert await run(a, "true") == (0, b"")
            task = asyncio.ensure_future(run(a, "recv", "p"))
            await asyncio.sleep(0.005)
            a.guest.freeze()
            other.send(b"later")
            await asyncio.sleep(0.01)
            assert one.recv(9, socket.MSG_PEEK) == b"later"
            a.guest.thaw()
            assert await task == (0, b"later")
        a.kill()

    go(main())


STEPS: list[Step] = ["prepare", "resume", "pause", "attach", "detach"]


async def _walk(machine: SimulatedMachine, end: int) -> None:
    await machine.prepare()
    await machine.resume()
    await machine.attach(1, "stream", "p", end)
    await machine.detach(1)
    await machine.pause()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("how", ["fail", "die"])
def test_each_step_can_fail_or_end_the_machine(step: Step, how: str) -> None:
    """A fault makes that step raise `MachineError`; dying leaves no descriptor and an exit."""

    async def main() -> None:
        one, other = socket.socketpair()
        with one, other:
            well = SimulatedMachine("well")
            await _walk(well, one.fileno())
            well.kill()
            faults = Faults()
            getattr(faults, how).add(step)
            machine = SimulatedMachine("ill", faults)
            with pytest.raises(MachineError):
                await _walk(machine, one.fileno())
            assert machine.exited.done() == (how == "die" or step == "prepare")
            machine.kill()
            assert machine.descriptors == {}
            await machine.detach(1)

    go(main())


def test_shutdown_ends_a_guest_and_a_deadline_a_frozen_one() -> None:
    """A guest that answers ends by itself with 0; one that does not is killed in time."""

    async def main() -> None:
        good, bad = await started("good"), await started("bad")
        bad.guest.freeze()
        await good.shutdown(5)
        await bad.shutdown(0.01)
        assert (await good.exited).status == 0
        assert (await bad.exited).status == -9
        for step in (good.resume, good.prepare):
            with pytest.raises((MachineError, StateError)):
                await step()

    go(main())


def test_a_command_under_way_fails_when_the_machine_ends() -> None:
    """Nobody waits for a machine that has died."""

    async def main() -> None:
        a = await started()
        one, other = socket.socketpair()
        with one, other:
            await a.attach(1, "stream", "p", one.fileno())
            task = asyncio.ensure_future(run(a, "recv", "p"))
            await asyncio.sleep(0)
            a.die(3, "a bug")
            with pytest.raises(MachineError, match="a bug"):
                await task
            assert (await a.exited).status == 3

    go(main())


def test_commands_and_console() -> None:
    """The agent's commands give their output and codes; the console shows and takes text."""

    async def main() -> None:
        a = await started()
        assert await run(a, "echo", "a", "\udcff b") == (0, b"a \xff b\n")
        assert await run(a, "false") == (1, b"")
        assert (await run(a, "reboot"))[0] == 127
        assert (await run(a, "send", "none", "x"))[0] == 1
        reading = a.console.subscribe()
        a.guest.print("login: ")
        shown = b""
        while not shown.endswith(b"login: "):
            shown += (await reading.read())[1]
        assert a.console.untrusted_text == b"a runs\r\nlogin: "
        a.console.write(b"root\n")
        assert a.guest.typed() == b"root\n"
        a.kill()
        assert await reading.read() == (0, b"")

    go(main())
