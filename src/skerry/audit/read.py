"""Reading a trail while it may be written: whole lines, bounded, in order.

The rule: a reader holds one line at a time and never more than `MAX_LINE` of it; a longer line
comes out cut, and so as a broken record. A last line without its end is given a moment, because
a writer may be in the middle of it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from skerry.audit.record import MAX_LINE, MAX_NUMBER
from skerry.errors import NotFound, SkerryError

MAX_TAIL = 100_000
"""Most records that `tail` returns at once."""

_MOMENTS = 5
_MOMENT_S = 0.02

Sleep = Callable[[float], None]


def read_lines(path: Path, sleep: Sleep = time.sleep) -> Iterator[bytes]:
    """Yield every line of a trail, as it is; the last may be torn. Raises `SkerryError`."""
    with open_trail(path) as file:
        moments = _MOMENTS
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


def read_tail(path: Path, count: int) -> tuple[list[bytes], int]:
    """Return the last `count` whole lines (at most `MAX_TAIL`) and the offset behind them."""
    count = min(count, MAX_TAIL)
    with open_trail(path) as file:
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


def follow_lines(path: Path, offset: int, sleep: Sleep, pause_s: float = 0.2) -> Iterator[bytes]:
    """Yield whole lines from `offset` on, for ever, as they are written."""
    with open_trail(path) as file:
        file.seek(offset)
        line = b""
        while True:
            line += file.readline(MAX_LINE + 1 - len(line))
            if line.endswith(b"\n") or len(line) > MAX_LINE:
                yield line
                line = b""
            else:
                sleep(pause_s)


def find_line(path: Path, number: int) -> bytes:
    """Return the line of a record. Raises `NotFound`."""
    if 0 < number <= MAX_NUMBER:
        prefix = f'{{"n":{number},'.encode()
        for line in read_lines(path):
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
