"""The host's side of the agent against guests that behave, lag, flood and lie."""

import asyncio
import base64
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from skerry.errors import LimitReached, MachineError, StateError, WireError
from skerry.machine import agent
from skerry.machine.agent import Agent

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def ignore(_stream: str, _data: bytes) -> None:
    """Take output and forget it."""


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[Agent, Streams]]:
    """Give an agent's host side and the guest's end of its socket."""
    host, guest = socket.socketpair()
    one = Agent(host)
    streams = await asyncio.open_connection(sock=guest)
    try:
        yield one, streams
    finally:
        one.close()
        streams[1].close()


async def word(guest: Streams, verb: str) -> str:
    """Return the id of the host's next line of that kind."""
    while True:
        words = (await asyncio.wait_for(guest[0].readline(), 5)).split()
        if words and words[0] == verb.encode():
            return words[1].decode()


async def greet(one: Agent, guest: Streams) -> None:
    """Let both sides agree."""
    waiting = asyncio.create_task(one.ready(5))
    guest[1].write(f"hello 1 {await word(guest, 'hello')}\n".encode())
    await waiting


def run(scene: Callable[[Agent, Streams], Awaitable[None]]) -> None:
    """Play a scene between a greeted host and a guest."""

    async def play() -> None:
        async with pair() as (one, guest):
            await greet(one, guest)
            await scene(one, guest)

    asyncio.run(asyncio.wait_for(play(), 20))


def out(number: str, data: bytes) -> bytes:
    """Return one line of output."""
    return f"out {number} {base64.b64encode(data).decode()}\n".encode()


def test_a_command_gives_its_output_and_exit_code() -> None:
    """Two commands at a time get what is theirs, in order, by plain and async callbacks."""

    async def scene(one: Agent, guest: Streams) -> None:
        got: list[bytes] = []
        late: list[bytes] = []

        async def slowly(_stream: str, data: bytes) -> None:
            await asyncio.sleep(0)
            late.append(data)

        first = asyncio.create_task(one.run(["a"], output=lambda _s, data: got.append(data)))
        a = await word(guest, "run")
        second = asyncio.create_task(one.run(["b"], output=slowly))
        b = await word(guest, "run")
        guest[1].write(out(a, b"1") + out(b, b"x") + out(a, b"2"))
        guest[1].write(f"exit {b} 3\n".encode() + out(a, b"3") + f"exit {a} 0\n".encode())
        assert (await first, await second) == (0, 3)
        assert (got, late) == ([b"1", b"2", b"3"], [b"x"])

    run(scene)


def test_a_guest_that_boots_late_is_waited_for_and_old_lines_are_dropped() -> None:
    """The greeting waits in the socket; what the guest wrote before it does not count."""

    async def play() -> None:
        async with pair() as (one, guest):
            guest[1].write(b"torn line\nexit 00000001 0\n")
            with pytest.raises(MachineError, match="did not answer in"):
                await one.ready(0.05)
            with pytest.raises(StateError):
                await one.run(["x"], output=ignore)
            stale = await word(guest, "hello")
            waiting = asyncio.create_task(one.ready(5))
            fresh = await word(guest, "hello")
            guest[1].write(f"hello 1 {stale}\nhello 1 {fresh}\n".encode())
            await waiting

    asyncio.run(play())


def test_a_command_that_takes_too_long_is_killed_and_its_late_output_ignored() -> None:
    """After a time-out the guest is told, and the connection still serves the next command."""

    async def scene(one: Agent, guest: Streams) -> None:
        with pytest.raises(MachineError, match=r"did not end in 0\.05 s"):
            await one.run(["sleep"], output=ignore, timeout_s=0.05)
        old = await word(guest, "run")
        assert await word(guest, "kill") == old
        guest[1].write(out(old, b"late") + f"exit {old} 137\n".encode())
        task = asyncio.create_task(one.run(["next"], output=ignore))
        new = await word(guest, "run")
        guest[1].write(f"exit {new} 0\n".encode())
        assert await task == 0

    run(scene)


def test_a_cancelled_command_is_killed_and_a_finished_one_is_not() -> None:
    """Whoever stops waiting stops the command; a command that ended is left alone."""

    async def scene(one: Agent, guest: Streams) -> None:
        done = asyncio.create_task(one.run(["done"], output=ignore))
        guest[1].write(f"exit {await word(guest, 'run')} 0\n".encode())
        await done
        task = asyncio.create_task(one.run(["long"], output=ignore))
        number = await word(guest, "run")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await guest[0].readline() == f"kill {number}\n".encode()

    run(scene)


def test_a_machine_that_dies_fails_every_command_and_every_later_call() -> None:
    """End of file is an error by name, for who waits and for who comes after."""

    async def scene(one: Agent, guest: Streams) -> None:
        task = asyncio.create_task(one.run(["x"], output=ignore))
        await word(guest, "run")
        guest[1].close()
        with pytest.raises(MachineError, match="closed its agent's port"):
            await task
        with pytest.raises(MachineError):
            await one.run(["y"], output=ignore)
        with pytest.raises(MachineError):
            await one.ready(1)

    run(scene)


