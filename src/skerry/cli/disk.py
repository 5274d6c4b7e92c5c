"""`skerry disk`: the disks of the running system, their release, and what is left of lost ones."""

from __future__ import annotations

from typing import Any

import click

from skerry.cli.common import ask, emit, json_option, table
from skerry.wire.control import Disks, ForgetDisk, ReleaseDisk


@click.group()
def disk() -> None:
    """Disks: list, release, forget."""


@disk.command("list")
@json_option
def list_disks(as_json: bool) -> None:
    """List the disks: label, who uses them, and which labels have written them."""
    rows = ask(Disks())
    if as_json:
        emit(rows)
        return
    table(
        ("NAME", "LABEL", "FORMAT", "USED BY", "WRITTEN BY", "FILE"),
        [
            (
                row["name"],
                row["label"],
                row["format"] + ("+luks" if row["encrypted"] else ""),
                " ".join(row["users"]) or "-",
                " ".join(row["written"]) or "-",
                row["file"],
            )
            for row in rows
        ],
    )


@disk.command()
@click.argument("name")
@json_option
def release(name: str, as_json: bool) -> None:
    """Make what is on the disk NAME unreadable, and forget who wrote it.

    The key of an encrypted disk is destroyed; the blocks of another are zeroed. Refused while a
    domain uses it, or if its image is not there.
    """
    _say(ask(ReleaseDisk(name)), "released", as_json)


@disk.command()
@click.argument("name")
@json_option
def forget(name: str, as_json: bool) -> None:
    """Forget who wrote the disk NAME, whose image is gone for good.

    Nothing is wiped: if the image comes back, whoever uses it reads what was on it, and no wall
    knows whose that was. Refused while the image is there.
    """
    _say(ask(ForgetDisk(name)), "forgotten", as_json)


def _say(result: dict[str, Any], what: str, as_json: bool) -> None:
    if as_json:
        emit([result])
        return
    written = ", ".join(result["written"]) or "nobody"
    click.echo(f"{result['disk']} is {what}: {result['done']} (it was written by: {written})")
