"""Disks wired by hand for tests: a storage daemon without a jail, and connections to it."""

from __future__ import annotations

import socket
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
            argv = [DAEMON, "--blockdev", file]
            argv += [
                "--blockdev",
                f"driver={driver},file=file,node-name=d,read-only={given},discard=unmap",
            ]
            argv += ["--nbd-server", f"addr.type=fd,addr.str={number}"]
            argv += ["--export", f"type=nbd,id=e,node-name=d,name=disk,writable={writable}"]
            self.process = subprocess.Popen(argv, pass_fds=(number,))
            self.end = socket.socket(socket.AF_UNIX)
            self.end.connect(path)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self.end.close()
