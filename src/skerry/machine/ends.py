"""What a channel's end is, told by the descriptor itself: a socket both ways, or a pipe one way.

The rule: what a machine makes of an end follows from what the kernel lets it do with it.
"""

from __future__ import annotations

import fcntl
import os
import stat
from typing import Literal

Direction = Literal["both", "read", "write"]


def direction(end: int) -> Direction:
    """Say which way bytes can go through a channel's end. Raises `OSError` for no descriptor."""
    if not stat.S_ISFIFO(os.fstat(end).st_mode):
        return "both"
    access = fcntl.fcntl(end, fcntl.F_GETFL) & os.O_ACCMODE
    return "read" if access == os.O_RDONLY else "write"
