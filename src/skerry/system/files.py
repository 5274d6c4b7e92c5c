"""Reading a file that a user named, without being caught by what it is.

The rule: only a regular file of bounded size is read. A FIFO or a device would block or never
end, so it is opened without waiting and refused by its type.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from skerry.errors import InputError, Problem


def read_bounded(path: Path, limit: int, *, follow: bool = True) -> bytes:
    """Read a regular file of at most `limit` bytes; with `follow` off, one that is no link.

    Raises `InputError` if it is missing, unreadable, not a regular file or too long.
    """
    try:
        links = 0 if follow else os.O_NOFOLLOW
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | links)
        with open(fd, "rb") as file:  # noqa: PTH123  -- a descriptor, not a path
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise _problem(path, "not a regular file")
            data = file.read(limit + 1)
    except OSError as error:
        raise _problem(path, f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise _problem(path, "cannot be read: not a file name") from None
    if len(data) > limit:
        raise _problem(path, f"longer than {limit} bytes")
    return data


def read_text(path: Path, limit: int) -> str:
    """Read a UTF-8 file of at most `limit` bytes. Raises `InputError`, with the line if it can."""
    untrusted_data = read_bounded(path, limit)
    try:
        return untrusted_data.decode()
    except UnicodeDecodeError as error:
        line = untrusted_data.count(b"\n", 0, error.start) + 1
        raise InputError([Problem(str(path), line, "not UTF-8 text")]) from None


def _problem(path: Path, message: str) -> InputError:
    return InputError([Problem(str(path), 0, message)])
