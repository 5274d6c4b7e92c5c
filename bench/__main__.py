"""`./run bench [ROW…] [--json FILE]`: measure and print the table."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click
import msgspec

from bench.measure import Row
from bench.rows import ROWS


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _show(rows: Iterable[Row]) -> None:
    click.echo(
        f"{'row':24} {'ours':>10} {'other':>10} {'unit':6} {'ratio':>7} {'95 % interval':>17} "
        f"{'goal':>10}  holds"
    )
    for row in rows:
        span = "-" if row.low is None else f"{_number(row.low)} … {_number(row.high)}"
        click.echo(
            f"{row.row:24} {_number(row.ours):>10} {_number(row.other):>10} {row.unit:6} "
            f"{_number(row.ratio):>7} {span:>17} {row.goal:>10}  {row.holds}"
        )


@click.command()
@click.argument("rows", nargs=-1)
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path))
def main(rows: tuple[str, ...], file: Path | None) -> None:
    """Measure the named ROWs, or all of them."""
    unknown = [name for name in rows if name not in ROWS]
    if unknown:
        click.echo(f"error: no row {unknown[0]}; there are: {', '.join(ROWS)}", err=True)
        sys.exit(2)
    found: list[Row] = []
    for name in rows or ROWS:
        click.echo(f"measuring {name}", err=True)
        found.append(ROWS[name]())
    _show(found)
    if file:
        file.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in found))


if __name__ == "__main__":
    main()
