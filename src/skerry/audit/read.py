"""Reading a trail while it may be written: whole lines, bounded, in order.

The rule: a reader holds one line at a time and never more than `MAX_LINE` of it; a longer line
comes out cut, and so as a broken record. A last line without its end is given a moment, because
a writer may be in the middle of it. A trail is read as one, whatever segments it stands in, and a
rotation meanwhile neither hides a record nor shows it twice.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from skerry.audit.record import MAX_LINE, MAX_NUMBER, RecordError, parse_record
from skerry.audit.segments import closed_segments
from skerry.errors import NotFound, SkerryError

MAX_TAIL = 100_000
"""Most records that `tail` returns at once."""

_NUMBERED = re.compile(rb'\{"n":([1-9][0-9]{0,15}),')
_MOMENTS = 5
_MOMENT_S = 0.02

Sleep = Callable[[float], None]


class Position(msgspec.Struct, frozen=True):
    """A place in a trail: the segment's inode (its name may change) and the offset in bytes."""

    inode: int
    offset: int


def read_lines(path: Path, sleep: Sleep = time.sleep, since: int = 0) -> Iterator[bytes]:
    """Yield every line of a trail, as it is, oldest segment first; the last may be torn.

    Closed segments that end before record `since` are left out. Raises `SkerryError`.
    """
    for file, live in _segments(path, since):
        yield from _lines(file, _MOMENTS if live else 0, sleep)


def first_kept(path: Path) -> int:
    """Return the number of the first record that retention has left, by the segments' names."""
    oldest = _listed(path)[0]
    return 1 if oldest == path else int(oldest.suffix[1:])


def read_tail(path: Path, count: int) -> tuple[list[bytes], Position]:
    """Return the last `count` whole lines (at most `MAX_TAIL`) and the place behind them."""
    count = min(count, MAX_TAIL)
    newest, *older = reversed(_listed(path))
    with open_trail(newest) as file:
        lines, offset = _tail(file, count)
        position = Position(os.fstat(file.fileno()).st_ino, offset)
    for closed in older:
        if len(lines) >= count:
            break
        with contextlib.suppress(NotFound), open_trail(closed) as file:
            if os.fstat(file.fileno()).st_ino != position.inode:
                lines = _tail(file, count - len(lines))[0] + lines
    return lines, position


def position_of(path: Path, number: int) -> Position:
    """Return where the segment that holds a record begins; for 0, the live one.

    The oldest, if retention removed it. Raises `SkerryError`.
    """
    segments = _segments(path, number or MAX_NUMBER)
    file, _ = next(segments)  # open as long as they are held
    return Position(os.fstat(file.fileno()).st_ino, 0)


def follow_lines(
    path: Path,
    position: Position,
    sleep: Sleep,
    pause_s: float = 0.2,
    known: Callable[[], int] = lambda: MAX_NUMBER,
) -> Iterator[bytes]:
    """Yield whole lines from a place on, for ever, as they are written, segment by segment.

    `known` returns the last record that may come out. What stands behind it is read again later:
    its writer may have to replace it. Raises `SkerryError`, `OSError`.
    """
    inode, offset = position.inode, position.offset
    while True:
        with open_trail(_since(path, inode)[0]) as file:
            inode = os.fstat(file.fileno()).st_ino
            yield from _followed(path, file.fileno(), offset, sleep, pause_s, known)
        inode, offset = next(map(_inode, _behind(path, inode)), 0), 0


def _followed(
    path: Path, fd: int, offset: int, sleep: Sleep, pause_s: float, known: Callable[[], int]
) -> Iterator[bytes]:
    """Yield whole lines until all of a segment was read and the next one is being written."""
    inode = os.fstat(fd).st_ino
    closed = False
    while True:
        last = known()  # asked before it is read: what is known by then is not replaced any more
        lines = _whole(os.pread(fd, MAX_LINE + 1, offset))
        begun = offset
        for line in lines:
            if number_of(line) > last:
                break
            yield line
            offset += len(line)
        if offset > begun:
            continue
        if not lines:
            if closed:
                return
            later = _behind(path, inode)
            closed = bool(later) and _size(later[0]) > 0  # empty: this one is still written to
        if lines or not closed:
            sleep(pause_s)


def _whole(data: bytes) -> list[bytes]:
    """Return the whole lines that data begins with; one that is too long as it is."""
    *lines, rest = data.split(b"\n")
    return [line + b"\n" for line in lines] or ([rest] if len(rest) > MAX_LINE else [])


