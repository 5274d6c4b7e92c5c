"""`./run bench [ROW…] [--json FILE]`: measure and print the table."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import click
import msgspec

from bench.measure import Row
from bench.rows import ROWS, find
from skerry.errors import SkerryError


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _span(interval: tuple[float | None, float | None] | None) -> str:
    if interval is None or interval[0] is None:
        return "-"
    return " … ".join(map(_number, interval))


def _show(rows: Iterable[Row]) -> None:
    click.echo(
        f"{'row':22} {'ours':>9} {'other':>9} {'unit':5} {'ratio':>7} {'95 % interval':>17} "
        f"{'goal':>10}  {'holds':9}  A against A"
    )
    for row in rows:
        click.echo(
            f"{row.row:22} {_number(row.ours):>9} {_number(row.other):>9} {row.unit:5} "
            f"{_number(row.ratio):>7} {_span((row.low, row.high)):>17} {row.goal:>10}  "
            f"{row.holds:9}  {_span(row.control)}"
        )


@click.command()
@click.argument("rows", nargs=-1)
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path))
def main(rows: tuple[str, ...], file: Path | None) -> None:
    """Measure the named ROWs, or all of them.

    A row that can't be measured here is said, left out of the table, and makes the exit code 1.
    """
    unknown = [name for name in rows if name not in ROWS]
    if unknown:
        click.echo(f"error: no row {unknown[0]}; there are: {', '.join(ROWS)}", err=True)
        sys.exit(2)
    # Asked to end, a row still cleans up after itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found: list[Row] = []
    failed = False
    for name in rows or ROWS:
        click.echo(f"measuring {name}", err=True)
        try:
            found.append(find(name)())
        except (SkerryError, OSError) as error:
            failed = True
            click.echo(f"error: {name} was not measured: {error}", err=True)
    _show(found)
    if file:
        file.write_bytes(b"".join(msgspec.json.encode(row.published()) + b"\n" for row in found))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
