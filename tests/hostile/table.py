"""The table of what the attacks came to: shown after the tests, written as a page if asked.

The rule: what stands in it was seen in this run; nothing in it says when or on which machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from tests.hostile.attacks import ATTACKS

PAGE = "SKERRY_HOSTILE_PAGE"
"""The variable that names the page to write."""

BEGIN, END = "<!-- generated: hostile -->", "<!-- end: hostile -->"


class Row(msgspec.Struct, frozen=True):
    """One attack on one board: how many seconds and operations, what it came to and how."""

    attack: str
    board: str
    seconds: float
    operations: int
    outcome: str
    how: str


rows: list[Row] = []
"""Those of this run, in their order."""


def short(number: int) -> str:
    """Return a number with two digits that count: another run has others."""
    if number < 100:
        return str(number)
    digits = len(str(number)) - 2
    rounded = round(number, -digits)
    for size, letter in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if rounded >= size:
            return (
                f"{rounded / size:.2g}{letter}"
                if rounded < 100 * size
                else f"{rounded // size}{letter}"
            )
    return str(rounded)


def lines(found: Iterable[Row]) -> list[str]:
    """Return the table as lines of Markdown."""
    head = ["attack", "board", "seconds", "operations", "outcome", "what was seen"]
    table = [head, ["---"] * len(head)]
    for row in found:
        how = row.how.replace("|", "\\|")
        operations = short(row.operations)
        table.append([row.attack, row.board, f"{row.seconds:g}", operations, row.outcome, how])
    return [f"| {' | '.join(cells)} |" for cells in table]


def what_they_do() -> list[str]:
    """Return the list of attacks as lines of Markdown."""
    return ["| attack | does |", "|---|---|", *(f"| `{a.name}` | {a.does} |" for a in ATTACKS)]


def write(page: Path, found: Iterable[Row]) -> None:
    """Put the table into a page, between its marks. Raises `ValueError` if they are not there."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the marks {BEGIN} and {END}")
    made = "\n".join([*what_they_do(), "", *lines(found)])
    page.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")
