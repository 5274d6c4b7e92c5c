"""Things of the host that a jailed process must not reach, held out to be reached.

The rule: nothing that is meant to be here touches them, so whatever does has left its jail. They
are open to every uid: only the jail is in the way.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import socket
import struct
import tempfile
from pathlib import Path

import msgspec

from tests.hostile.observer.outcome import Finding

_TOUCHED = 0x2 | 0x4 | 0x20 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400
"""IN_MODIFY, IN_ATTRIB, IN_OPEN, and whatever comes into a directory or leaves it. Not IN_ACCESS:
who reads has opened, and we read through a descriptor from before."""
_LISTED = 0x20 | 0x40000000
"""A directory was opened (IN_OPEN, IN_ISDIR), as whatever searches the host does."""
_EVENT = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class Places(msgspec.Struct, frozen=True):
    """Where the baits are: a file, a Unix socket, a port of 127.0.0.1, an abstract name."""

    file: str
    socket: str
    port: int
    abstract: str


class Baits:
    """A file, a directory and three listening sockets, watched. Close it when done."""

    def __init__(self, port: int = 0) -> None:
        self._exits = contextlib.ExitStack()
        folder = Path(tempfile.mkdtemp(prefix="skerry-bait-", dir="/var/tmp"))
        self._exits.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o777)
        self._file = folder / "canary"
        self._content = secrets.token_bytes(64)
        self._file.write_bytes(self._content)
        self._file.chmod(0o666)
        abstract = f"skerry-bait-{secrets.token_hex(8)}"
        self._sockets = [
            self._listen(socket.AF_UNIX, str(folder / "socket")),
            self._listen(socket.AF_UNIX, f"\0{abstract}"),
            self._listen(socket.AF_INET, ("127.0.0.1", port)),
        ]
        (folder / "socket").chmod(0o666)
        self.places = Places(
            str(self._file), str(folder / "socket"), self._sockets[2].getsockname()[1], abstract
        )
        self._held = os.open(self._file, os.O_RDONLY)
        self._exits.callback(os.close, self._held)
        self._watch = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._exits.callback(os.close, self._watch)
        for path in (folder, self._file):
            if _libc.inotify_add_watch(self._watch, os.fsencode(path), _TOUCHED) < 0:
                raise OSError(ctypes.get_errno(), f"{path} can't be watched")

    def _listen(self, family: int, address: object) -> socket.socket:
        sock = self._exits.enter_context(socket.socket(family))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)  # type: ignore[arg-type] # of either family
        sock.listen()
        sock.setblocking(False)
        return sock

    def look(self) -> list[Finding]:
        """Return what was touched since the last look."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while untrusted := os.read(self._watch, 1 << 16):
                found += [f"the bait {name} was touched" for name in _names(untrusted)]
        if os.pread(self._held, 4096, 0) != self._content:
            found.append(f"the bait {self._file.name} was changed")
        for sock in self._sockets:
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.accept()[0].close()
                    found.append(f"somebody connected to {sock.getsockname()!r}")
        return [Finding("reached", words) for words in dict.fromkeys(found)]

    def close(self) -> None:
        """Take the baits away."""
        self._exits.close()


def _names(untrusted: bytes) -> list[str]:
    """Return the names of what a number of events of the kernel are about."""
    found, at = [], 0
    while at + _EVENT.size <= len(untrusted):
        _, mask, _, length = _EVENT.unpack_from(untrusted, at)
        at += _EVENT.size
        name = untrusted[at : at + length].rstrip(b"\0")
        if mask & _LISTED != _LISTED:
            found.append(ascii(name.decode(errors="replace"))[1:-1] if name else "itself")
        at += length
    return found
