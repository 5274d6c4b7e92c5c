"""Programs in QEMU's jail that stand in for a QEMU in an attacker's hands."""

from __future__ import annotations

import asyncio
import os
import socket
import sys

from skerry.jail.confinement import Confinement
from skerry.jail.identity import IdentityPool, own
from skerry.jail.root import build
from skerry.machine.jailed import JailedLauncher
from skerry.machine.qemu.root import DESCRIPTORS
from skerry.supervisor.client import SupervisorClient
from tests.support.machines import cache

PYTHON = os.path.realpath(sys.executable)
ACCEPTED = frozenset({"cgroup", "uid"})


def stand_in_launcher(
    client: SupervisorClient,
    pool: IdentityPool | None,
    off: frozenset[str] = frozenset(),
    descriptors: bool = False,
) -> JailedLauncher:
    """Return what starts Python in QEMU's jail.

    With `descriptors` it finds its own by name, as a QEMU with slots does.
    """
    root = build(
        cache() / "roots",
        "stand-in",
        (),
        (),
        ("/usr/", f"{DESCRIPTORS}/"),
        (("lib", "usr/lib"), ("lib64", "usr/lib64"), ("bin", "usr/bin")),
    )
    confinement = Confinement(
        root=str(root),
        identity=pool.take("stand-in") if pool else own(),
        binds=(("/usr", "/usr"), *(((DESCRIPTORS, DESCRIPTORS),) if descriptors else ())),
        accepted=ACCEPTED | off,
        without=off,
    )
    return JailedLauncher(client, confinement)


class StandIn:
    """One program in a jail, with what it printed."""

    def __init__(
        self,
        client: SupervisorClient,
        pool: IdentityPool | None,
        off: frozenset[str],
        descriptors: bool = False,
    ):
        self._launcher = stand_in_launcher(client, pool, off, descriptors)
        self._out, self._far = socket.socketpair()
        self._out.setblocking(False)

    async def start(self, program: str, end: int) -> None:
        """Run a program with the end as its descriptor 3 and its output to us."""
        with self._far as far:
            fds = {0: end, 1: far.fileno(), 2: far.fileno(), 3: end}
            await self._launcher.launch("stand-in", [PYTHON, "-I", "-S", "-c", program], fds)
        self.lines, self._writer = await asyncio.open_connection(sock=self._out)

    async def line(self) -> str:
        """The next line that it prints."""
        return (await asyncio.wait_for(self.lines.readline(), 15)).decode().strip()

    async def close(self) -> None:
        """Forget it; its supervisor ends it."""
        self._writer.close()
        await self._writer.wait_closed()
