"""Stream channels between real machines, seen from inside the guests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.channel.stream import StreamBridges, queued
from skerry.errors import LimitReached, MachineError
from skerry.machine.qemu.command import MAX_PORTS, OWN_PORTS, Board
from skerry.machine.qemu.machine import QemuMachine
from skerry.machine.qemu.ports import DETACH_S
from tests.support.machines import Host, connect, descendants, sh

Pair = tuple[QemuMachine, QemuMachine]
PORTS = "/dev/virtio-ports"


@contextlib.contextmanager
def frozen(machine: QemuMachine) -> Iterator[None]:
    """Freeze a machine's processes, QEMU among them."""
    processes = descendants(machine.pid)
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_a_stream_carries_bytes_both_ways(host: Host, pair: Pair, transport: str) -> None:
    """What one guest writes into its port comes out of the other's, both ways, unchanged."""
    bridges = StreamBridges("tcp" if transport == "tcp" else "auto")

    async def run() -> None:
        alpha, beta = pair
        bridge = await connect(bridges, 1, "both", alpha, beta)
        for source, sink in ((alpha, beta), (beta, alpha)):
            make = "head -c 2000000 /dev/urandom >/tmp/data; md5sum </tmp/data"
            _, digest = await sh(source, make)
            read = asyncio.ensure_future(sh(sink, f"head -c 2000000 {PORTS}/both | md5sum"))
            assert await sh(source, f"cat /tmp/data >{PORTS}/both; rm /tmp/data") == (0, "")
            assert await read == (0, digest)
        await alpha.detach(1)
        await beta.detach(1)
        assert bridge.cut() == 0

    try:
        host.run(run())
    finally:
        bridges.close()


def test_a_port_comes_and_goes(host: Host, pair: Pair) -> None:
    """A port attached to a running guest appears there; detached it is gone, twice is no error."""

    async def run() -> None:
        alpha, beta = pair
        assert (await sh(beta, f"ls {PORTS}"))[1].split() == [*OWN_PORTS]
        bridge = await connect(host.bridges, 2, "hot", alpha, beta)
        assert "hot" in (await sh(beta, f"ls {PORTS}"))[1].split()
        for machine in pair:
            await machine.detach(2)
            await machine.detach(2)
        assert (await sh(beta, f"ls {PORTS}"))[1].split() == [*OWN_PORTS]
        bridge.cut()

    host.run(run())


def test_after_the_cut_the_reader_sees_the_end(host: Host, pair: Pair) -> None:
    """A guest that reads while another writes gets the end at the cut, and no byte after it."""

    async def run() -> None:
        alpha, beta = pair
        bridge = await connect(host.bridges, 3, "cut", alpha, beta)
        read = asyncio.ensure_future(sh(beta, f"cat {PORTS}/cut | wc -c"))
        writer = asyncio.ensure_future(sh(alpha, f"timeout 3 cat /dev/zero >{PORTS}/cut"))
        await asyncio.sleep(1)
        bridge.cut()
        code, count = await asyncio.wait_for(read, 5)
        assert code == 0
        assert int(count) > 0
        assert (await sh(beta, f"timeout 1 cat {PORTS}/cut | wc -c"))[1].split()[0] == "0"
        await writer
        for machine in pair:
            await machine.detach(3)

    host.run(run())


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "control"])
def test_a_frozen_sink_gets_nothing_after_the_cut(host: Host, pair: Pair, cut: bool) -> None:
    """What waits for a frozen QEMU at the cut does not reach its guest after the thaw."""

    async def run() -> None:
        alpha, beta = pair
        bridge = host.bridges.mint()
        await alpha.attach(4, "stream", "ice", bridge.ends["source"])
        await beta.attach(4, "stream", "ice", bridge.ends["sink"])
        read = asyncio.ensure_future(sh(beta, f"timeout 3 cat {PORTS}/ice | wc -c"))
        await asyncio.sleep(0.5)
        with frozen(beta):
            assert (await sh(alpha, f"echo secret >{PORTS}/ice"))[0] == 0
            for _ in range(1000):
                if queued(bridge.ends["sink"]) == 7:
                    break
                await asyncio.sleep(0.01)
            bridge.handed_over()
            if cut:
                assert bridge.cut() == 7
        # The shell may say `Terminated` before it or after it.
        assert ("0" if cut else "7") in (await read)[1].split()
        for machine in pair:
            await machine.detach(4)
        bridge.cut()

    host.run(run())