def test_garbage_closes_the_connection() -> None:
    """A malformed line is the end; the guest sees the socket closed."""

    async def scene(one: Agent, guest: Streams) -> None:
        task = asyncio.create_task(one.run(["x"], output=ignore))
        await word(guest, "run")
        guest[1].write(b"\xff\xfe\n")
        with pytest.raises(WireError):
            await task
        assert await guest[0].read() == b""

    run(scene)


async def pushed(guest: Streams, data: bytes) -> int:
    """Write until all is gone or the host has taken nothing for a while; return what went in."""
    raw = guest[1].get_extra_info("socket").dup()
    raw.setblocking(False)
    total = 0
    idle = 0
    with raw:
        while total < len(data) and idle < 20:
            try:
                total += raw.send(data[total : total + 65536])
                idle = 0
            except BlockingIOError:
                idle += 1
            await asyncio.sleep(0.001)
    return total


def test_a_flood_is_not_read_while_nobody_listens() -> None:
    """With no command under way the guest fills the socket and waits, and costs nothing more."""

    async def scene(_one: Agent, guest: Streams) -> None:
        assert await pushed(guest, out("00000000", b"z" * 3000) * 1000) < 2 << 20

    run(scene)


def test_a_slow_reader_slows_the_guest_and_stores_nothing() -> None:
    """While `output` is busy the host reads one more piece at most; when quick, all of it."""

    async def scene(one: Agent, guest: Streams) -> None:
        gate = asyncio.Event()
        taken = 0

        async def hold(_stream: str, data: bytes) -> None:
            nonlocal taken
            await gate.wait()
            taken += len(data)

        task = asyncio.create_task(one.run(["flood"], output=hold))
        number = await word(guest, "run")
        flood = out(number, b"z" * 3000) * 1000
        sent = await pushed(guest, flood)
        assert sent < 2 << 20
        assert taken == 0
        gate.set()
        assert await pushed(guest, flood[sent:]) == len(flood) - sent
        guest[1].write(f"exit {number} 0\n".encode())
        assert await task == 0
        assert taken == 3_000_000

    run(scene)


@pytest.mark.parametrize(("count", "allowed"), [(100, True), (400, False)])
def test_output_that_nobody_asked_for_is_bounded(count: int, allowed: bool) -> None:
    """Some left-over output of a killed command is dropped; a stream of it ends the connection."""

    async def scene(one: Agent, guest: Streams) -> None:
        task = asyncio.create_task(one.run(["x"], output=ignore))
        number = await word(guest, "run")
        stray = f"{(int(number) + 1) % 10**8:08}"
        guest[1].write(out(stray, b"z" * 3000) * count + f"exit {number} 0\n".encode())
        if allowed:
            assert await task == 0
        else:
            with pytest.raises(WireError, match="nobody runs"):
                await task

    run(scene)


def test_input_that_the_guest_does_not_take_waits_and_times_out() -> None:
    """A guest that reads nothing costs one line of memory and the caller's patience."""

    async def scene(one: Agent, guest: Streams) -> None:
        guest[1].transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport has it
        with pytest.raises(MachineError, match="did not end"):
            await one.run(["cat"], stdin=bytes(1 << 20), output=ignore, timeout_s=0.2)
        assert len(one._unsent) <= 5000

    run(scene)


def test_the_number_of_commands_at_a_time_is_limited() -> None:
    """One more than the limit is refused; when one has ended there is room again."""

    async def scene(one: Agent, guest: Streams) -> None:
        tasks = [
            asyncio.create_task(one.run(["x"], output=ignore)) for _ in range(agent.COMMANDS_MAX)
        ]
        numbers = [await word(guest, "run") for _ in tasks]
        with pytest.raises(LimitReached):
            await one.run(["x"], output=ignore)
        guest[1].write("".join(f"exit {n} 0\n" for n in numbers).encode())
        assert await asyncio.gather(*tasks) == [0] * agent.COMMANDS_MAX
        again = asyncio.create_task(one.run(["x"], output=ignore))
        guest[1].write(f"exit {await word(guest, 'run')} 0\n".encode())
        assert await again == 0

    run(scene)


def test_an_error_of_the_callers_output_ends_the_command_and_comes_through() -> None:
    """A terminal that is gone stops the command; the error is the caller's own."""

    async def scene(one: Agent, guest: Streams) -> None:
        def broken(_stream: str, _data: bytes) -> None:
            raise BrokenPipeError

        task = asyncio.create_task(one.run(["x"], output=broken, timeout_s=5))
        number = await word(guest, "run")
        guest[1].write(out(number, b"1") * 3)
        with pytest.raises(BrokenPipeError):
            await task
        assert await word(guest, "kill") == number

    run(scene)


def test_poweroff_is_one_line() -> None:
    """The request to switch off reaches the guest."""

    async def scene(one: Agent, guest: Streams) -> None:
        await one.poweroff()
        assert await word(guest, "poweroff") == "00000000"

    run(scene)
