"""The audit writer's process without its jail: for the tests of the trail, and for the bench."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable

from skerry.audit import service

CODE = """
import os, sys
os.dup2(int(sys.argv[1]), {number})
from skerry.audit import service
service.main()
"""


class Writers:
    """Starts writers, one after the other; give `start` to `AuditClient.open`."""

    def __init__(self, code: str = CODE) -> None:
        self._code = code.format(number=service.SOCKET)
        self.started: list[Writer] = []
        self.fails = False

    async def start(self, fd: int) -> Writer:
        """Start one with this descriptor."""
        if self.fails:
            raise OSError("no process")
        argv = [sys.executable, "-c", self._code, str(fd)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = await asyncio.to_thread(
            lambda: subprocess.Popen(argv, pass_fds=[fd], env=environment)
        )
        self.started.append(Writer(process))
        return self.started[-1]

    @property
    def last(self) -> Writer:
        """The writer that was started last."""
        return self.started[-1]

    def reap(self) -> list[int]:
        """Wait for all of them and return their exit codes."""
        return [writer.process.wait(10) for writer in self.started]


class Writer:
    """One process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()

    def freeze(self) -> None:
        """Stop it until `thaw`."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)


async def until(done: Callable[[], object], seconds: float = 15.0) -> None:
    """Wait until `done()` is true."""
    async with asyncio.timeout(seconds):
        while not done():  # noqa: ASYNC110  -- whatever a test looks at, it tells nobody
            await asyncio.sleep(0.005)
