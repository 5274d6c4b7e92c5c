"""Reading files that others wrote: regular ones, within a bound, without waiting."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from skerry.errors import PolicyError, Problem


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises `PolicyError` for a device, FIFO or folder and for a longer file; `OSError` and
    `ValueError` as `os.open` does.
    """
    # Without O_NONBLOCK, opening a FIFO that nobody writes to would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PolicyError([Problem(str(path), 0, "not a regular file")])
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise PolicyError([Problem(str(path), 0, f"longer than {limit} bytes")])
    return content
