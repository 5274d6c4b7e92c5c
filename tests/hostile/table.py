"""The table of what the attacks came to: shown after the tests, written as a page if asked.

The rules: what is shown was seen in this run; a page keeps the lines of what was not run this time.
Nothing in it says when or on which machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from tests.hostile.attacks import ATTACKS

PAGE = "SKERRY_HOSTILE_PAGE"
"""The variable that names the page to write."""

BEGIN, END = "<!-- generated: hostile -->", "<!-- end: hostile -->"


HEAD = "attack", "board", "seconds", "operations", "outcome", "what was seen"


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
    rounded = round(number, 2 - len(str(number))) if number >= 100 else number
    for size, letter in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if rounded >= size:
            return f"{rounded / size:g}{letter}"
    return str(rounded)


def lines(found: Iterable[Row], earlier: Iterable[str] = ()) -> list[str]:
    """Return the table as lines of Markdown; `earlier` lines stay where nothing new was found."""
    made = {_key(line): line for line in earlier}
    for row in found:
        how = row.how.replace("|", "\\|")
        operations = short(row.operations)
        line = _line([row.attack, row.board, f"{row.seconds:g}", operations, row.outcome, how])
        made[_key(line)] = line
    return [_line(HEAD), _line(["---"] * len(HEAD)), *made.values()]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _key(line: str) -> tuple[str, ...]:
    """Return attack and board of a line."""
    return tuple(line.split(" | ")[:2])


def what_they_do() -> list[str]:
    """Return the list of attacks as lines of Markdown."""
    return ["| attack | does |", "|---|---|", *(f"| `{a.name}` | {a.does} |" for a in ATTACKS)]


def write(page: Path, found: Iterable[Row]) -> None:
    """Put the table into a page, between its marks; what was not run this time stays there.

    Raises `ValueError` if the marks are missing.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the marks {BEGIN} and {END}")
    earlier = [line for line in old.splitlines() if line.count(" | ") == len(HEAD) - 1][2:]
    made = "\n".join([*what_they_do(), "", *lines(found, earlier)])
    page.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")
