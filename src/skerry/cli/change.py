"""`up` and `plan` on a system that runs: the files are read here, and the node does the rest.

The rule: files are read with the rights of who types; the node reads none for anybody, and asks for
each step whether this operator may.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from skerry.cli.common import channel_line, counted
from skerry.cli.policy_live import show_loaded
from skerry.cli.system import step_lines
from skerry.control.client import Client, NotRunning
from skerry.node.paths import control_socket
from skerry.wire.control import Output, Reconcile
from skerry.wire.escape import escape


def find_node() -> Client | None:
    """Connect to the node that runs here, if one does. Raises `NoService` if it is not open."""
    try:
        return Client(control_socket())
    except NotRunning:
        return None


def change(node: Client, system: Path, *, evict: bool, dry_run: bool, as_json: bool) -> int:
    """Have the node plan a change to what a file says, and make it; return the exit code.

    Raises `InputError` for what can't be read, `Remote` for what the node refused as a whole.
    """
    from skerry.control.operators import peer_uid
    from skerry.node.setup import read_files
    from skerry.wire.system_files import encode_files

    found, files = read_files(system)
    if not dry_run and peer_uid(node.sock) == os.getuid():
        from skerry.cli.image import build_for

        build_for(found)  # another user's node has images of its own
    message = encode_files(files)
    with node.sock:
        node.send(Reconcile(evict, dry_run))
        node.upload(message)
        untrusted = node.result(_Lines(as_json))
    result: Mapping[str, Any] = untrusted if isinstance(untrusted, dict) else {}
    if as_json:
        click.echo(json.dumps({"event": "done", **result}))
    elif not result["changed"] and not result.get("refused"):
        click.echo("nothing to change" + (f": {_kept(result)}" if not dry_run else ""))
    elif not dry_run:
        for line in result["left"]:
            click.echo(f"left: {escape(line)}", err=True)
        click.echo(f"done: {_kept(result)}")
    return _exit_code(result)


def _kept(result: Mapping[str, Any]) -> str:
    domains, channels = counted(result["domains"], "domain"), counted(result["channels"], "channel")
    return f"{domains} and {channels} went on untouched"


def _exit_code(result: Mapping[str, Any]) -> int:
    codes = {refused["exit_code"] for refused in result.get("refused", ())}
    return 0 if not codes else 3 if codes == {3} else 1


_SHOWN = {
    "cut": "channel {channel} is cut",
    "stopped": "{domain} has ended",
    "relabelled": "{domain} is now {label}",
    "starting": "starting {domain}",
    "running": "{domain} is running",
    "note": "{text}",
}


class _Lines:
    """Shows what the node tells of its steps: JSON objects, one a line, in pieces."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._rest = b""

    def __call__(self, untrusted: Output) -> None:
        """Take one piece."""
        *lines, self._rest = (self._rest + untrusted.data).split(b"\n")
        for line in lines:
            if self._as_json:
                click.echo(line.decode())
            else:
                _show(json.loads(line))


def _show(event: Mapping[str, Any]) -> None:
    kind = event["event"]
    if kind == "plan":
        click.echo(step_lines(event))
    elif kind == "refused":
        click.echo(f"refused: {escape(event['what'])}\n{event['text']}", err=True)
    elif kind == "bound":
        click.echo(channel_line(event))
    elif kind == "loaded":
        show_loaded(event)
    elif kind in _SHOWN:
        click.echo(escape(_SHOWN[kind].format_map(event)))
