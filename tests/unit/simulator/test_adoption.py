"""A simulated machine outlives its node: the next owner has all of it, the last one none."""

import asyncio
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from skerry.errors import MachineError, StateError
from skerry.machine.console import RESTARTED
from skerry.machine.simulator.machine import SimulatedMachine


def go(main: Coroutine[Any, Any, None]) -> None:
    """Run a test and check that it leaves no descriptor behind."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    asyncio.run(main)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def said(machine: SimulatedMachine, *argv: str) -> bytes:
    """Run a command in the guest; return its output."""
    pieces: list[bytes] = []
    await machine.agent.run(argv, output=lambda _, data: pieces.append(data), timeout_s=5)
    return b"".join(pieces)


async def started(end: int) -> SimulatedMachine:
    """Return a machine that runs, with the channels 1 and 2."""
    machine = SimulatedMachine("a")
    await machine.prepare()
    await machine.resume()
    await machine.attach(1, "stream", "one", end)
    await machine.attach(2, "stream", "two", end)
    return machine


def test_the_heir_has_the_guest_its_ports_and_its_console() -> None:
    """What ran goes on: bytes cross, commands and console work, channels come and go, it ends."""

    async def main() -> None:
        near, far = socket.socketpair()
        with near, far:
            old = await started(near.fileno())
            await old.pause()
            new = old.heir()
            await new.adopt()
            assert (new.running, new.attached) == (False, frozenset({1, 2}))
            await new.resume()
            assert new.running
            far.send(b"for one")
            assert await said(new, "recv", "one") == b"for one"
            await new.detach(1)
            assert new.attached == {2}
            await new.attach(3, "stream", "one", near.fileno())
            assert await said(new, "ports") == b"two\none\n"
            reader = new.console.subscribe()
            new.guest.print("later")
            assert (await reader.read())[1].endswith(b"later")
            assert new.console.untrusted_text.startswith(RESTARTED)
            new.console.write(b"typed")
            assert new.guest.typed() == b"typed"
            await new.shutdown(5)
            assert (await new.exited).status == 0

    go(main())


@pytest.mark.parametrize("how", ["release", "heir"])
def test_what_the_dead_node_still_calls_does_nothing(how: str) -> None:
    """Neither kill nor attach, detach or pause of the old object act; before, each of them does."""

    async def main() -> None:
        near, far = socket.socketpair()
        with near, far:
            old = await started(near.fileno())
            await old.detach(2)  # the control: until then it acts
            assert old.attached == {1}
            if how == "release":
                old.release()
                new = SimulatedMachine("a", process=old.process)
            else:
                new = old.heir()
            await new.adopt()
            old.kill()
            old.release()
            await old.shutdown(0.01)
            await old.detach(1)
            for late in (old.pause(), old.resume(), old.attach(5, "stream", "x", near.fileno())):
                with pytest.raises(MachineError):
                    await late
            with pytest.raises(StateError):
                await old.prepare()
            with pytest.raises(MachineError):
                await said(old, "true")
            assert (old.running, old.attached, old.exited.done()) == (False, frozenset(), False)
            assert (new.running, new.attached, new.exited.done()) == (True, frozenset({1}), False)
            new.kill()
            assert not old.exited.done()

    go(main())


def test_a_command_of_the_dead_node_takes_nothing_from_the_next() -> None:
    """A `recv` that waited when the node died does not take what comes after."""

    async def main() -> None:
        near, far = socket.socketpair()
        with near, far:
            old = await started(near.fileno())
            waiting = asyncio.ensure_future(said(old, "recv", "one"))
            await asyncio.sleep(0.01)
            new = old.heir()
            await new.adopt()
            with pytest.raises(MachineError):
                await waiting
            far.send(b"x")
            assert await said(new, "recv", "one") == b"x"
            new.kill()

    go(main())


def test_a_machine_that_died_while_no_node_lived_is_found_dead() -> None:
    """The heir's `exited` tells how it ended, and adopting it fails."""

    async def main() -> None:
        near, far = socket.socketpair()
        with near, far:
            old = await started(near.fileno())
            old.release()
            old.die(3, "it crashed")
            assert not old.exited.done()
            new = old.heir()
            assert (await new.exited).status == 3
            with pytest.raises(MachineError):
                await new.adopt()
            assert new.attached == frozenset()
            await new.detach(1)

    go(main())


def test_an_adoption_can_fail() -> None:
    """With the fault it raises and the machine can be killed; without, the same one is adopted."""

    async def main() -> None:
        old = SimulatedMachine("a")
        await old.prepare()
        old.faults.fail.add("adopt")
        new = old.heir()
        with pytest.raises(MachineError):
            await new.adopt()
        new.faults.fail.clear()
        newer = new.heir()
        await newer.adopt()
        newer.kill()
        assert (await newer.exited).status == -9

    go(main())


def test_it_is_adopted_out_of_an_event_loop_that_was_closed() -> None:
    """A node's loop may have ended with the node, with a reader of the console still in it."""
    near, far = socket.socketpair()
    before = len(list(Path("/proc/self/fd").iterdir()))

    async def first() -> SimulatedMachine:
        machine = await started(near.fileno())
        machine.console.subscribe()
        with pytest.raises(MachineError):
            await machine.agent.run(["recv", "one"], output=lambda *_: None, timeout_s=0.01)
        return machine

    async def second(old: SimulatedMachine) -> None:
        machine = old.heir()
        await machine.adopt()
        await machine.agent.ready(5)
        far.send(b"x")
        assert await said(machine, "recv", "one") == b"x"
        await machine.pause()
        with pytest.raises(MachineError, match="did not answer"):
            await machine.agent.ready(0.01)
        machine.kill()

    with near, far:
        asyncio.run(second(asyncio.run(first())))
        assert len(list(Path("/proc/self/fd").iterdir())) == before
