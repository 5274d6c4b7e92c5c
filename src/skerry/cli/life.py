"""A domain's life cycle and its channels, as calls to the running node."""

from __future__ import annotations

import re
import sys
from typing import Literal, cast

import click

from skerry.cli.common import (
    Seconds,
    Size,
    Span,
    ask,
    channel_line,
    domain_argument,
    emit,
    json_option,
)
from skerry.errors import InputError, Problem
from skerry.wire.control import PORT, Connect, Cut, Kill, Pause, Relabel, Resume, Start, Stop


@click.command()
@domain_argument()
@json_option
def start(domain: str, as_json: bool) -> None:
    """Start DOMAIN, with the channels that the system file declares for it.

    A channel that is refused is said and left out; then the exit code is 3.
    """
    result = ask(Start(domain))
    if as_json:
        emit([result])
    else:
        click.echo(f"{domain} is {result['state']}")
        for channel in result["bound"]:
            click.echo(channel_line(channel))
    for refused in result["refused"]:
        click.echo(f"refused: {refused['what']}\n{refused['text']}", err=True)
    if result["refused"]:
        sys.exit(3)


@click.command()
@domain_argument()
@click.option(
    "--timeout", type=Seconds(), default=10.0, show_default=True, help="Seconds until it is ended."
)
@json_option
def stop(domain: str, timeout: float, as_json: bool) -> None:
    """Stop DOMAIN: cut its channels, ask the guest to end, end it when time is up."""
    result = ask(Stop(domain, timeout))
    if as_json:
        emit([result])
    else:
        click.echo(f"{domain} has ended: {result['reason']}")


def _simple(as_json: bool, domain: str, state: str) -> None:
    if as_json:
        emit([{"domain": domain, "state": state}])
    else:
        click.echo(f"{domain} has ended" if state == "ended" else f"{domain} is {state}")


@click.command()
@domain_argument()
@json_option
def kill(domain: str, as_json: bool) -> None:
    """End DOMAIN at once."""
    ask(Kill(domain))
    _simple(as_json, domain, "ended")


@click.command()
@domain_argument()
@json_option
def pause(domain: str, as_json: bool) -> None:
    """Stop DOMAIN's processors; it keeps its memory and channels."""
    ask(Pause(domain))
    _simple(as_json, domain, "paused")


@click.command()
@domain_argument()
@json_option
def resume(domain: str, as_json: bool) -> None:
    """Let a paused DOMAIN run on."""
    ask(Resume(domain))
    _simple(as_json, domain, "running")


@click.command()
@domain_argument()
@click.argument("label")
@json_option
def relabel(domain: str, label: str, as_json: bool) -> None:
    """Give the running DOMAIN another LABEL; channels it may no longer have are cut."""
    result = ask(Relabel(domain, label))
    if as_json:
        emit([result])
        return
    click.echo(f"{domain} is now {result['label']} (record {result['record']})")
    if result["cut"]:
        click.echo("cut: channel " + ", ".join(map(str, result["cut"])))
    if result["kept"]:
        click.echo("kept: channel " + ", ".join(map(str, result["kept"])))


def _port(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not re.match(PORT, value):
        raise click.BadParameter(
            "a port's name has 1 to 31 of the characters a-z 0-9 . and -, begins with a letter "
            "or digit, and not with 'skerry.'",
            ctx,
            param,
        )
    return value


@click.command()
@domain_argument("source")
@domain_argument("sink")
@click.option(
    "--kind",
    type=click.Choice(["stream", "link", "memory"]),
    default="stream",
    show_default=True,
    help="Between domains: bytes, an Ethernet cable, or shared memory.",
)
@click.option(
    "--one-way", "--read-only", is_flag=True, help="From SOURCE to SINK only; SINK is only read."
)
@click.option("--size", type=Size(), default="0", metavar="SIZE", help="Of a memory: 1M.")
@click.option(
    "--overflow",
    type=click.Choice(["block", "drop"]),
    default="block",
    show_default=True,
    help="With --one-way, while SINK does not read: SOURCE waits, or what it writes is lost.",
)
@click.option(
    "--name",
    default="",
    callback=_port,
    help="The port's name in both guests.  [default: ch<ID>; a resource's own]",
)
@click.option(
    "--for", "for_s", type=Span(), metavar="TIME", help="Cut it after this time: 90s, 10m, 2h, 1d."
)
@json_option
def connect(
    source: str,
    sink: str,
    kind: str,
    one_way: bool,
    size: int,
    overflow: str,
    name: str,
    for_s: float | None,
    as_json: bool,
) -> None:
    """Bind a channel between SOURCE and SINK; prints its id.

    SINK may be a resource of the system file: then SOURCE uses it.
    """
    if overflow == "drop" and not one_way:
        raise click.UsageError("--overflow drop goes with --one-way")
    chosen = cast(Literal["stream", "link", "memory"], kind)
    full = cast(Literal["block", "drop"], overflow)
    result = ask(Connect(source, sink, chosen, name, one_way, for_s, full, size))
    if as_json:
        emit([result])
    else:
        click.echo(result["id"])


@click.command()
@click.argument("channel")
@json_option
def cut(channel: str, as_json: bool) -> None:
    """Revoke CHANNEL (its number in `skerry channels`): no byte crosses after this returns."""
    if not channel.isascii() or not channel.isdigit() or len(channel) > 15:
        raise InputError([Problem("CHANNEL", 0, f"{channel!r} is not a channel's number")])
    result = ask(Cut(int(channel)))
    if as_json:
        emit([result])
    else:
        click.echo(f"channel {channel} is cut; {result['drained']} queued bytes were discarded")
