"""The relay of a one-way stream: moves bytes from the source's pipe into the sink's, never back.

The rule this module keeps (law 5): it holds one end to read from and one to write to, and nothing
else; bytes go from pipe to pipe inside the kernel, so nothing that they say is looked at here.

Run as a helper (`node.relays`), with the word `drop` where bytes that the sink does not take in
time are to be lost; without it the source waits. It ends when the source's end is closed.
"""

from __future__ import annotations

import os
import select
import sys
import time

from skerry.supervisor.spawn import PR_SET_DUMPABLE, prctl

READ, WRITE = 3, 4
"""The numbers of its two descriptors: the source's pipe to read, the sink's to write."""

PIECE = 1 << 20
"""Most bytes of one move; a pipe holds less."""

MUCH = 16 << 10
REST_S = 0.0002
"""After a move of `MUCH` bytes more are on their way, and the relay rests so long that they come in
one piece: a process that is woken for each would take the time of the two machines. A short message
waits only behind a long one, and the pipes hold what comes in that time."""


def block(source: int, sink: int) -> None:
    """Move everything, at the pace of the sink."""
    while moved := os.splice(source, sink, PIECE):
        _rest(moved)


def drop(source: int, sink: int) -> None:
    """Move what the sink's pipe has room for, and lose the rest: the source never waits for it."""
    arrival = select.poll()
    arrival.register(source, select.POLLIN)
    while True:
        arrival.poll()
        try:
            moved = os.splice(source, sink, PIECE, flags=os.SPLICE_F_NONBLOCK)
            if not moved:
                return
            _rest(moved)
        except BlockingIOError:  # something has come, so it is the sink's pipe that is full
            os.read(source, PIECE)


def _rest(moved: int) -> None:
    if moved >= MUCH:
        time.sleep(REST_S)


def main() -> None:
    """Run the process until the source's end is closed."""
    prctl(PR_SET_DUMPABLE, 0)
    (drop if "drop" in sys.argv[1:] else block)(READ, WRITE)