def number_of(untrusted_line: bytes) -> int:
    """Return the number that a line says it has, 0 if it can be no record."""
    found = _NUMBERED.match(untrusted_line)
    fits = len(untrusted_line) <= MAX_LINE and untrusted_line.endswith(b"\n")
    return int(found[1]) if found and fits else 0


def find_line(path: Path, number: int) -> bytes:
    """Return the line of a record. Raises `NotFound`."""
    if 0 < number <= MAX_NUMBER:
        prefix = f'{{"n":{number},'.encode()
        for line in read_lines(path, since=number):
            if line.startswith(prefix):
                return line
    raise NotFound(f"no record {number} in the audit trail {path}")


def open_trail(path: Path) -> BinaryIO:
    """Open a trail for reading: a regular file, not through a symbolic link."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound(f"there is no audit trail {path}", fix="name one with --file") from None
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or "not a file name"
        raise SkerryError(f"the audit trail {path} cannot be read: {words}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SkerryError(f"the audit trail {path} is not a regular file")
    return open(fd, "rb")  # noqa: PTH123  -- a descriptor; the caller closes it


def _listed(path: Path) -> list[Path]:
    """Return the files of a trail, oldest segment first, the live one last."""
    try:
        names = os.listdir(path.parent)  # noqa: PTH208  -- names, not paths
    except (OSError, ValueError):
        names = []  # what is wrong with it, `open_trail` says
    closed = [segment for _, segment in closed_segments(path, names)]
    # Between two names of a rotation there is no live file; the closed ones hold everything.
    return closed if closed and path.name not in names else [*closed, path]


def _since(path: Path, inode: int) -> list[Path]:
    """Return the files of a trail from the one with this inode on; all if that is gone."""
    files = _listed(path)
    at = next((at for at, file in enumerate(files) if _inode(file) == inode), 0)
    return files[at:]


def _behind(path: Path, inode: int) -> list[Path]:
    """Return the files of a trail behind the one with this inode; all if that is gone."""
    files = _since(path, inode)
    return files[1:] if _inode(files[0]) == inode else files


def _segments(path: Path, since: int) -> Iterator[tuple[BinaryIO, bool]]:
    """Yield the files of a trail, open, oldest first, and whether it is the live one.

    The live one is opened before the others are listed, so that a rotation meanwhile hides
    nothing. One that retention removes meanwhile is left out, as if it had gone before.
    """
    with open_trail(_listed(path)[-1]) as live:
        inode = os.fstat(live.fileno()).st_ino
        closed = [segment for segment in _listed(path) if segment != path]
        firsts = [int(segment.suffix[1:]) for segment in closed] + [_first_number(live)]
        for segment, next_first in zip(closed, firsts[1:], strict=True):
            if next_first <= since:
                continue
            with contextlib.suppress(NotFound), open_trail(segment) as file:
                if os.fstat(file.fileno()).st_ino != inode:
                    yield file, False
        yield live, True


def _first_number(file: BinaryIO) -> int:
    """Return the number of the first record, beyond all numbers if there is none."""
    try:
        return parse_record(os.pread(file.fileno(), MAX_LINE, 0).partition(b"\n")[0]).n
    except RecordError:
        return MAX_NUMBER


def _inode(path: Path) -> int:
    try:
        return path.lstat().st_ino
    except OSError:
        return 0


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _lines(file: BinaryIO, moments: int, sleep: Sleep) -> Iterator[bytes]:
    line = b""
    while True:
        line += file.readline(MAX_LINE + 1 - len(line))
        if line.endswith(b"\n") or len(line) > MAX_LINE:
            yield line
            line = b""
        elif not line:
            return
        elif not moments:
            yield line
            return
        else:
            moments -= 1
            sleep(_MOMENT_S)


def _tail(file: BinaryIO, count: int) -> tuple[list[bytes], int]:
    end = file.seek(0, os.SEEK_END)
    data = b""
    start = end
    while start and data.count(b"\n") <= count and len(data) <= count * MAX_LINE:
        step = min(start, MAX_LINE)
        start = file.seek(start - step)
        data = file.read(step) + data
    whole = data.rfind(b"\n") + 1
    lines = data[:whole].splitlines(keepends=True)
    return lines[len(lines) - min(count, len(lines)) :], end - (len(data) - whole)
