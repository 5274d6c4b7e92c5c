"""`skerry disk`: the disks of the running system, and their release."""

from __future__ import annotations

import click

from skerry.cli.common import ask, emit, json_option, table
from skerry.wire.control import Disks, ReleaseDisk


@click.group()
def disk() -> None:
    """Disks: list, release."""


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
    domain uses it.
    """
    result = ask(ReleaseDisk(name))
    if as_json:
        emit([result])
        return
    written = ", ".join(result["written"]) or "nobody"
    click.echo(f"{name} is released: {result['done']} (it was written by: {written})")
