"""Making what was written last through a crash of the host.

The rule: a name lasts as its folder does, so a folder is synced like a file.
"""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path, flags: int = 0) -> None:
    """Return once a file's content, or the names in a folder, are on the disk.

    `flags` are more of those to open it with (`O_DIRECTORY`, `O_NOFOLLOW`). Raises `OSError`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
