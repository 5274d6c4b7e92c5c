"""Disks wired by hand for tests: a storage daemon without a jail, and connections to it."""

from __future__ import annotations

import socket
import struct
import subprocess
import tempfile
from pathlib import Path

DAEMON = "/usr/bin/qemu-storage-daemon"


class BareDisk:
    """One daemon that serves an image over NBD, as one starts it by hand."""

    def __init__(self, image: Path, *, read_only: bool = False, driver: str = "raw") -> None:
        """Start it; `end` is a connected socket for a QEMU."""
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            path = f"{folder}/nbd"
            listener.bind(path)
            listener.listen(1)
            number = listener.fileno()
            given = "on" if read_only else "off"
            writable = "off" if read_only else "on"
            file = f"driver=file,filename={image},locking=off,discard=unmap"
            file += f",read-only={given},node-name=file"
            # In a session of its own, as a service manager starts it: the scheduler of a busy host
            # gives each session its share, and client and daemon in one would wait less.
            argv = ["setpriv", "--pdeathsig", "KILL", DAEMON, "--blockdev", file]
            argv += [
                "--blockdev",
                f"driver={driver},file=file,node-name=d,read-only={given},discard=unmap",
            ]
            argv += ["--nbd-server", f"addr.type=fd,addr.str={number}"]
            argv += ["--export", f"type=nbd,id=e,node-name=d,name=disk,writable={writable}"]
            self.process = subprocess.Popen(argv, pass_fds=(number,), start_new_session=True)
            self.end = socket.socket(socket.AF_UNIX)
            self.end.connect(path)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self.end.close()


class Nbd:
    """A client of a disk: what a QEMU says, and what one in an attacker's hands could."""

    READ, WRITE, FLUSH, TRIM = 0, 1, 3, 4

    def __init__(self, descriptor: int) -> None:
        """Take the connected socket over and negotiate; `size` and `flags` are the export's."""
        self.sock = socket.socket(fileno=descriptor)
        self.sock.settimeout(20)
        assert self._take(16) == b"NBDMAGICIHAVEOPT"
        self._take(2)
        self.sock.sendall(struct.pack(">I", 3))
        name = b"disk"
        go = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self.sock.sendall(b"IHAVEOPT" + struct.pack(">II", 7, len(go)) + go)
        self.size = self.flags = -1
        while True:
            _, _, kind, long = struct.unpack(">QIII", self._take(20))
            data = self._take(long)
            if kind == 3 and data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:12])
            elif kind == 1:
                break
            elif kind & 1 << 31:
                raise OSError(f"NBD option refused: {data!r}")

    @property
    def read_only(self) -> bool:
        """Whether the export says so."""
        return bool(self.flags & 2)

    def send(self, kind: int, offset: int, long: int, data: bytes = b"") -> None:
        """Send one request."""
        self.sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 7, offset, long) + data)

    def answer(self, long: int = 0) -> tuple[int, bytes]:
        """Take one answer: the error, 0 for none, and so many bytes if there is none."""
        magic, error, _ = struct.unpack(">IIQ", self._take(16))
        assert magic == 0x67446698
        return error, b"" if error else self._take(long)

    def write(self, offset: int, data: bytes) -> int:
        """Write, and return the error."""
        self.send(self.WRITE, offset, len(data), data)
        return self.answer()[0]

    def read(self, offset: int, long: int) -> bytes:
        """Read; raises `OSError`."""
        self.send(self.READ, offset, long)
        error, data = self.answer(long)
        if error:
            raise OSError(error, "NBD")
        return data

    def flush(self) -> int:
        """Have all written out."""
        self.send(self.FLUSH, 0, 0)
        return self.answer()[0]

    def close(self) -> None:
        """Hang up."""
        self.sock.close()

    def _take(self, long: int) -> bytes:
        got = b""
        while len(got) < long:
            piece = self.sock.recv(long - len(got))
            if not piece:
                raise EOFError("the disk hung up")
            got += piece
        return got
