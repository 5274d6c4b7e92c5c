"""What the commands share: tables, JSON, escaping, and the call to the node."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

from skerry.node.paths import control_socket
from skerry.wire.control import (
    MAX_GRANT_SECONDS,
    MAX_NAME,
    MAX_SECONDS,
    MEMORY_SIZES,
    Call,
    is_memory_size,
)
from skerry.wire.escape import escape

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Seconds(click.FloatRange):
    """A span of time that a call may carry."""

    def __init__(self) -> None:
        super().__init__(0, MAX_SECONDS)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number; `nan` is within no range."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value} is not a span of time.", param, ctx)
        return seconds


class Span(click.ParamType[float]):
    """A span of time with its unit, as a grant may have it; converts to seconds."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the seconds of `90s`, `10m`, `2h` or `1d`."""
        found = re.fullmatch(r"([0-9]{1,9})([smhd])", str(value))
        if not found:
            self.fail(f"{value!r} is not a time such as 90s, 10m, 2h or 1d.", param, ctx)
        seconds = int(found[1]) * _UNITS[found[2]]
        if not 0 < seconds <= MAX_GRANT_SECONDS:
            self.fail(f"{value} is not between 1s and {MAX_GRANT_SECONDS // 86_400}d.", param, ctx)
        return float(seconds)


class Size(click.ParamType[int]):
    """The size of a memory with its unit; converts to bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes of `64K`, `1M` or `1G`; 0 for none."""
        found = re.fullmatch(r"([0-9]{1,7})([KMG])", str(value))
        if str(value) != "0" and not found:
            self.fail(f"{value!r} is not a size such as 64K, 1M or 1G.", param, ctx)
        if not found:
            return 0
        size = int(found[1]) << {"K": 10, "M": 20, "G": 30}[found[2]]
        if not is_memory_size(size):
            self.fail(f"{value} is none: {MEMORY_SIZES}.", param, ctx)
        return size


_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class DomainName(click.ParamType[str]):
    """What could be a domain's name; whether there is one, the node says."""

    name = "domain"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name if a call can carry it."""
        text = str(value)
        if not 0 < len(text) <= MAX_NAME or not text.isascii() or not text.isprintable():
            self.fail(f"{escape(text)[:MAX_NAME]!r} is no domain's name.", param, ctx)
        return text


def domain_argument(name: str = "domain") -> Callable[[Decorated], Decorated]:
    """Declare an argument that names a domain."""
    return click.argument(name, type=DomainName())


policies_option = click.option(
    "--policy",
    "policies",
    multiple=True,
    required=True,
    metavar="FILE",
    help="Policy file, or the word dummy. Several: all must allow.",
)


def parse_booleans(settings: Sequence[str]) -> dict[str, bool]:
    """Return booleans by name from `NAME=0` and `NAME=1`."""
    values: dict[str, bool] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not name or not equals or value not in ("0", "1"):
            raise click.BadParameter(f"{setting!r} is not NAME=0 or NAME=1")
        if values.setdefault(name, value == "1") is not (value == "1"):
            raise click.BadParameter(f"{name} is set to both 0 and 1")
    return values


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def ask(message: Call) -> Any:
    """Make one call to the running node and return its result."""
    from skerry.control.client import call

    return call(control_socket(), message)


def emit(rows: Iterable[Mapping[str, object]]) -> None:
    """Print one JSON object a line."""
    for row in rows:
        click.echo(json.dumps(row))


def channel_line(channel: Mapping[str, object]) -> str:
    """Write a channel that was just bound in one line."""
    arrow = "→" if channel["one_way"] else "↔"
    return "channel {id}: {source} {arrow} {sink} ({port})".format_map({**channel, "arrow": arrow})


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns under their headings, escaped."""
    cells = [list(headings), *([escape(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def counted(count: int, noun: str) -> str:
    """Write a number of things: `1 channel`, `2 channels`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


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
