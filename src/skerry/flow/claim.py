"""Claims: `A -/-> B except G,H`, nothing flows from A to B but through G or H.

The rule this module keeps: a claim that says nothing is an error, never a truth. Each name stands
for a label that there is; no side is empty; no label stands on two sides.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from skerry.errors import InputError, Problem
from skerry.flow.deadline import Check, unbounded
from skerry.flow.graph import Graph, is_pattern

ARROW = "-/->"

MAX_CLAIMS = 10_000
"""Most claims of one file; a file with more is refused."""

MAX_CLAIMS_BYTES = 16 * 1024 * 1024
"""Longest file of claims, in bytes; a longer one is refused."""

MAX_NAMES = 1_000
"""Most names on one side of a claim; more are refused, as a pattern or an attribute would do."""


_MAX_COMMAS = 64
"""Most parts, set apart by commas, of one name."""


class Claim(msgspec.Struct, frozen=True):
    """Nothing flows from any of `sources` to any of `sinks` but through `trusted`.

    The names may be groups and patterns. `file` and `line` say where the claim was written. With
    `history` a path counts only if no wall with history closes it.
    """

    sources: tuple[str, ...]
    sinks: tuple[str, ...]
    trusted: tuple[str, ...] = ()
    file: str = ""
    line: int = 0
    history: bool = False

    def __str__(self) -> str:
        sides = f"{','.join(self.sources)} {ARROW} {','.join(self.sinks)}"
        return f"{sides} except {','.join(self.trusted)}" if self.trusted else sides


class Sides(msgspec.Struct, frozen=True):
    """A claim's sides as sets of a graph's nodes."""

    sources: int
    sinks: int
    trusted: int


def parse_claim(untrusted: str, file: str = "", line: int = 0) -> Claim:
    """Read a claim; names are set apart by commas. Raises `InputError`."""

    def fail(message: str) -> InputError:
        return InputError([Problem(file or "claim", line, message)])

    left, arrow, right = untrusted.partition(ARROW)
    if not arrow:
        raise fail(f"a claim is written 'A {ARROW} B' or 'A {ARROW} B except G', not {untrusted!r}")
    sinks, word, trusted = right.rpartition(" except ")
    if not word:
        sinks, trusted = right, ""
    parts = ("left of the arrow", left), ("right of the arrow", sinks), ("behind except", trusted)
    sides = [names_of(text) for _, text in parts]
    for (where, _), names in zip(parts, sides, strict=True):
        if not names and (word or where != "behind except"):
            raise fail(f"nothing is named {where} in {untrusted!r}")
        if len(names) > MAX_NAMES:
            raise fail(f"more than {MAX_NAMES} names {where}")
    return Claim(sides[0], sides[1], sides[2], file, line)


def never_claim(
    never: str, except_: tuple[str, ...], file: str, line: int, *, history: bool = False
) -> Claim:
    """Make the claim of an assertion: `never` is `A -> B`, names set apart by commas.

    Raises `InputError` where a side has no name, or too many.
    """
    left, _, right = never.partition("->")
    sides = names_of(left), names_of(right), tuple(n for text in except_ for n in names_of(text))
    if not (sides[0] and sides[1]):
        raise InputError([Problem(file, line, f'never must be "A -> B", not {never!r}')])
    if any(len(names) > MAX_NAMES for names in sides):
        raise InputError([Problem(file, line, f"more than {MAX_NAMES} names on one side")])
    return Claim(*sides, file, line, history)


def parse_claims(untrusted: str, file: str) -> list[Claim]:
    """Read a file of claims, one a line; `#` begins a comment. Raises `InputError` with all."""
    problems: list[Problem] = []
    claims: list[Claim] = []
    for number, text in enumerate(untrusted.splitlines(), 1):
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        if len(claims) >= MAX_CLAIMS:
            problems.append(Problem(file, number, f"more than {MAX_CLAIMS} claims"))
            break
        try:
            claims.append(parse_claim(text, file, number))
        except InputError as error:
            problems += error.problems
    if not claims and not problems:
        problems.append(Problem(file, 0, "no claim in it"))
    if problems:
        raise InputError(problems)
    return claims


def resolve(claim: Claim, graph: Graph, check: Check = unbounded) -> Sides:
    """Return a claim's sides in a graph. Raises `InputError` with all that is wrong with it."""
    problems: list[Problem] = []
    found = []
    for names in (claim.sources, claim.sinks, claim.trusted):
        side = 0
        try:
            words = joined(names, graph)
        except InputError as error:
            words = []
            problems += [_at(claim, problem.message) for problem in error.problems]
        for name in words:
            check()
            try:
                side |= graph.find_all(name)
            except InputError as error:
                problems += [_at(claim, problem.message) for problem in error.problems]
        found.append(side)
    sources, sinks, trusted = found
    for both, what in (
        (sources & graph.gone, "is a source and left out, so nothing can be said of it"),
        (sinks & graph.gone, "is a sink and left out, so nothing can be said of it"),
        (sources & sinks, "stands on both sides"),
        (sources & trusted, "is a source and trusted, so the claim would hold whatever it sends"),
        (sinks & trusted, "is a sink and trusted, so the claim would hold whatever comes to it"),
    ):
        if both and not problems:
            problems.append(_at(claim, f"{graph.named(both)[0]} {what}"))
    if problems:
        raise InputError(problems)
    return Sides(sources, sinks, trusted & ~graph.gone)


