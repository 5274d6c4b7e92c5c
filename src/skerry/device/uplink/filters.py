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

_SOCKET, _CONNECT, _BIND, _ACCEPT4 = 41, 42, 49, 288
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
    Call(_BIND),  # to see whether an address is the host's; nobody is heard by it (no `listen`)
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

_PASST_PLAIN = (
    "read", "write", "close", "fstat", "lseek", "mprotect", "munmap", "brk", "rt_sigaction",
    "rt_sigprocmask", "rt_sigreturn", "pread64", "writev", "access", "madvise", "getpid",
    "recvfrom", "sendmsg", "recvmsg", "shutdown", "getsockname", "exit", "readlink", "getuid",
    "getgid", "geteuid", "getegid", "arch_prctl", "set_tid_address", "clock_gettime", "exit_group",
    "openat", "newfstatat", "set_robust_list", "timerfd_create", "timerfd_settime", "epoll_create1",
    "epoll_ctl", "epoll_wait", "epoll_pwait", "rseq", "getrandom", "pipe2", "splice", "tee",
    "restart_syscall", "execve",
)  # fmt: skip
# mmap connect bind recvmmsg sendmmsg; chdir mount umount2 pivot_root; capget capset setuid setgid
# setgroups
_PASST_MORE = (9, 42, 49, 299, 307, 80, 165, 166, 155, 125, 126, 105, 106, 116)
_UNSHARE, _FCNTL, _IOCTL, _PRCTL, _PRLIMIT, _GETSOCKOPT = 272, 72, 16, 157, 302, 55
_NEWUSER, _NEW_OTHERS = 0x10000000, 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000
_SOL_NETLINK = 270

PASST: Profile = (
    *(Call(ALWAYS[name]) for name in _PASST_PLAIN),
    *(Call(number) for number in _PASST_MORE),
    Call(SENDTO),
    # Of its own namespace, of AF_UNIX to name an interface, of netlink to ask for addresses.
    Call(
        _SOCKET,
        (
            *((Arg(0, socket.AF_INET), Arg(1, kind, 0xFFFFFFFF & ~_KIND)) for kind in (1, 2)),
            (Arg(0, socket.AF_UNIX), Arg(1, socket.SOCK_DGRAM, 0xFFFFFFFF & ~_KIND)),
            (Arg(0, socket.AF_NETLINK), Arg(2, 0)),
        ),
    ),
    # No new network namespace; the rest once, for the jail that it makes of itself.
    Call(_UNSHARE, ((Arg(0, _NEWUSER),), (Arg(0, _NEW_OTHERS),))),
    Call(_FCNTL, tuple((Arg(1, command),) for command in (0, 1, 2, 3, 4, 1030, 1031, 1032))),
    # SIOCGIFNAME, SIOCGIFINDEX, SIOCGIFHWADDR, TCGETS
    Call(_IOCTL, tuple((Arg(1, what),) for what in (0x8910, 0x8933, 0x8927, 0x5401))),
    # not dumpable, its own filter, bounding set, no_new_privs
    Call(_PRCTL, tuple((Arg(0, option),) for option in (4, 22, 23, 24, 38))),
    Call(_PRLIMIT, ((Arg(0, 0),),)),
    # Address in use, buffers, TCP's own, strict checks of netlink; never SO_PASSRIGHTS.
    Call(
        SETSOCKOPT,
        (
            *((Arg(1, socket.SOL_SOCKET), Arg(2, option)) for option in (2, 7, 8)),
            (Arg(1, socket.IPPROTO_TCP),),
            (Arg(1, _SOL_NETLINK),),
        ),
    ),
    Call(
        _GETSOCKOPT,
        (
            (Arg(1, socket.IPPROTO_TCP),),
            *((Arg(1, socket.SOL_SOCKET), Arg(2, option)) for option in (3, 4, 7, 8)),
        ),
    ),
)
"""Speaks frames to the guest and TCP and datagrams to the gate."""
