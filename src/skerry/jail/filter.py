"""The system calls that a jailed program may make, as data: an allow-list for each profile.

The rules: nothing that makes a socket, a process, a lock, a watch, a key, an IPC object or a
descriptor for another process; no way to switch descriptor passing on, nor to ask a socket for its
peer's pidfd; no way to outlive the parent. Measured with strace on QEMU 7.2 and 10.0, so what is
not needed is not there; `helper` on CPython 3.11, for this project's own helpers, and `relay` for
the one that only moves bytes from one pipe to another.
"""

from __future__ import annotations

import errno
import os
import platform

from skerry.jail.bpf import Arg, Call, assemble

ALWAYS = {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mprotect": 10,
    "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21, "sched_yield": 24,
    "mremap": 25, "madvise": 28, "dup": 32, "dup2": 33, "nanosleep": 35, "getpid": 39,
    "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "shutdown": 48, "getsockname": 51,
    "getpeername": 52, "exit": 60, "uname": 63, "fsync": 74, "fdatasync": 75,
    "ftruncate": 77, "getcwd": 79, "readlink": 89, "sysinfo": 99, "getuid": 102, "getgid": 104,
    "geteuid": 107, "getegid": 108, "getppid": 110, "rt_sigpending": 127, "rt_sigtimedwait": 128,
    "sigaltstack": 131, "arch_prctl": 158, "gettid": 186, "futex": 202,
    "sched_getaffinity": 204, "set_tid_address": 218, "fadvise64": 221, "clock_gettime": 228,
    "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "openat": 257,
    "newfstatat": 262, "ppoll": 271, "set_robust_list": 273, "fallocate": 285,
    "timerfd_settime": 286, "eventfd2": 290, "dup3": 292, "pipe2": 293, "preadv": 295,
    "pwritev": 296, "getrandom": 318, "memfd_create": 319, "membarrier": 324, "statx": 332,
    "timerfd_create": 283, "signalfd4": 289, "epoll_wait": 232, "epoll_ctl": 233,
    "epoll_create1": 291, "epoll_pwait": 281, "getdents64": 217, "rseq": 334,
    "gettimeofday": 96, "time": 201, "getrusage": 98, "timer_create": 222, "timer_settime": 223,
    "timer_gettime": 224, "timer_getoverrun": 225, "timer_delete": 226, "tee": 276, "splice": 275,
    "rt_sigsuspend": 130, "fstatfs": 138, "restart_syscall": 219, "readlinkat": 267,
    "getcpu": 309, "preadv2": 327, "pwritev2": 328, "faccessat2": 439,
    # The jail's root holds one program; what it executes it could as well load.
    "execve": 59,
}  # fmt: skip
"""Calls that reach nothing but the process itself and descriptors that it already holds."""

_HOT = ("futex", "ppoll", "read", "write", "recvmsg", "sendmsg", "clock_gettime")

CLONE, CLONE3, FCNTL, IOCTL, MMAP, PRCTL, PRLIMIT, SENDTO = 56, 435, 72, 16, 9, 157, 302, 44
SECCOMP, SETSOCKOPT, GETSOCKOPT, TGKILL, MSYNC = 317, 54, 55, 234, 26

_THREAD = 0x00010000 | 0x00000100 | 0x00000800  # CLONE_THREAD | CLONE_VM | CLONE_SIGHAND
_CLONE_FORBIDDEN = 0x7E020000 | 0x00004000 | 0x00002000 | 0x00001000 | 0x80
_FCNTL = (0, 1, 2, 3, 4, 1030, 1032, 1033, 1034)  # duplicates, flags, seals, pipe size
_PRCTL = (15, 16, 23, 29, 38, 39)  # names, bounding set, timer slack, no_new_privs
_SET_VMA_NAME = 0x53564D41
_IOCTL = (0x5401, 0x5421, 0x541B, 0x5450, 0x5451)  # TCGETS FIONBIO FIONREAD FIONCLEX FIOCLEX
_KVM_TYPE = 0xAE00
# SO_TYPE, SO_ERROR, buffers, SO_ACCEPTCONN, SO_PROTOCOL, SO_DOMAIN: what a socket is, nothing of
# its peer. SO_PEERPIDFD (77) would be a descriptor of the node.
_ASKED_OPTIONS = (3, 4, 7, 8, 30, 38, 39)
_SOCKET_OPTIONS = (7, 8)  # SO_SNDBUF, SO_RCVBUF; never SO_PASSRIGHTS (83) or SO_PASSCRED

