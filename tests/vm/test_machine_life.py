"""A real machine's life: boot, console, pause, and every way to end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import skerry
from skerry.errors import MachineError, StateError
from skerry.machine.console import RING
from skerry.machine.qemu.accel import guest_runs
from skerry.machine.qemu.machine import QemuMachine
from tests.support.machines import Host, descendants, sh

Pair = tuple[QemuMachine, QemuMachine]


def test_the_guest_knows_its_name_and_label(host: Host, pair: Pair) -> None:
    """A guest reads its own label and name, and can't be told another's."""
    got = host.run(sh(pair[0], "cat /run/skerry/label; echo; cat /run/skerry/name"))
    assert got == (0, "label-of-alpha\nalpha")


def test_the_console_is_two_way(host: Host, pair: Pair) -> None:
    """What is typed reaches the guest's shell, and its answer the subscriber."""

    async def run() -> None:
        reader = pair[0].console.subscribe()
        pair[0].console.write(b"\necho he''llo\n")
        seen = b""
        async with asyncio.timeout(10):
            while b"hello" not in seen:
                seen += (await reader.read())[1]
        reader.close()
        assert b"hello" in pair[0].console.untrusted_text

    host.run(run())


def test_a_flooded_console_costs_bounded_memory(host: Host, pair: Pair) -> None:
    """While a guest floods its console, the ring keeps its size and the loop stays free."""

    async def run() -> None:
        alpha, beta = pair
        reader = alpha.console.subscribe()
        flood = asyncio.ensure_future(sh(alpha, "timeout 2 yes >/dev/ttyS0"))
        worst, processor = 0.0, time.process_time()
        for _ in range(100):
            start = time.monotonic()
            await asyncio.sleep(0.01)
            worst = max(worst, time.monotonic() - start)
        assert time.process_time() - processor < 0.5
        assert worst < 0.5
        assert (await sh(beta, "echo alive"))[1] == "alive\n"
        await flood
        assert len(alpha.console.untrusted_text) <= RING
        assert len((await reader.read())[1]) <= RING
        reader.close()

    host.run(run())


def test_a_paused_guest_does_nothing(host: Host, pair: Pair) -> None:
    """Paused, a guest answers nobody; resumed it goes on where it was."""

    async def run() -> None:
        await pair[1].pause()
        answer = asyncio.ensure_future(sh(pair[1], "echo on"))
        done, _ = await asyncio.wait({answer}, timeout=0.5)
        assert not done
        await pair[1].resume()
        assert await asyncio.wait_for(answer, 10) == (0, "on\n")

    host.run(run())


def test_shutdown_lets_the_guest_end_itself(host: Host) -> None:
    """A clean stop ends the guest by its own power-off; a kill after it is no error."""

    async def run() -> None:
        machine = await host.boot("clean")
        await machine.shutdown(20)
        assert (await machine.exited).reason == "the guest switched itself off"
        machine.kill()
        await machine.detach(1)
        with pytest.raises(StateError):
            await machine.prepare()
        with pytest.raises(MachineError):
            await machine.resume()

    host.run(run())


def test_shutdown_kills_by_its_deadline(host: Host) -> None:
    """A guest that does not end by itself is killed when the deadline has passed."""

    async def run() -> None:
        machine = await host.make("deaf")
        async with asyncio.timeout(5):
            await machine.shutdown(0.2)
        assert (await machine.exited).reason == "killed"

    host.run(run())


def test_a_panic_is_named(host: Host) -> None:
    """A guest whose kernel panics ends its machine, and the reason says so."""

    async def run() -> None:
        machine = await host.boot("panic")
        crash = asyncio.ensure_future(sh(machine, "echo c >/proc/sysrq-trigger"))
        async with asyncio.timeout(20):
            end = await asyncio.shield(machine.exited)
        assert end.reason == "the guest's kernel panicked"
        with pytest.raises(MachineError):
            await crash

    host.run(run())


@pytest.mark.parametrize("jailed", [True, False], ids=["jailed", "bare"])
def test_a_qemu_killed_by_somebody_else(host: Host, jailed: bool) -> None:
    """A QEMU that somebody kills resolves `exited` with the signal's name."""

    async def run() -> None:
        machine = await host.make("victim", jailed=jailed)
        os.kill(descendants(machine.pid)[-1], signal.SIGKILL)
        async with asyncio.timeout(5):
            end = await asyncio.shield(machine.exited)
        assert end.reason.startswith("QEMU was ended by SIGKILL")

    host.run(run())


def test_kill_before_the_start(host: Host) -> None:
    """A machine killed before it was prepared has ended, and can't be prepared."""

    async def run() -> None:
        spec = host.spec("unborn")
        machine = QemuMachine(spec, host.launcher(spec))
        machine.kill()
        assert machine.exited.done()
        with pytest.raises(StateError):
            await machine.prepare()

    host.run(run())


def test_a_qemu_that_does_not_start_says_why(host: Host) -> None:
    """When QEMU refuses its arguments, its own words are in the error, and nothing is left."""

    async def run() -> None:
        spec = host.spec("odd", cpus=100_000)
        machine = QemuMachine(spec, host.launcher(spec))
        with pytest.raises(MachineError, match="CPUs"):
            await machine.prepare()
        assert machine.exited.done()

    host.run(run())


def test_the_probe_of_an_accelerator_boots_a_guest(host: Host) -> None:
    """The probe says yes where a guest runs (TCG), no where none can."""

    async def run() -> None:
        spec = host.spec("probe", board="pc")
        launcher = host.launcher(spec, jailed=False)
        assert await guest_runs("tcg", launcher, host.image.kernel, 60)
        assert not await guest_runs("tcg", launcher, host.image.initrd, 2)

    host.run(run())


def test_no_qemu_outlives_a_killed_runner() -> None:
    """When the process that runs the machines is killed, every QEMU is gone a moment later."""
    code = """
import sys
from tests.support.machines import Host, descendants
host = Host()
machine = host.run(host.make("orphan"))
print(*descendants(machine.pid), flush=True)
sys.stdin.read()
"""
    source = Path(skerry.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{source}:{source.parent}", **os.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as runner:
        assert runner.stdout is not None
        pids = [int(word) for word in runner.stdout.readline().split()]
        assert len(pids) > 1
        runner.kill()
        deadline = time.monotonic() + 5
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.02)
