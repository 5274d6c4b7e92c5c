"""Fork and execute one program with exactly the descriptors it was given.

The rules: the child holds the descriptors named and nothing else (0, 1 and 2 are /dev/null where
not named); it is killed when the thread that forked it ends; a failure before the program runs is
told through a close-on-exec pipe, so it is never mistaken for the program's own end.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
HIGHEST_FD = 1023
"""The highest descriptor number that a child may ask for."""

_libc = ctypes.CDLL(None, use_errno=True)


class Order(NamedTuple):
    """What to run: absolute program path first in `argv`; `fds` maps child numbers to ours."""

    argv: Sequence[str]
    fds: Mapping[int, int]
    env: Mapping[str, str]
    cgroup: str = ""
    session: bool = True


class Started(NamedTuple):
    """A child that was forked; `errors` ends empty once its program runs."""

    pid: int
    pidfd: int
    errors: int


def prctl(option: int, value: int) -> None:
    """Call prctl(2). Raises OSError."""
    if _libc.prctl(option, value, 0, 0, 0):
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))


def spawn(order: Order) -> Started:
    """Fork and execute. Call only from the main thread of a process with one thread.

    Raises ValueError for a wrong order, OSError when the kernel refuses to fork.
    """
    if not order.argv or not order.argv[0].startswith("/"):
        raise ValueError("a program is named by its absolute path")
    if any(not 0 <= number <= HIGHEST_FD for number in order.fds):
        raise ValueError(f"a child's descriptors are numbered 0 to {HIGHEST_FD}")
    errors, child_errors = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    parent = os.getpid()
    try:
        pid = os.fork()
        if pid == 0:
            _become(order, parent, child_errors)
    except OSError:
        os.close(errors)
        raise
    finally:
        os.close(child_errors)
    try:
        return Started(pid, os.pidfd_open(pid), errors)
    except OSError:  # nobody could watch it
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(errors)
        raise


def _become(order: Order, parent: int, errors: int) -> NoReturn:
    """Turn the forked child into the program; never returns."""
    try:
        if order.session:
            os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(127)
        for directory in filter(None, order.cgroup.split(":")):
            with open(f"{directory}/cgroup.procs", "w") as file:  # noqa: PTH123 no pathlib here
                file.write("0")
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        errors = _arrange(order.fds, errors)
        os.execve(order.argv[0], list(order.argv), dict(order.env))
    except BaseException as error:
        errno = error.errno if isinstance(error, OSError) else 0
        os.write(errors, f"{errno or 0} {error}".encode()[:4000])
    finally:
        os._exit(127)


def _arrange(fds: Mapping[int, int], errors: int) -> int:
    """Give the wanted descriptors their numbers and close all others; return the error pipe's."""
    above = max([2, *fds]) + 1
    errors = fcntl.fcntl(errors, fcntl.F_DUPFD_CLOEXEC, above)
    # Copies above every wanted number first: a wanted number may be another one's source.
    copies = {n: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for n, fd in fds.items()}
    null = fcntl.fcntl(os.open("/dev/null", os.O_RDWR), fcntl.F_DUPFD_CLOEXEC, above)
    for standard in (0, 1, 2):
        copies.setdefault(standard, null)
    for number, copy in copies.items():
        os.dup2(copy, number, inheritable=True)
    last = -1
    for kept in sorted([*copies.keys(), errors]):
        if last + 1 < kept:  # Python takes closerange(0, 0) for all of them
            os.closerange(last + 1, kept)
        last = kept
    os.closerange(last + 1, 1 << 30)
    return errors
