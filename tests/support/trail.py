"""What a trail must prove of the channels that are live, whatever has become of the node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skerry.audit.chain import verify
from skerry.audit.record import Record, parse_record


class Broken(Exception):
    """A law does not hold."""


def hold(what: bool, words: str) -> None:
    """Raise `Broken` unless something is so."""
    if not what:
        raise Broken(words)


def proven(lines: Sequence[bytes]) -> list[Record]:
    """Return the records of a trail whose chain holds. Raises `Broken`."""
    proof = verify(lines)
    hold(not proof.broken, f"the trail: {proof}")
    return [parse_record(line.rstrip(b"\n")) for line in lines]


def all_allowed(channels: Mapping[int, int], records: Sequence[Record]) -> None:
    """Check that each live channel (its number to that of its record) has its allow.

    Raises `Broken`.
    """
    for number, record in channels.items():
        about = records[record - 1].fields
        hold(
            records[record - 1].event == "allow" and about.get("channel") == number,
            f"channel {number} has no allow: {about}",
        )
