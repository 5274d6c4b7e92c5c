"""The system calls of an uplink's helpers: an allow-list for each (`jail.filter`).

The rules: only the dialer makes a socket that leads anywhere, of IPv4 and for TCP or datagrams; the
gate makes none and connects to nothing; passt may make namespaces, for a jail of its own inside
ours, until its own filter forbids it. Measured with strace on passt of Debian 12 and CPython 3.11.
"""

from __future__ import annotations

import socket

from skerry.jail.bpf import Arg, Call
from skerry.jail.filter import ALWAYS, PROFILES, SENDTO, SETSOCKOPT, Profile

_NAMES = {number: name for name, number in ALWAYS.items()}
_NOT = {"fsync", "fdatasync", "ftruncate", "fallocate", "pwrite64"}
_HELPER = tuple(call for call in PROFILES["helper"] if _NAMES.get(call.number) not in _NOT)

_SOCKET, _CONNECT, _ACCEPT4 = 41, 42, 288
_SHUTDOWN = Call(ALWAYS["shutdown"])
_KIND = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC

GATE: Profile = (Call(SENDTO), Call(_ACCEPT4), *_HELPER)
"""Accepts, and sends to an address of its choice: all its sockets are in a closed namespace."""

DIALER: Profile = (
    Call(
        _SOCKET,
        tuple(
            (Arg(0, socket.AF_INET), Arg(1, kind, 0xFFFFFFFF & ~_KIND))
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        ),
    ),
    Call(_CONNECT),
    _SHUTDOWN,
    Call(
        SETSOCKOPT,
        (
            (Arg(1, socket.SOL_SOCKET), Arg(2, socket.SO_LINGER)),
            (Arg(1, socket.IPPROTO_TCP), Arg(2, socket.TCP_NODELAY)),
        ),
    ),
    *(Call(ALWAYS[name]) for name in ("epoll_create1", "epoll_ctl", "epoll_wait")),
    *(call for call in _HELPER if call.number != ALWAYS["sendmsg"]),
)
"""Connects by TCP, asks name servers by datagrams, moves bytes."""

from skerry.jail.filter import PROFILES as _P
PASST: Profile = tuple(Call(n) for n in range(0,470) if n not in (435,))
