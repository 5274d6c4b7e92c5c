"""What a hostile program would try, run inside a jail; prints what worked as one line of words.

The rule: an attempt only asks the kernel; nothing here knows which layer should stop it. A script
of its own, given to the jail's interpreter as text, so it imports little and uses raw system calls.

    attempts.py HOST_PID HOST_UID PORT NAME HOST_FILE KEYRING SHM_KEY PAIR_A PAIR_B
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
import sys
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
AF_UNIX, AF_INET, AF_VSOCK, STREAM = 1, 2, 40, 1
SOL_SOCKET, SCM_RIGHTS, SO_PASSRIGHTS = 1, 1, 83
SO_PASSPIDFD, SO_PEERPIDFD = 76, 77
CLONE_NEWUSER = 0x10000000
SHARED = sys.executable or "/usr/bin/python3"


def call(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Make a system call. Raises OSError."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def connect(family: int, address: bytes) -> None:
    """Connect a stream socket."""
    call(42, call(41, family, STREAM, 0), address, len(address))


def fork() -> None:
    """Make a process, which ends at once."""
    if call(57) == 0:
        _libc._exit(0)


def take_descriptor() -> None:
    """Copy a descriptor through a pidfd: of this very process, so only the call is in question."""
    call(438, call(434, os.getpid(), 0), 1, 0)


def ptrace() -> None:
    """Reach ptrace: detach from oneself, which is refused as no tracee only behind the filter."""
    try:
        call(101, 17, os.getpid(), 0, 0)
    except ProcessLookupError:
        return


def write_file() -> None:
    """Make a file in the root, or in the host's /tmp."""
    try:
        os.open("/", os.O_TMPFILE | os.O_RDWR)
    except OSError:
        os.open("/tmp", os.O_TMPFILE | os.O_RDWR)


def watch() -> None:
    """Watch a file of the shared root for being opened."""
    call(254, call(294, 0), SHARED.encode(), 0x20)


def lock(exclusive: bool) -> None:
    """Lock a file of the shared root: flock, or a record lock."""
    fd = os.open(SHARED, os.O_RDONLY)
    if exclusive:
        call(73, fd, 2 | 4)
    else:
        call(72, fd, 37, struct.pack("hhqqi4x", 0, 0, 0, 1, 0))


def pass_descriptor(a: int, b: int) -> None:
    """Send a descriptor over a channel and receive it at the other end."""
    # One message of one byte with SCM_RIGHTS: msghdr, iovec and cmsghdr laid out by hand.
    data = ctypes.create_string_buffer(b"x", 1)
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(data), 1)
    control = ctypes.create_string_buffer(struct.pack("QiiI4x", 20, SOL_SOCKET, SCM_RIGHTS, a))
    message = (ctypes.c_uint64 * 7)(
        0, 0, ctypes.addressof(vector), 1, ctypes.addressof(control), 24, 0
    )
    pointer = ctypes.addressof(message)
    call(46, a, pointer, 0)
    ctypes.memset(control, 0, 24)
    call(47, b, pointer, 0x40)
    if message[5] < 20:
        raise OSError(1, "no descriptor arrived")


def make_shared() -> None:
    """Make a System V memory. In the host's namespace it would outlive us, and hold our keyring.

    The kernel gives a uid 200 keyrings; when all are held no jail can be made any more.
    """
    made = call(29, 0, 4096, 0o1600)
    with contextlib.suppress(OSError):
        call(31, made, 0, None)


def make_queue() -> None:
    """Make a message queue, which would outlive us too, and keep its name from others."""
    name = f"skerry-{os.urandom(4).hex()}".encode()
    call(240, name, 0o102, 0o600, None)
    with contextlib.suppress(OSError):
        call(241, name)


def check(true: bool) -> None:
    """Fail unless it is so."""
    if not true:
        raise OSError(1, "it is not so")


def attempts(words: list[str]) -> dict[str, Callable[[], object]]:
    """Return every attempt by its name; one that returns has worked."""
    pid, uid, port, keyring, key, a, b = (int(words[n]) for n in (0, 1, 2, 5, 6, 7, 8))
    name, host_file = words[3], words[4]
    inet = struct.pack("=H", AF_INET) + struct.pack(">H4s8x", port, b"\x7f\0\0\1")
    abstract = struct.pack("=H", AF_UNIX) + b"\0" + name.encode()
    room = ctypes.create_string_buffer(256)
    event = struct.pack("IIQQQQQ", 1, 112, 0, 0, 0, 0, 0x61).ljust(112, b"\0")
    one, four = struct.pack("i", 1), ctypes.create_string_buffer(struct.pack("i", 4), 4)
    return {
        "read-host-file": lambda: os.open(host_file, os.O_RDONLY),
        "write-root": write_file,
        "tcp": lambda: connect(AF_INET, inet),
        "abstract-socket": lambda: connect(AF_UNIX, abstract),
        "vsock": lambda: call(41, AF_VSOCK, STREAM, 0),
        "socket": lambda: call(41, AF_UNIX, STREAM, 0),
        "socketpair": lambda: call(53, AF_UNIX, STREAM, 0, room),
        "fork": fork,
        "user-namespace": lambda: call(272, CLONE_NEWUSER),
        "signal": lambda: call(62, pid, 0),
        "ptrace": ptrace,
        "take-descriptor": take_descriptor,
        "host-process": lambda: call(434, pid, 0),
        "pidfd": lambda: call(434, os.getpid(), 0),
        "same-keyring": lambda: check(call(250, 0, -3, 0) == keyring),
        "keyctl": lambda: call(250, 0, -3, 1),
        "flock": lambda: lock(exclusive=True),
        "record-lock": lambda: lock(exclusive=False),
        "inotify": watch,
        "preempt": lambda: call(144, 0, 0, bytes(4)),
        "shmget": make_shared,
        "host-shm": lambda: call(29, key, 0, 0),
        "mq-open": make_queue,
        "io-uring": lambda: call(425, 1, room),
        "perf": lambda: call(298, event, 0, -1, -1, 0),
        "userfaultfd": lambda: call(323, 1),
        "outlive-parent": lambda: call(157, 1, 0, 0, 0, 0),
        "passrights": lambda: call(54, a, SOL_SOCKET, SO_PASSRIGHTS, one, 4),
        "peer-pidfd": lambda: call(55, a, SOL_SOCKET, SO_PEERPIDFD, room, four),
        "pass-pidfd": lambda: call(54, a, SOL_SOCKET, SO_PASSPIDFD, one, 4),
        "pass-descriptor": lambda: pass_descriptor(a, b),
        "core-dump": lambda: check(resource.getrlimit(resource.RLIMIT_CORE)[1] != 0),
        "new-privileges": lambda: check(call(157, 39, 0, 0, 0, 0) == 0),
        "same-uid": lambda: check(os.getuid() == uid),
        "setuid": lambda: call(117, os.getuid(), os.getuid(), os.getuid()),
    }  # fmt: skip


def main(words: list[str]) -> None:
    """Try everything in turn."""
    worked = []
    for name, attempt in attempts(words).items():
        try:
            attempt()
        except OSError:
            continue
        worked.append(name)
    os.write(1, " ".join(["done", *worked]).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
