"""Make pairs of connected streams that cannot carry descriptors (law 1).

A Unix pair qualifies where the kernel can switch the passing of descriptors off for it
(`SO_PASSRIGHTS`, Linux 6.16); the jail's filter keeps the machines from switching it on again.
Elsewhere a TCP pair in a network namespace of its own does, by nature.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from typing import Literal

from skerry.errors import LimitReached, TransportError
from skerry.wire.rights import SO_PASSRIGHTS

KEEPER_TIMEOUT_S = 5.0
"""How long the maker of TCP pairs may take for one before the bridge is refused."""

QUEUE_BYTES = 1 << 20
"""What a Unix stream may queue each way, as far as the host lets it (`net.core.wmem_max`). The
more, the less often two machines wait for each other: the kernel's own 208 KiB cost some 5 % of
the throughput. At the limit the writer waits."""

Transport = Literal["auto", "unix", "tcp"]
Pair = tuple[socket.socket, socket.socket]

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def unix_pair(queue: int = QUEUE_BYTES) -> Pair:
    """Make a Unix stream pair that no descriptor can pass, with this queue (0: the kernel's own).

    Raises `OSError` where the kernel has no `SO_PASSRIGHTS`: then nothing was made.
    """
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        for end in pair:
            end.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
            if queue:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, queue)
    except OSError:
        close_pair(pair)
        raise
    return pair


def unix_waiting(folder: Path) -> Pair:
    """Make a Unix listener and a socket that waits at it, neither of which takes a descriptor.

    The listener's name lies in a folder that only its owner may enter, and is gone on return, so
    nobody else can ever connect. Raises `OSError`; then nothing was made.
    """
    listener, connected = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    # By way of the descriptor, because a socket's path must be short.
    name = f"/proc/self/fd/{opened}/{secrets.token_hex(8)}"
    try:
        for end in (listener, connected):
            end.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_BYTES)
        listener.bind(name)
        listener.listen(1)
        try:
            connected.connect(name)
        finally:
            Path(name).unlink()
    except OSError:
        close_pair((listener, connected))
        raise
    finally:
        os.close(opened)
    return listener, connected


def unix_pair_holds() -> bool:
    """Try for real whether a descriptor can pass a `unix_pair`, in both directions."""
    try:
        one, other = unix_pair()
    except OSError:
        return False
    with one, other:
        return not (passes_descriptor(one, other) or passes_descriptor(other, one))


def passes_descriptor(sender: socket.socket, receiver: socket.socket) -> bool:
    """Send a descriptor and say whether one arrived. Blocks at neither end."""
    memory = os.memfd_create("probe")
    try:
        socket.send_fds(sender, [b"?"], [memory], socket.MSG_DONTWAIT)
    except OSError:
        return False
    finally:
        os.close(memory)
    try:
        _, got, _, _ = socket.recv_fds(receiver, 1, 1, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    for descriptor in got:
        os.close(descriptor)
    return bool(got)


def close_pair(pair: Pair) -> None:
    """Close both ends."""
    for end in pair:
        end.close()


class TcpPairs:
    """The process that makes TCP pairs (`netpair.py`): started at the first pair, then kept."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def pair(self) -> Pair:
        """Make a TCP pair, each in a namespace of its own. Raises `OSError`, `TransportError`."""
        return self._ask(b"p")

    def waiting(self) -> Pair:
        """Make a TCP listener and a socket that waits at it, as `pair` does."""
        return self._ask(b"w")

    def _ask(self, what: bytes) -> Pair:
        control = self._control or self._start()
        try:
            control.sendall(what)
            answer, ends, _, _ = socket.recv_fds(control, 256, 2)
        except OSError:
            self.close()
            raise
        sockets = [socket.socket(fileno=end) for end in ends]
        if answer != b"+" or len(sockets) != 2:
            for end in sockets:
                end.close()
            self.close()
            raise TransportError(
                f"no TCP pair: {answer[1:].decode(errors='replace') or 'its maker has ended'}",
                fix="the host must allow network namespaces (user namespaces for ordinary users)",
            )
        return sockets[0], sockets[1]

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        script = Path(__file__).with_name("netpair.py")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(script)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
            )
        ours.settimeout(KEEPER_TIMEOUT_S)
        self._control = ours
        return ours

    def close(self) -> None:
        """End the maker; pairs that it made live on. Idempotent."""
        control, self._control = self._control, None
        process, self._process = self._process, None
        if control is not None:
            control.close()
        if process is not None:
            process.kill()
            process.wait()


def refuse(error: OSError) -> LimitReached | TransportError:
    """Name an operating system's refusal to make a pair as the denial that it is."""
    if error.errno in _OUT_OF_DESCRIPTORS:
        return LimitReached(
            f"no descriptors or memory left for another stream: {error.strerror}",
            fix="raise the open-files limit (RLIMIT_NOFILE) or cut unused channels",
        )
    return TransportError(f"the stream could not be made: {error}")
