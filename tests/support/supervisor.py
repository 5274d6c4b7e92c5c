"""A real supervisor process, for tests that need jails or their exit statuses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import skerry
from skerry.supervisor import wire
from skerry.supervisor.client import SupervisorClient

SOURCE = str(Path(skerry.__file__).parent.parent)


def start_supervisor(peer: int, descriptors: int = 0) -> subprocess.Popen[bytes]:
    """Start a supervisor that serves the socket `peer`; it ends when the other end is closed.

    It has `descriptors` at most where that is not 0.
    """
    limit = f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, ({descriptors},) * 2); "
    run = limit if descriptors else ""
    run += f"import sys; sys.path.insert(0, {SOURCE!r}); import skerry.supervisor.main as m; "
    run += f"sys.exit(m.main(['--peer', '{peer}']))"
    return subprocess.Popen([sys.executable, "-I", "-c", run], pass_fds=[peer])


@contextlib.asynccontextmanager
async def running_supervisor(descriptors: int = 0) -> AsyncIterator[SupervisorClient]:
    """Fork a supervisor and give its client; everything it started is dead at the end."""
    ours, theirs = wire.pair()
    process = start_supervisor(theirs.fileno(), descriptors)
    theirs.close()
    client = SupervisorClient(ours)
    # Tests that freeze or kill the supervisor find it here.
    client.supervisor_pid = process.pid  # type: ignore[attr-defined] # only in tests
    try:
        yield client
    finally:
        client.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, 18)  # SIGCONT: a test may have frozen it
        await asyncio.to_thread(process.wait, 10)
