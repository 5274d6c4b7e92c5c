"""A guest's end of a port that comes and goes: how a service in a guest waits for its host.

The rule: a connection is what was read between one coming of the host and its going; nothing that
was read of one is taken for a part of the next. Waiting costs a look at each pause, as a port
without a host says at once that nothing comes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

PAUSE_S = 0.1
"""How long a port without a host is left alone, in seconds."""

CHUNK = 1 << 16
"""Most bytes of one read."""


class Connection(NamedTuple):
    """One coming of the host, at this descriptor."""

    port: int

    def read(self) -> bytes:
        """Return what came next, up to `CHUNK` bytes; nothing once the host has gone."""
        try:
            return os.read(self.port, CHUNK)
        except OSError:  # the port was taken away
            return b""

    def write(self, data: bytes | bytearray) -> None:
        """Send all of it, waiting for the host. Raises `OSError` where the port is no more."""
        left = memoryview(data)
        while left:
            left = left[os.write(self.port, left) :]


def connections(path: Path, pause: Callable[[float], None] = time.sleep) -> Iterator[Connection]:
    """Yield a connection each time that a host is there, for ever; one ends before the next."""
    while True:
        try:
            port = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # it is not there yet, or not any more
            pause(PAUSE_S)
            continue
        try:
            yield Connection(port)
        finally:
            os.close(port)
        pause(PAUSE_S)
