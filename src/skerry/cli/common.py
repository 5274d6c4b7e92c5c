"""What the commands share: tables, JSON, escaping, and the call to the node."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from skerry.node.paths import control_socket
from skerry.wire.control import Call
from skerry.wire.escape import escape

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def ask(message: Call) -> Any:
    """Make one call to the running node and return its result."""
    from skerry.control.client import call

    return call(control_socket(), message)


def emit(rows: Iterable[Mapping[str, object]]) -> None:
    """Print one JSON object a line."""
    for row in rows:
        click.echo(json.dumps(row))


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns under their headings, escaped."""
    cells = [list(headings), *([escape(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def ago(seconds: float) -> str:
    """Write a span of time in its two largest units: `3m 20s`."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for name, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (name == "s" and not parts):
            parts.append(f"{count}{name}")
    return " ".join(parts[:2])


def size(count: int) -> str:
    """Write a number of bytes in binary units: `192M`."""
    for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
        if count >= 1 << shift and count % (1 << shift) == 0:
            return f"{count >> shift}{unit}"
    return str(count)
