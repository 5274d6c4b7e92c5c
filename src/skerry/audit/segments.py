"""The files of one trail: the live segment, the closed ones, and how one follows another.

The rule: `audit.log` is written to, and only its names ever change: a closed segment is renamed to
`audit.log.N`, N being the number of its first record, and is never touched again until retention
removes it, oldest first. Each step leaves files that the next opening understands, whenever the
power goes: a live file that is missing or empty continues the newest closed one. What retention
removes is written down, durably, before it is removed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from skerry.audit.chain import Link
from skerry.audit.disk import Disk
from skerry.audit.ending import (
    DamagedTrailError,
    Ending,
    find_ending,
    first_number,
    records_after,
)
from skerry.audit.record import Record, fields_json

_CLOSED = re.compile(r"\.([1-9][0-9]{0,15})")


class Opened(msgspec.Struct, frozen=True):
    """The live segment as it was opened, its end verified.

    `size` in bytes; `link` is the last record of the trail and `first` the number of this
    segment's first (the next one, if it is empty). `continues` holds the fields of the `segment`
    record that an empty segment must begin with, else nothing. `cut` is how many bytes of a
    crash were cut off.
    """

    fd: int
    size: int
    link: Link
    first: int
    continues: str = ""
    cut: int = 0


class Successors(Protocol):
    """Where a full segment's successor comes from."""

    def follow(self, first: int, link: Link) -> tuple[int, str]:
        """Close the segment that holds records `first` to `link.n`, and begin the next.

        Returns the descriptor of an empty file whose name is on the disk, and the fields of the
        `segment` record that it must begin with. Raises `OSError`; the old one may still be
        written to then.
        """

    def begun(self) -> None:
        """Hear that the `segment` record is on the disk: what it says is removed may go."""


class Segments:
    """The segments of the trail at `path`, for its one writer."""

    def __init__(self, path: Path, disk: Disk, keep: int = 1) -> None:
        self.path = path
        self._disk = disk
        self._keep = keep
        self._doomed: list[Path] = []

    def open(self, at_least: Link | None = None) -> Opened:
        """Open the live segment, or begin it, and cut off what a crash left half-written.

        `at_least` is a record that the trail is known to have reached. Raises `OSError`, or
        `DamagedTrailError` if the end does not verify or lies before `at_least`.
        """
        fd = self._disk.open(self.path)
        try:
            before, torn = self._newest_ending(fd)
            ending = find_ending(self._disk, fd, before)
            if ending.cut:
                self._disk.truncate(fd, ending.size)
            self._disk.sync(fd)
            self._disk.sync_folder(self.path)
            self._check_reached(fd, ending, at_least)
            first, continues = ending.link.n + 1, ""
            if ending.size:
                first = first_number(self._disk, fd)
            elif ending.link.n:
                continues = self._continue(ending.link)
        except (OSError, DamagedTrailError):
            self._disk.close(fd)
            raise
        return Opened(fd, ending.size, ending.link, first, continues, ending.cut + torn)

    def follow(self, first: int, link: Link) -> tuple[int, str]:
        """Close the live segment and begin the next; see `Successors`."""
        closed = self.path.with_name(f"{self.path.name}.{first}")
        renamed = closed.name not in self._disk.names(self.path)
        if renamed:
            self._disk.rename(self.path, closed)
        try:
            fd = self._disk.open(self.path)
        except OSError:
            if renamed:
                with contextlib.suppress(OSError):
                    self._disk.rename(closed, self.path)
            raise
        try:
            if self._disk.size(fd):
                raise OSError(f"{self.path} is in the way of the next segment")
            self._disk.sync_folder(self.path)
            return fd, self._continue(link)
        except OSError:
            self._disk.close(fd)
            raise

    def begun(self) -> None:
        """Remove the segments that the newest `segment` record says are gone."""
        doomed, self._doomed = self._doomed, []
        with contextlib.suppress(OSError):  # the next rotation tries again
            for path in doomed:
                self._disk.remove(path)

    def close(self, fd: int) -> None:
        """Close a descriptor of a segment that was passed on."""
        self._disk.close(fd)

    def written_after(self, opened: Opened, number: int) -> list[Record]:
        """Return the records of the live segment behind `number`, of its last batches."""
        return records_after(self._disk, opened.fd, opened.size, number)

    def _newest_ending(self, live: int) -> tuple[Link | None, int]:
        """Return the last record before the live segment, and what was cut off behind it.

        None if the closed segments are gone, so that only the live one itself can tell.
        """
        closed = closed_segments(self.path, self._disk.names(self.path))
        if not closed:
            return (Link() if self._begins_trail(live) else None), 0
        first, path = closed[-1]
        fd = self._disk.open(path)
        try:
            ending = find_ending(self._disk, fd, Link() if first == 1 else None)
            if ending.cut:
                self._disk.truncate(fd, ending.size)
                self._disk.sync(fd)
            return ending.link, ending.cut
        finally:
            self._disk.close(fd)

    def _begins_trail(self, live: int) -> bool:
        try:
            return not self._disk.size(live) or first_number(self._disk, live) == 1
        except DamagedTrailError:
            return True  # torn, or damaged: `find_ending` says which

    def _check_reached(self, fd: int, ending: Ending, at_least: Link | None) -> None:
        if at_least is None or at_least == ending.link:
            return
        if at_least.n >= ending.link.n:
            raise DamagedTrailError(
                f"it ends with record {ending.link.n}, but had reached record {at_least.n} "
                f"with the hash {at_least.hash}"
            )
        behind = records_after(self._disk, fd, ending.size, at_least.n - 1)
        if behind and behind[0].n == at_least.n and behind[0].hash != at_least.hash:
            raise DamagedTrailError(f"record {at_least.n} is not the one that was written")

    def _continue(self, link: Link) -> str:
        """Return the fields of the next `segment` record, and choose what retention removes."""
        closed = closed_segments(self.path, self._disk.names(self.path))
        fields: dict[str, object] = {"last": link.n, "hash": link.hash}
        if closed:
            fields["previous"] = closed[-1][1].name
        self._doomed = [path for _, path in closed[: -self._keep]]
        if self._doomed:
            last = closed[-self._keep][0] - 1
            fields["removed"] = {"first": closed[0][0], "last": last}
        return fields_json(fields)


def closed_segments(path: Path, names: Iterable[str]) -> list[tuple[int, Path]]:
    """Return the closed segments among the names of a folder, by first record, oldest first."""
    mine = (name[len(path.name) :] for name in names if name.startswith(path.name))
    found = map(_CLOSED.fullmatch, mine)
    numbers = sorted({int(match[1]) for match in found if match})
    return [(number, path.with_name(f"{path.name}.{number}")) for number in numbers]