_CHECKED = (
    # Threads only: not a process, not a namespace, no pidfd, no ptrace of the child.
    Call(CLONE, ((Arg(0, _THREAD, _THREAD | _CLONE_FORBIDDEN),),)),
    # No locks, leases, directory watches or signals of readiness to others.
    Call(FCNTL, tuple((Arg(1, command),) for command in _FCNTL)),
    Call(MMAP),
    Call(MSYNC),
    Call(PRCTL, tuple((Arg(0, option),) for option in (*_PRCTL, _SET_VMA_NAME))),
    Call(PRLIMIT, ((Arg(0, 0), Arg(2, 0, (1 << 64) - 1, wide=True)),)),
    # send(), not to an address of the caller's choice.
    Call(SENDTO, ((Arg(4, 0, (1 << 64) - 1, wide=True),),)),
    # A filter of its own (QEMU's -sandbox), without a listener that would be a new descriptor.
    Call(SECCOMP, ((Arg(0, 1), Arg(1, 0, 8)), (Arg(0, 2),), (Arg(0, 0), Arg(1, 1)))),
    Call(SETSOCKOPT, tuple((Arg(1, 1), Arg(2, option)) for option in _SOCKET_OPTIONS)),
    Call(GETSOCKOPT, tuple((Arg(1, 1), Arg(2, option)) for option in _ASKED_OPTIONS)),
    # abort() and the wake-ups of its own threads: the program is process 1 of its namespace.
    Call(TGKILL, ((Arg(0, 1),),)),
)


def _ioctl(kvm: bool) -> Call:
    rules = tuple((Arg(1, request),) for request in _IOCTL)
    return Call(IOCTL, (*rules, (Arg(1, _KVM_TYPE, 0xFF00),)) if kvm else rules)


def _calls(kvm: bool) -> tuple[Call, ...]:
    ordered = [*_HOT, *(name for name in ALWAYS if name not in _HOT)]
    return (*(Call(ALWAYS[name]) for name in ordered), _ioctl(kvm), *_CHECKED)


_HELPER = (
    "read", "write", "close", "fstat", "poll", "lseek", "mprotect", "munmap", "brk", "rt_sigaction",
    "rt_sigprocmask", "rt_sigreturn", "pread64", "pwrite64", "access", "mremap", "madvise",
    "getpid", "recvfrom", "sendmsg", "recvmsg", "getsockname", "exit", "uname", "fsync",
    "fdatasync", "ftruncate", "readlink", "sysinfo", "getuid", "geteuid", "arch_prctl", "gettid",
    "futex", "set_tid_address", "clock_gettime", "clock_nanosleep", "exit_group", "newfstatat",
    "set_robust_list", "fallocate", "getrandom", "getdents64", "rseq", "restart_syscall", "execve",
)  # fmt: skip
_OPENAT = 257
_CHANGES = 0o3 | 0o100 | 0o1000 | 0o20000000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_TMPFILE


_NOT_RELAY = (
    "recvfrom", "sendmsg", "recvmsg", "getsockname", "fsync", "fdatasync", "ftruncate", "fallocate",
    "pwrite64",
)  # fmt: skip
_RELAY = (*(name for name in _HELPER if name not in _NOT_RELAY), "splice")


def _helper_calls(names: tuple[str, ...], checked: set[int]) -> tuple[Call, ...]:
    """One thread, which loads its modules and uses what it was given."""
    return (
        *(Call(ALWAYS[name]) for name in names),
        *(call for call in _CHECKED if call.number in checked),
        _ioctl(kvm=False),
        Call(_OPENAT, ((Arg(2, 0, _CHANGES),),)),
        Call(PRCTL, ((Arg(0, 4), Arg(1, 0)),)),  # not dumpable
    )


Profile = tuple[Call, ...]
"""What a jailed program may call; all else it may not."""

PROFILES: dict[str, Profile] = {
    "qemu": _calls(kvm=False),
    "qemu-kvm": _calls(kvm=True),
    "helper": _helper_calls(_HELPER, {FCNTL, MMAP, PRLIMIT, SENDTO, GETSOCKOPT}),
    "relay": _helper_calls(_RELAY, {FCNTL, MMAP, PRLIMIT}),
}
"""Profile name to what it allows."""


def program(profile: str | Profile) -> bytes:
    """Return the BPF program of a profile. Raises KeyError for an unknown one, and
    NotImplementedError on a processor that is not x86-64."""
    calls = PROFILES[profile] if isinstance(profile, str) else profile
    if platform.machine() != "x86_64":
        raise NotImplementedError("the system call filter is written for x86_64 only")
    # ENOSYS makes the C library fall back to clone, whose flags can be checked.
    return assemble(calls, {CLONE3: errno.ENOSYS}, errno.EPERM)


def open_filter(profile: str | Profile) -> int:
    """Return a new descriptor that bwrap reads the filter from: one for each start."""
    fd = os.memfd_create("filter")
    os.write(fd, program(profile))
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
