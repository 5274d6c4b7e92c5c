"""A use with several helpers: their names, and that a restart takes up all of them or none."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skerry.device.helper import Helper, Together
from skerry.device.uplink.use import HELPERS, Uplink, Uplinks, host_resolvers
from skerry.node.recover import end_unknown
from skerry.node.relays import relay_name, take_relay
from skerry.node.standing import ChannelEntry, Standing
from skerry.supervisor.client import Inherited
from skerry.system.model import ResourceSpec


class Toy:
    """A process that ends when it is killed."""

    def __init__(self) -> None:
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        """End."""
        if not self.exited.done():
            self.exited.set_result(-9)


class Pairs:
    """Pairs without a promise."""

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Make two ends."""
        return socket.socketpair()

    def close(self) -> None:
        """Do nothing."""


def uplinks() -> Uplinks:
    """A maker that starts nothing."""
    spec = ResourceSpec("web", "uplink", "x", allow=("a.test:1",))
    unused: Any = None
    return Uplinks(spec, unused, Pairs(), lambda module: [module], lambda: Path("/nowhere"))


def adopted(processes: int) -> tuple[Uplink, socket.socket, int]:
    """Return a use with so many helpers left, the machine's end and their end of the reports."""
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe2(os.O_DIRECT)
    toys = [Toy() for _ in range(processes)]
    helper = Helper(toys[0] if processes == 1 else Together(toys), 9) if toys else None
    twins = {"source": ours.detach(), "sink": reading}
    return uplinks().adopt(twins, helper, "d/agent/1"), theirs, writing  # type: ignore[arg-type]


@pytest.mark.parametrize("left", range(HELPERS + 1))
def test_a_use_is_whole_with_all_of_its_helpers_alone(left: int) -> None:
    """One that is missing leaves nothing to go on with; what is left is ended by the cut."""

    async def run() -> None:
        use, machine, writing = adopted(left)
        assert use.is_whole() is (left == HELPERS)
        os.close(writing)
        processes = [process for process, _ in use._helpers]
        use.cut()
        await asyncio.sleep(0)
        assert all(process.exited.done() for process in processes)
        assert machine.recv(1) == b""
        assert use.cut() == 0, "it is idempotent"
        machine.close()

    asyncio.run(run())


def test_one_that_ends_is_the_end_of_all() -> None:
    """Its status is that of them together; to kill them is to kill each."""

    async def run() -> None:
        toys = [Toy(), Toy(), Toy()]
        together = Together(toys)
        toys[1].exited.set_result(7)
        assert await asyncio.wait_for(together.exited, 1) == 7
        together.kill()
        assert [toy.exited.result() for toy in toys] == [-9, 7, -9]

    asyncio.run(run())


def test_a_cut_takes_what_waits_for_the_machine() -> None:
    """Frames that were on their way do not arrive after it."""

    async def run() -> None:
        use = uplinks().mint(False, source="agent")
        machine = socket.socket(fileno=os.dup(use.ends["source"]))
        use._far.send(b"x" * 1000)
        assert use.cut() == 1000
        assert machine.recv(2000) == b""
        machine.close()

    asyncio.run(run())


@pytest.fixture
def names() -> Iterator[list[str]]:
    """The names of two channels' processes, of a stranger, and of a channel that begins alike."""
    yield ["r/7", "r/7.2", "r/7.3", "r/70", "r/8", "n/other"]


def test_what_belongs_to_a_channel_is_taken_by_its_number(names: list[str]) -> None:
    """All parts of it and nothing of another."""

    async def run() -> None:
        processes: dict[str, Any] = {name: Toy() for name in names}
        parts = [processes[name] for name in names[:3]]
        taken = take_relay(processes, 7)
        assert isinstance(taken, Together)
        assert list(taken.processes) == parts
        alone = processes["r/8"]
        assert take_relay(processes, 8) is alone
        assert take_relay(processes, 9) is None
        assert set(processes) == {"r/70", "n/other"}
        assert [relay_name(7), relay_name(7, 3)] == ["r/7", "r/7.3"]

    asyncio.run(run())


def test_helpers_of_what_stands_are_spared_and_others_ended(names: list[str]) -> None:
    """By the journal's channels."""

    async def run() -> None:
        processes: dict[str, Any] = {name: Toy() for name in names}
        entry = ChannelEntry(7, "uplink", "d/agent/1", "resource:web", "web", False, 1, 1, 0.0)
        await end_unknown(Inherited(processes, {}), Standing(channels={7: entry}))
        spared = {name for name, process in processes.items() if not process.exited.done()}
        assert spared == {"r/7", "r/7.2", "r/7.3"}

    asyncio.run(run())


def test_the_hosts_name_servers_are_those_of_ipv4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first three; what else stands there is passed over."""
    conf = tmp_path / "resolv.conf"
    text = "# x\nsearch a.test\nnameserver 10.0.0.1\nnameserver ::1\nnameserver\noptions y\n"
    conf.write_text(text + "".join(f"nameserver 10.0.1.{n}\n" for n in range(5)))
    monkeypatch.setattr("skerry.device.uplink.use._RESOLV_CONF", conf)
    assert host_resolvers() == ["10.0.0.1:53", "10.0.1.0:53", "10.0.1.1:53"]
    conf.unlink()
    assert host_resolvers() == []