def test_detach_from_a_frozen_machine_ends_by_its_deadline(host: Host, pair: Pair) -> None:
    """A frozen QEMU does not hold up the caller; thawed, it gives the port up when asked again."""

    async def run() -> None:
        beta = pair[1]
        bridge = host.bridges.mint()
        await beta.attach(5, "stream", "slow", bridge.ends["sink"])
        bridge.cut()
        with frozen(beta), pytest.raises(MachineError, match="give up"):
            async with asyncio.timeout(DETACH_S + 2):
                await beta.detach(5)
        await beta.detach(5)
        assert (await sh(beta, f"ls {PORTS}"))[1].split() == [*OWN_PORTS]

    host.run(run())


@pytest.mark.parametrize("board", ["microvm", "q35", "pc"])
def test_a_port_attached_before_the_start_is_there_at_boot(host: Host, board: Board) -> None:
    """On every board a channel attached before `resume` is a port of the booted guest."""

    async def run() -> None:
        bridge = host.bridges.mint()
        machine = await host.make(f"on-{board}", board=board)
        await machine.attach(1, "stream", "early", bridge.ends["source"])
        await machine.resume()
        await machine.agent.ready(60)
        assert (await sh(machine, f"test -c {PORTS}/early")) == (0, "")
        await machine.detach(1)
        assert (await sh(machine, f"test -e {PORTS}/early"))[0] == 1
        machine.kill()
        bridge.cut()

    host.run(run())


def test_the_limit_of_ports_is_real_and_named(host: Host) -> None:
    """QEMU takes `MAX_PORTS` channels, and one more is refused by name before it is tried."""

    async def run() -> None:
        machine = await host.make("full")
        bridge = host.bridges.mint()
        for channel in range(MAX_PORTS):
            await machine.attach(channel, "stream", f"port{channel}", bridge.ends["source"])
        with pytest.raises(LimitReached, match="MAX_PORTS"):
            await machine.attach(99, "stream", "more", bridge.ends["source"])
        await machine.detach(0)
        await machine.attach(99, "stream", "more", bridge.ends["source"])
        bridge.cut()
        machine.kill()

    host.run(run())


def test_a_refused_attach_leaves_nothing(host: Host, pair: Pair) -> None:
    """A second port of one name is refused in QEMU's words; the first one still works."""

    async def run() -> None:
        alpha = pair[0]
        bridge = host.bridges.mint()
        await alpha.attach(6, "stream", "same", bridge.ends["source"])
        for name in ("same", *OWN_PORTS):
            with pytest.raises(MachineError):
                await alpha.attach(7, "stream", name, bridge.ends["source"])
        await alpha.attach(7, "stream", "other", bridge.ends["source"])
        bridge.cut()
        await alpha.detach(6)
        await alpha.detach(7)

    host.run(run())


def test_a_flooded_port_costs_the_flooder_only(host: Host, pair: Pair) -> None:
    """A guest that floods a port nobody reads is held; its QEMU grows by its own RAM at most."""

    async def run() -> None:
        alpha, beta = pair
        bridge = await connect(host.bridges, 8, "flood", alpha, beta)
        before = sum(map(resident, descendants(alpha.pid)))
        flood = asyncio.ensure_future(sh(alpha, f"timeout 3 cat /dev/zero >{PORTS}/flood"))
        await asyncio.sleep(1.5)
        async with asyncio.timeout(1):
            assert (await sh(beta, "echo alive"))[1] == "alive\n"
        assert sum(map(resident, descendants(alpha.pid))) - before < 64 << 20
        bridge.cut()
        await flood
        for machine in pair:
            await machine.detach(8)

    host.run(run())


def resident(pid: int) -> int:
    """The bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
