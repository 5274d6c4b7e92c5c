"""A QEMU that cannot even be tried is a machine that has ended, and leaves nothing."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from skerry.errors import MachineError
from skerry.machine.qemu.command import QemuSpec
from skerry.machine.qemu.launch import Process
from skerry.machine.qemu.machine import QemuMachine
from skerry.machine.qemu.sockets import SOCKETS
from skerry.monitor.domain import State
from tests.support.monitor import World, label

SPEC = QemuSpec(
    name="a", label="a", kernel=Path("/k"), bzimage=Path("/k"), initrd=Path("/i"), cmdline=""
)
NONE_LEFT = OSError(24, os.strerror(24))


class Launcher:
    """Starts nothing, for want of descriptors; counts how often it was to."""

    asked = 0

    def path(self, file: Path) -> str:
        """Return it."""
        return str(file)

    async def launch(
        self,
        name: str,
        argv: Sequence[str],
        fds: Mapping[int, int],
        *,
        keep: Mapping[str, int] | None = None,
    ) -> Process:
        """Fail."""
        self.asked += 1
        raise NONE_LEFT


def _open() -> int:
    """Count this process's descriptors."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("made", range(len(SOCKETS) + 1))
def test_a_host_without_descriptors_ends_the_start_and_nothing_else(
    made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever pair can't be made, or the launch: one clear error, and the domain has ended."""
    calls = itertools.count()
    pair = socket.socketpair

    def short() -> tuple[socket.socket, socket.socket]:
        if next(calls) == made:
            raise NONE_LEFT
        return pair()

    async def main() -> None:
        world, launcher = World(), Launcher()

        def make() -> QemuMachine:
            monkeypatch.setattr(socket, "socketpair", short)
            return QemuMachine(SPEC, launcher)

        before = _open()
        with pytest.raises(MachineError, match="Too many open files"):
            await world.monitor.start(world.operator, "a", label("a"), make)
        assert _open() == before
        assert launcher.asked == (made == len(SOCKETS)), "the control: with all pairs it launches"
        domain = world.monitor.domain("a")
        await domain.gone.wait()
        assert domain.state is State.ENDED
        assert world.monitor.running() == ()

    asyncio.run(asyncio.wait_for(main(), 10))
