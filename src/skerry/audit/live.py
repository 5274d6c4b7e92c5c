"""The live segment as the node holds it: the descriptor that its writer has too.

The rule: the writer gets its next segment only when this one is as long as it should be, since
each one may cost the oldest; and only from the node, which alone opens files.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from skerry.audit.chain import Link
from skerry.audit.messages import Begin
from skerry.audit.opening import open_again
from skerry.audit.record import Record
from skerry.audit.segments import Opened, Segments


class Live:
    """The live segment of one trail, open or not (`fd` is -1)."""

    def __init__(self, segments: Segments, rotate: int) -> None:
        """A segment is closed at `rotate` bytes; 0 for never."""
        self.path: Path = segments.path
        self.fd = -1
        self._segments = segments
        self._rotate = rotate
        self._first = 0

    async def open(self, reached: Link) -> tuple[Opened, Sequence[Record]]:
        """Open it as `open_again` does, and keep it open."""
        opened, written = await asyncio.to_thread(open_again, self._segments, reached)
        self.fd, self._first = opened.fd, opened.first
        return opened, written

    def begin(self, opened: Opened) -> Begin:
        """Return the first order to its writer."""
        link = opened.link
        rest = opened.first, opened.continues, self._rotate
        return Begin(opened.size, link.n, link.hash, *rest)

    def is_full(self) -> bool:
        """Tell whether it is long enough to be followed by another."""
        return bool(self._rotate) and os.fstat(self.fd).st_size >= self._rotate

    async def follow(self, link: Link) -> str:
        """Close it behind this record, begin the next, and return the fields that begin that.

        Raises `OSError`: it is still the live one, or was closed meanwhile.
        """
        fd, continues = await asyncio.to_thread(self._segments.follow, self._first, link)
        if self.fd < 0:
            self._segments.close(fd)
            raise OSError("the writer ended meanwhile")
        self.close()
        self.fd, self._first = fd, link.n + 1
        return continues

    def begun(self) -> None:
        """Let retention do what the segment's first record says. Does not wait for the disk."""
        asyncio.get_running_loop().run_in_executor(None, self._segments.begun)

    def close(self) -> None:
        """Close the node's descriptor. Idempotent."""
        if self.fd >= 0:
            self._segments.close(self.fd)
            self.fd = -1
