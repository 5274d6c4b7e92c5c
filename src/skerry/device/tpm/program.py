"""The program that is a TPM, and its jail: swtpm with one socket, its key, and one directory.

The rules: it hears one socket, over which no descriptor passes and which is its machine's alone; it
is told its key by a pipe, never by its command line or environment; the only files that it can
write are those of its own TPM. It has no control channel, so nobody can have it start again, or
ask for its state, but who can start the process.
"""

from __future__ import annotations

from pathlib import Path

from skerry.device.helper import Program
from skerry.jail.bpf import Arg, Call
from skerry.jail.confinement import Limits
from skerry.jail.filter import (
    ALWAYS,
    FCNTL,
    GETSOCKOPT,
    IOCTL,
    MMAP,
    PRCTL,
    PRLIMIT,
    SECCOMP,
    Profile,
)
from skerry.jail.root import build

BINARY = Path("/usr/bin/swtpm")
STATE = "/state"
"""Where the jail shows the directory of its TPM."""

DATA_FD, KEY_FD = 3, 4
"""Its descriptors: the socket of the commands, and the pipe that tells the key. 2 is its words."""

LIMITS = Limits(memory=64 << 20, pids=2)
"""What one swtpm may use: bytes of memory, processes and threads. It takes some 5 MiB."""

_NAMES = (
    "read", "write", "writev", "close", "fstat", "newfstatat", "pread64", "lseek", "poll",
    "mprotect", "munmap", "mremap", "madvise", "brk", "rt_sigaction", "rt_sigprocmask",
    "rt_sigreturn", "access", "getpid", "getuid", "geteuid", "getgid", "getegid", "exit",
    "exit_group", "uname", "ftruncate", "fsync", "sysinfo", "arch_prctl", "gettid", "futex",
    "set_tid_address", "set_robust_list", "clock_gettime", "clock_nanosleep", "nanosleep",
    "openat", "pipe2", "getrandom", "rseq", "restart_syscall", "execve",
)  # fmt: skip
_RENAME, _UNLINK, _FCHMOD = 82, 87, 91
_F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL, _F_SETLK = 1, 2, 3, 4, 6

PROFILE: Profile = (
    *(Call(ALWAYS[name]) for name in _NAMES),
    Call(MMAP),
    Call(_RENAME),
    Call(_UNLINK),
    Call(_FCHMOD),
    # The lock on its own directory. On the shared root it can't be seen by another jail: what
    # conflicts with a lock there needs a descriptor for writing, and to ask is F_GETLK.
    Call(FCNTL, tuple((Arg(1, c),) for c in (_F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL, _F_SETLK))),
    Call(IOCTL, ((Arg(1, 0x5401),),)),
    Call(PRLIMIT, ((Arg(0, 0), Arg(2, 0, (1 << 64) - 1, wide=True)),)),
    Call(PRCTL, ((Arg(0, 38),),)),  # no_new_privs, before its own filter
    Call(SECCOMP, ((Arg(0, 1), Arg(1, 0, 8)), (Arg(0, 2),), (Arg(0, 0), Arg(1, 1)))),
    Call(GETSOCKOPT, ((Arg(1, 1), Arg(2, 3)),)),  # SO_TYPE
)
"""What a swtpm may call. Measured with strace on swtpm 0.7.1."""


def swtpm_root(directory: Path) -> Path:
    """Return the root of its jail. Raises JailError where the package swtpm is not installed."""
    return build(directory, "swtpm", [BINARY], mount_points=(f"{STATE}/",))


def swtpm(root: Path, state: Path, data: int, key: int, words: int) -> Program:
    """Return the program over the TPM in `state`, with these descriptors of ours."""
    argv = [
        str(BINARY),
        *("socket", "--tpm2", "--fd", str(DATA_FD)),
        *("--tpmstate", f"dir={STATE},mode=0660"),
        *("--key", f"fd={KEY_FD},format=hex,mode=aes-256-cbc"),
        *("--flags", "not-need-init", "--seccomp", "action=kill"),
    ]
    fds = {2: words, DATA_FD: data, KEY_FD: key}
    writable = ((str(state), STATE),)
    return Program(argv, fds, PROFILE, LIMITS, root, writable=writable, as_domain=True)
