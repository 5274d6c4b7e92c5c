"""`exec` and `console`: what an operator does inside a guest.

Both are flows between operator and domain, so the node asks the policy as for a two-way stream.
Output comes from the guest and is untrusted: on a terminal, everything that could act on it is
replaced, as Qubes does, unless `--raw` is given.
"""

from __future__ import annotations

import os
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

from skerry.cli.common import Seconds, domain_argument
from skerry.control.client import Client
from skerry.errors import SkerryError, WireError
from skerry.node.paths import control_socket
from skerry.wire.control import MAX_ARGUMENTS, MAX_TEXT, Console, Exec, Input, Output

_KEPT = frozenset(b"\n\r\t\b\a") | frozenset(range(0x20, 0x7F))
_FILTER = bytes(byte if byte in _KEPT else ord("_") for byte in range(256))

ESCAPE = 0x1D
"""Ctrl-]: leaves the console, as in virsh and telnet."""

raw_option = click.option("--raw", is_flag=True, help="Do not filter what the guest prints.")


def _write(fd: int, data: bytes, raw: bool) -> None:
    if not raw and os.isatty(fd):
        data = data.translate(_FILTER)
    while data:
        data = data[os.write(fd, data) :]


@click.command("exec", context_settings={"allow_interspersed_args": False})
@domain_argument()
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-i", "--stdin", is_flag=True, help="Give the command your standard input.")
@click.option(
    "--wait", type=Seconds(), default=60.0, show_default=True, help="Seconds to wait for the agent."
)
@raw_option
def exec_(domain: str, command: tuple[str, ...], stdin: bool, wait: float, raw: bool) -> None:
    """Run COMMAND in DOMAIN; its output and exit code become yours.

    Write `skerry exec DOMAIN -- COMMAND…`.
    """
    words = _words(command)
    client = Client(control_socket())
    client.send(Exec(domain, words, stdin, wait))
    if stdin:
        threading.Thread(target=_feed, args=(client,), daemon=True).start()

    def show(output: Output) -> None:
        _write(2 if output.stream == "err" else 1, output.data, raw)

    result = client.result(show)
    sys.exit(int(result["exit_code"]) if isinstance(result, dict) else 1)


def _words(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command without the `--` before it, if a call can carry it."""
    words = command[1:] if command[0] == "--" else command
    if not words:
        raise click.UsageError("there is no command after `--`")
    if len(words) > MAX_ARGUMENTS or any(len(word) > MAX_TEXT for word in words):
        raise click.UsageError(
            f"a command has at most {MAX_ARGUMENTS} words of {MAX_TEXT} characters; "
            "send more with --stdin"
        )
    return words


def _feed(client: Client) -> None:
    with suppress(SkerryError):
        while piece := os.read(0, 32 * 1024):
            client.send(Input(piece))
        client.send(Input(b""))


@contextmanager
def _terminal() -> Iterator[None]:
    """Give every key to the guest while the console is open."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@click.command()
@domain_argument()
@click.option("--read-only", is_flag=True, help="Only read: what you type is not sent.")
@raw_option
def console(domain: str, read_only: bool, raw: bool) -> None:
    """Open DOMAIN's serial console; leave it with Ctrl-]."""
    client = Client(control_socket())
    client.send(Console(domain, read_only))
    if os.isatty(0):
        click.echo(f"Connected to {domain}; leave with Ctrl-]", err=True)
    threading.Thread(target=_keys, args=(client, read_only), daemon=True).start()
    with _terminal():
        try:
            client.result(lambda output: _write(1, output.data, raw))
        except WireError:
            if not client.left:
                raise
    click.echo("", err=True)


def _keys(client: Client, read_only: bool) -> None:
    """Send what is typed until Ctrl-]; the end of a file or pipe only ends the typing."""
    with suppress(SkerryError, OSError):
        while keys := os.read(0, 1024):
            if ESCAPE in keys:
                client.leave()
                return
            if not read_only:
                client.send(Input(keys))
