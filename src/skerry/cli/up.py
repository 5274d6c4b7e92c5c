"""`up`, `restart` and `down`: the start and the end of a system, as its user sees them.

`up` checks everything first, builds missing images, then starts the supervisor, which is the
parent of the node and of every jail, and shows the events that the node writes to a pipe.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import click

from skerry.cli.change import change, find_node
from skerry.cli.common import Seconds, ask, channel_line, counted, emit, json_option
from skerry.cli.image import build_for
from skerry.cli.progress import progress_bar
from skerry.cli.system import checked, system_argument
from skerry.errors import SkerryError, StateError, WireError
from skerry.node import paths
from skerry.wire.control import Down, Ps, Restart

GONE_S = 20.0
"""Seconds that `down` waits for the supervisor to end after the domains have."""


class StartFailed(SkerryError):
    """The node did not come up; its own words are in the message."""


def _lock() -> int:
    """Take the lock that a supervisor holds while it lives. Raises `StateError`."""
    path = paths.make_private(paths.state_dir()) / paths.LOCK
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise StateError(
            "a system is starting or ending here, and does not answer yet",
            fix="try again in a moment; `skerry down` stops it",
        ) from None
    return handle


def _command(system: Path, *more: str) -> list[str]:
    """Return the supervisor's command, which starts the service's."""
    python = [sys.executable, "-I", "-m"]
    node = [*python, "skerry.control.service", str(system.absolute()), *more]
    return [*python, "skerry.supervisor.main", "--", *node]


def _spawn(system: Path, lock: int, foreground: bool) -> subprocess.Popen[bytes]:
    log = paths.make_private(paths.state_dir()) / "node.log"
    with log.open("wb") as errors:
        return subprocess.Popen(
            _command(system, *(["--foreground"] if foreground else [])),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            pass_fds=[lock],
            start_new_session=True,
        )


def _events(pipe: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in pipe:
        yield json.loads(line)


_SHOWN = {
    "starting": "starting {domain}",
    "running": "{domain} is running",
    "booted": "{domain} answers",
    "note": "{text}",
}


def _show(event: dict[str, Any], as_json: bool) -> None:
    """Print an event. (`print`, because click would write past the progress bar.)"""
    if as_json:
        print(json.dumps(event))
    elif event["event"] == "refused":
        print(f"refused: {event['what']}\n{event['text']}", file=sys.stderr)
    elif event["event"] == "bound":
        print(channel_line(event))
    elif event["event"] in _SHOWN:
        print(_SHOWN[event["event"]].format_map(event))
    sys.stdout.flush()


def _until_ready(pipe: IO[bytes], as_json: bool) -> int:
    """Show events until the system stands; return how many things were refused."""
    seen: Counter[str] = Counter()
    with progress_bar("starting") as advance:
        for event in _events(pipe):
            if event["event"] == "failed":
                error = StartFailed(event["message"], fix=event.get("fix", ""))
                error.exit_code = event.get("exit_code", 1)
                raise error
            _show(event, as_json)
            seen[event["event"]] += 1
            if advance is not None and seen["running"]:
                advance("booting", seen["booted"] / seen["running"])
            if event["event"] == "ready":
                return seen["refused"]
    log = paths.state_dir() / "node.log"
    last = log.read_bytes()[-2000:].decode(errors="replace").strip().splitlines()[-1:]
    raise StartFailed(f"the node ended: {' '.join(last) or 'no message'}", fix=f"see {log}")


@click.command()
@system_argument
@click.option("--detach", "-d", is_flag=True, help="Return when the system stands.")
@click.option("--evict", is_flag=True, help="Stop the domains that a new policy has no place for.")
@click.option("--service", is_flag=True, help="Become the service, as systemd starts it.")
@json_option
def up(system: Path, detach: bool, evict: bool, service: bool, as_json: bool) -> None:
    """Start SYSTEM, or make the system that runs here what SYSTEM says.

    In the foreground, Ctrl-C stops it. On a running system the plan is shown and carried out:
    what is the same in both goes on untouched. What the policy refuses is said and left out; then
    the exit code (of --detach) is 3.
    """
    node = None if service else find_node()
    if node is not None:
        sys.exit(change(node, system, evict=evict, dry_run=False, as_json=as_json))
    setup = checked(system)
    for warning in setup.warnings:
        click.echo(f"warning: {warning}", err=True)
    lock = _lock()
    build_for(setup.system)
    if service:
        _become(system, lock)
    _watch(_spawn(system, lock, foreground=not detach), lock, detach, as_json)


def _become(system: Path, lock: int) -> NoReturn:
    """Go on as the supervisor: whoever started this command watches it, and reads its log."""
    os.set_inheritable(lock, True)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    command = _command(system)
    os.execv(command[0], command)


def _watch(process: subprocess.Popen[bytes], lock: int, detach: bool, as_json: bool) -> None:
    """Show what the service tells until the system stands; in the foreground, until it ends."""
    os.close(lock)
    pipe = process.stdout
    if pipe is None:
        raise StartFailed("the supervisor has no pipe")
    try:
        refused = _until_ready(pipe, as_json)
        if not detach:
            click.echo("the system stands; Ctrl-C stops it", err=True)
            for event in _events(pipe):
                _show(event, as_json)
            process.wait()
            raise StartFailed("the service ended", fix=f"see {paths.state_dir() / 'node.log'}")
    except KeyboardInterrupt:
        _stop(process)
        return
    except BaseException:
        _end(process)
        raise
    if refused:
        sys.exit(3)


def _stop(process: subprocess.Popen[bytes]) -> None:
    click.echo("stopping", err=True)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(GONE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the supervisor and with it everything it forked, unless it has ended by itself."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GONE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@click.command()
@click.option(
    "--timeout",
    type=Seconds(),
    default=10.0,
    show_default=True,
    help="Seconds the guests have to end.",
)
@json_option
def down(timeout: float, as_json: bool) -> None:
    """Stop everything that `up` started; leave nothing behind."""
    result = ask(Down(timeout))
    until = time.monotonic() + GONE_S
    while time.monotonic() < until:
        try:
            os.close(_lock())
        except StateError:
            time.sleep(0.02)
            continue
        if as_json:
            emit([result])
        else:
            click.echo("stopped " + counted(len(result["stopped"]), "domain"))
        return
    raise StartFailed("the supervisor has not ended", fix="end it by its pid; `ps` lists it")


@click.command()
@json_option
def restart(as_json: bool) -> None:
    """Let the service start itself anew, after an upgrade; domains and channels go on."""
    from skerry.control.client import Client, NotRunning
    from skerry.control.operators import peer_pid

    client = Client(paths.control_socket())
    before = peer_pid(client.sock)
    client.send(Restart())
    client.result()
    until = time.monotonic() + GONE_S
    while time.monotonic() < until:
        with contextlib.suppress(NotRunning, WireError):
            client = Client(paths.control_socket())
            if peer_pid(client.sock) != before:
                client.send(Ps())
                client.result()
                if as_json:
                    emit([{"restarted": True}])
                else:
                    click.echo("the service was started anew")
                return
        time.sleep(0.02)
    raise StartFailed("the service has not come back", fix=f"see {paths.state_dir() / 'node.log'}")
