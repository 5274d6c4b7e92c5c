"""Names of what is made for one jail outside of it, by which a killed maker's leavings are found.

The rule: only what is named after a process that no longer lives, and is older than a minute, is
somebody's leaving. The age is for makers whose process numbers this host's processes can't see; it
does not count for makers that are known to have been ours.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Collection
from pathlib import Path

AGE = 60.0
"""Seconds for which nothing counts as left behind."""

_NAME = re.compile(r"skerry\.([1-9][0-9]{0,8})\.")


def own_name(name: str) -> str:
    """Return a name that no other process, and no earlier one of this number, uses."""
    return f"skerry.{os.getpid()}.{name}.{secrets.token_hex(3)}"


def left_behind(directory: Path, ours: Collection[int] = ()) -> list[Path]:
    """Return what dead processes left in a directory; nothing where there is no directory.

    What was made by `ours`, which are process numbers, counts at any age.
    """
    found = []
    for path in directory.iterdir() if directory.is_dir() else ():
        maker = _NAME.match(path.name)
        if maker and not _lives(pid := int(maker[1])) and (pid in ours or _age(path) > AGE):
            found.append(path)
    return found


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0
