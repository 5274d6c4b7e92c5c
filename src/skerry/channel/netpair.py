"""Make TCP pairs, each over the loopback of a network namespace with nothing else in it.

The rule it keeps (law 1): a pair made here cannot carry descriptors, by the nature of TCP, and
leads nowhere else: the namespace dies with the pair. Run as a script of its own (`python -I -S`),
so that the node never forks itself and never enters a namespace.

On descriptor 0 it has a Unix stream: the byte `p` asks for a pair, `w` for a listener and a socket
that waits at it; the answer is `+` with the two, or `-` and the reason. It ends when the stream
does.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _unshare(flags: int) -> None:
    if _libc.unshare(flags) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"unshare: {os.strerror(error)}")


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Enter a fresh network namespace and connect two TCP sockets over its loopback."""
    listener, one = make_waiting()
    with listener:
        other, _ = listener.accept()
    return one, other


def make_waiting() -> tuple[socket.socket, socket.socket]:
    """Enter a fresh network namespace; make a listener on its loopback, and connect to it.

    What is accepted has the listener's options.
    """
    _unshare(CLONE_NEWNET)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    fcntl.ioctl(listener, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    one = socket.create_connection(listener.getsockname())
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener, one


def _answer(control: socket.socket, what: bytes) -> None:
    try:
        one, other = make_waiting() if what == b"w" else make_pair()
    except OSError as error:
        control.sendall(b"-" + str(error).encode()[:200])
        return
    with one, other:
        socket.send_fds(control, [b"+"], [one.fileno(), other.fileno()])


def main() -> None:
    """Answer requests until the asker is gone."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.geteuid() != 0:
        _unshare(CLONE_NEWUSER)
    _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    with socket.socket(fileno=0) as control:
        while what := control.recv(1):
            _answer(control, what)


if __name__ == "__main__":
    main()