def labels(graph: Graph, untrusted: Iterable[str]) -> int:
    """Return the labels of some texts, each of which may name several, set apart by commas.

    Raises `InputError` for a name that there is not, and for a text without any.
    """
    found = 0
    for text in untrusted:
        names = names_of(text)
        if not names:
            raise InputError([Problem("argument", 0, f"{text!r} names no label")])
        found |= graph.bits(joined(names, graph))
    return found


def joined(names: tuple[str, ...], graph: Graph) -> list[str]:
    """Return the names of a side; those that hold commas themselves are put together again.

    Raises `InputError` where it can be read in two ways, so that no label that is added can take
    the place of others. In a stack, whose labels have commas, a whole label goes before its parts.
    """
    if not graph.has_commas:
        return list(names)
    if graph.about.kind == "stack":
        return _longest(names, graph)
    readings = _readings(names, graph)
    if len(readings) > 1:
        one, other = (" and ".join(map(repr, reading)) for reading in readings)
        message = f"{','.join(names)!r} can be read as {one} or as {other}"
        raise InputError([Problem("flow", 0, f"{message}; name them otherwise in the policy")])
    return readings[0] if readings else _longest(names, graph)


def _longest(names: tuple[str, ...], graph: Graph) -> list[str]:
    found: list[str] = []
    while names:
        longest = min(len(names), _MAX_COMMAS)
        sizes = range(longest, 1, -1)
        size = next((n for n in sizes if graph.knows(",".join(names[:n]))), 1)
        found.append(",".join(names[:size]))
        names = names[size:]
    return found


def _readings(names: tuple[str, ...], graph: Graph) -> list[list[str]]:
    """Return up to two ways to read a side as labels, groups and patterns, from its end on."""
    found: list[list[list[str]]] = [[[]]]
    for at in range(len(names) - 1, -1, -1):
        ways: list[list[str]] = []
        for size in range(1, min(len(names) - at, _MAX_COMMAS) + 1):
            rests = found[size - 1]
            word = ",".join(names[at : at + size]) if rests else ""
            if rests and (graph.knows(word) or (size == 1 and is_pattern(word))):
                ways += [[word, *rest] for rest in rests]
        found.insert(0, ways[:2])
    return found[0]


def names_of(text: str) -> tuple[str, ...]:
    """Return the names in a text that sets them apart by commas."""
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


def _at(claim: Claim, message: str) -> Problem:
    return Problem(claim.file or f"claim '{claim}'", claim.line, message)
