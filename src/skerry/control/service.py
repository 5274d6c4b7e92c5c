"""The service process: one node with its control socket, from the self-test to the last record.

Started by the supervisor. Standard output is a pipe to whoever ran `up`: one JSON object a line,
until that reader goes. With `--foreground` the reader's going ends the service, so nothing runs
unwatched.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skerry.control.calls import Calls
from skerry.control.notify import notify
from skerry.control.operators import Operators
from skerry.control.server import ControlServer
from skerry.errors import Denied, SkerryError
from skerry.monitor.domain import State
from skerry.node import paths
from skerry.node.node import Node
from skerry.node.opening import Opened, open_node
from skerry.node.recover import Recovered
from skerry.supervisor.client import SupervisorClient
from skerry.supervisor.main import EXIT_RESTART
from skerry.supervisor.spawn import PR_SET_DUMPABLE, prctl

DOWN_S = 7.0
"""Seconds that the guests have when a signal stops the service; the supervisor waits 10."""

log = logging.getLogger("skerry")


MAX_UNREAD = 1 << 20
"""Bytes of events that wait for whoever ran `up`; beyond it only what decides its end is kept."""

VITAL = frozenset({"ready", "failed", "refused"})
"""The events without which `up` would not end, or end with another exit code."""


class Reporter:
    """Writes events to whoever ran `up`, while it reads them. Never blocks."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._unread = bytearray()

    def __call__(self, event: Mapping[str, object]) -> None:
        """Write one event, now or when there is room; see `MAX_UNREAD`. The trail has it anyway."""
        if len(self._unread) < MAX_UNREAD or event["event"] in VITAL:
            self._unread += json.dumps(event).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._unread:
                del self._unread[: os.write(self._fd, self._unread)]
        except BlockingIOError:
            loop.add_writer(self._fd, self._flush)
            return
        except OSError:  # the reader has gone
            self._unread.clear()
        loop.remove_writer(self._fd)


async def serve(system: Path, foreground: bool) -> int:
    """Run the service until it is told to stop; return its exit code."""
    report = Reporter(1)
    try:
        supervisor = SupervisorClient(_supervisor_socket())
        async with contextlib.AsyncExitStack() as exits:
            opened = await open_node(system, supervisor, report, exits)
            stop = _stop_signals(supervisor, foreground)
            return await _serve(opened, report, stop)
    except SkerryError as error:
        log.error("%s", error)
        report(
            {
                "event": "failed",
                "message": error.message,
                "fix": error.fix,
                "exit_code": error.exit_code,
            }
        )
        return 1


def _supervisor_socket() -> socket.socket:
    number = os.environ.pop("SKERRY_SUPERVISOR", "")
    if not number.isdigit():
        raise SkerryError("the service is started by `skerry up`, not by hand")
    return socket.socket(fileno=int(number))


async def _serve(opened: Opened, report: Reporter, stop: asyncio.Event) -> int:
    """Listen, bring the system up, wait until it is to end, and end it or leave it to the next."""
    node = opened.node
    calls = Calls(node, opened.prepare)
    path = paths.make_shared(paths.run_dir()) / paths.control_socket().name
    server = ControlServer(path, Operators(lambda: node.setup.operators), calls.handle)
    calls.reconciler.operators_changed = server.operators_changed
    await server.listen(os.getuid())
    rising = asyncio.ensure_future(_rise(opened, report))
    again = False
    try:
        again = await _stand(rising, stop, calls)
    finally:
        if not again:
            await node.down(DOWN_S)
            opened.trail.note("down", {"system": node.setup.system.name})
            opened.journal.over = True
        await server.close(keep=again)
    return EXIT_RESTART if again else 0


def _tell(found: Recovered, report: Reporter) -> None:
    """Say what a restart found."""
    kept = f"{len(found.domains)} domains and {len(found.channels)} channels go on"
    report({"event": "note", "text": f"the service was started again: {kept}"})
    for name, why in found.ended.items():
        report({"event": "note", "text": f"warning: domain {name} does not go on: {why}"})
    for number, why in found.cut.items():
        report({"event": "note", "text": f"warning: channel {number} was cut: {why}"})
    for what in found.undone:
        report({"event": "note", "text": f"warning: {what} was not finished and is undone"})


async def _stand(rising: asyncio.Future[None], stop: asyncio.Event, calls: Calls) -> bool:
    """Wait until it is to end; say whether it is to be started again."""
    ends = [asyncio.ensure_future(e.wait()) for e in (stop, calls.ended, calls.restart)]
    tasks: list[asyncio.Future[Any]] = [rising, *ends]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if rising.done():
            await rising
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        return not (stop.is_set() or calls.ended.is_set())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _rise(opened: Opened, report: Reporter) -> None:
    """Adopt what an earlier service left, and bring the system up, or the rest of it."""
    await opened.judge()
    if opened.recovery is not None:
        await opened.recovery.adopt()
        _tell(opened.recovery.found, report)
    if opened.journal.standing.rising:
        await opened.node.up(report)
        with contextlib.suppress(Denied):  # the next service then looks again
            await opened.journal.write("risen", {})
    await _greet(opened.node, report)


async def _greet(node: Node, report: Reporter) -> None:
    """Say of each running domain that it answers, then that the system stands."""

    async def greet(name: str) -> None:
        try:
            await node.answered(name, BOOT_S)
            report({"event": "booted", "domain": name})
        except SkerryError as error:
            report({"event": "note", "text": f"warning: {error}"})

    running = [d.name for d in node.monitor.domains.values() if d.state is State.RUNNING]
    running = [name for name in running if node.has_agent(name)]
    await asyncio.gather(*(greet(name) for name in running))
    report({"event": "ready"})
    notify("READY=1")


BOOT_S = 120.0
"""Seconds that `up` waits for a guest's agent before it says so and goes on."""


def _stop_signals(supervisor: SupervisorClient, foreground: bool) -> asyncio.Event:
    """Return an event that is set when the service must end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    supervisor.gone.add_done_callback(lambda _: stop.set())
    if foreground:
        # Only an error can become readable on the writing end: the reader has gone.
        def gone() -> None:
            loop.remove_reader(1)
            stop.set()

        loop.add_reader(1, gone)
    return stop


def main() -> None:
    """Run the service: `python -m skerry.control.service SYSTEM [--foreground]`."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s"
    )
    # The library calls every end of a machine a failure of its socket.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    # This process holds both ends of every channel: nobody may take them from it (law 1).
    prctl(PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(serve(Path(sys.argv[1]), "--foreground" in sys.argv[2:])))


if __name__ == "__main__":
    main()
