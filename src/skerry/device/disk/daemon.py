"""The storage daemon of one use: its jail, and how it is told what to serve.

The rules: it holds one image and one connection, can open nothing else, and what it says is
untrusted and bounded; keys reach it over its control socket, and stand in no file and no command
line. That socket is closed before a machine gets the other end.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from skerry.errors import Denied
from skerry.jail.bpf import Arg, Call
from skerry.jail.confinement import Limits
from skerry.jail.filter import ALWAYS, PROFILES, Profile
from skerry.jail.root import build
from skerry.wire.rights import refuse_descriptors

DAEMON = Path("/usr/bin/qemu-storage-daemon")
"""QEMU's storage daemon (package qemu-system-common)."""

IMAGE, OVERLAY = "/image", "/overlay"
"""Mount points in its root."""

EXPORT = "disk"
"""What the disk is called on its connection; `machine.qemu.blocks` asks for it."""

CONTROL_FD, LISTENER_FD, LOCK_FD = 3, 4, 5
"""Its descriptors: the control socket, what the machine's connection waits at, and the open image
that bears the locks, which it does not know of. 2 is a pipe that ends when it does."""

LIMITS = Limits(memory=512 << 20, pids=80)
"""What one storage daemon may use: bytes of memory, processes and threads."""

SERVE_S = 60.0
"""How long a daemon may take until it serves, in seconds; one that does not is ended, and the use
refused."""

MAX_LINE = 256 << 10
"""Longest line that is taken from a daemon, in bytes; a longer one ends it."""

MAX_LINES = 1000
"""Most lines that a daemon may say until it serves."""

_JOB_S = 0.02

_NAMES = (
    "read", "write", "close", "fstat", "poll", "lseek", "mprotect", "munmap", "brk", "rt_sigaction",
    "rt_sigprocmask", "rt_sigreturn", "pread64", "pwrite64", "readv", "writev", "preadv", "pwritev",
    "access", "mremap", "madvise", "getpid", "recvfrom", "sendmsg", "recvmsg", "shutdown",
    "getsockname", "getpeername", "exit", "uname", "fsync", "fdatasync", "ftruncate", "readlink",
    "sysinfo", "getuid", "geteuid", "arch_prctl", "gettid", "futex", "sched_getaffinity",
    "set_tid_address", "clock_gettime", "clock_getres", "clock_nanosleep", "exit_group", "openat",
    "newfstatat", "ppoll", "set_robust_list", "fallocate", "timerfd_create", "timerfd_settime",
    "eventfd2", "signalfd4", "pipe2", "getrandom", "membarrier", "statx", "epoll_wait", "epoll_ctl",
    "epoll_create1", "epoll_pwait", "getdents64", "rseq", "gettimeofday", "getrusage", "fstatfs",
    "restart_syscall", "getcpu", "execve", "sched_yield", "nanosleep", "rt_sigtimedwait",
)  # fmt: skip
_CHECKED = (9, 16, 44, 54, 55, 56, 72, 157, 234, 302)  # as a QEMU may, see `jail.filter`
_ACCEPT4, _LISTEN, _OPENAT = 288, 50, ALWAYS["openat"]
_MAKES = 0o100 | 0o20000000  # O_CREAT, O_TMPFILE
PROFILE: Profile = (
    *(Call(ALWAYS[name]) for name in _NAMES if name != "openat"),
    Call(_OPENAT, ((Arg(2, 0, _MAKES),),)),
    *(call for call in PROFILES["qemu"] if call.number in _CHECKED),
    # From the one listener that it is given, whose name is gone: what waits there is the machine's.
    Call(_ACCEPT4),
    Call(_LISTEN),
)
"""What a storage daemon may call, measured with strace on QEMU 7.2: nothing that makes a socket, a
process, a lock or a file."""


class DiskFailed(Denied):
    """The storage daemon did not serve the disk; its words are in the message."""

    code = "DISK-FAILED"


class Plan(NamedTuple):
    """What a daemon is to serve.

    `make` is the size in bytes of a qcow2 image that is laid out first, 0 for one that is there;
    `key` and `once` open the LUKS containers of the image and of the overlay, empty for none;
    `rate` is in bytes a second.
    """

    qcow2: bool
    writes: bool
    make: int = 0
    key: str = ""
    once: str = ""
    rate: int = 0


def daemon_root(directory: Path) -> Path:
    """Return the root of a storage daemon's jail. Raises `JailError` if it is not installed."""
    return build(directory, "storage", [DAEMON], mount_points=[IMAGE, OVERLAY])


def command() -> list[str]:
    """Return the command that runs a daemon which serves nothing yet."""
    argv = [str(DAEMON), "--chardev", f"socket,id=control,fd={CONTROL_FD}"]
    argv += ["--monitor", "chardev=control"]
    return [*argv, "--nbd-server", f"addr.type=fd,addr.str={LISTENER_FD},max-connections=1"]


class Control:
    """The control socket of one daemon, which it owns."""

    def __init__(self, ours: socket.socket) -> None:
        ours.setblocking(False)
        refuse_descriptors(ours)
        self._sock = ours
        self._rest = b""
        self._lines = 0

    def close(self) -> None:
        """Let go of the daemon, which serves on."""
        self._sock.close()

    async def serve(self, plan: Plan) -> None:
        """Have it serve the disk. Raises `DiskFailed`; then end it."""
        try:
            async with asyncio.timeout(SERVE_S):
                await self._serve(plan)
        except TimeoutError:
            raise DiskFailed(f"the storage daemon did not serve in {SERVE_S:g} s") from None

    async def _serve(self, plan: Plan) -> None:
        await self._line()  # its greeting
        await self.execute("qmp_capabilities")
        for name, key in (("key", plan.key), ("once", plan.once)):
            if key:
                await self.execute("object-add", {"qom-type": "secret", "id": name, "data": key})
        base = await self._open("file", IMAGE, plan.writes, "key" if plan.key else "")
        if plan.make:
            await self._create(base, plan.make)
        node = {"file": base, "read-only": not plan.writes, "discard": "unmap", "node-name": "base"}
        format_ = {"driver": "qcow2", "backing": None} if plan.qcow2 else {"driver": "raw"}
        await self._add(node | format_)
        top = "base"
        if plan.once:
            over = await self._open("overlay-file", OVERLAY, True, "once")
            await self._create(over, await self._size("base"))
            await self._add(
                {"driver": "qcow2", "node-name": "overlay", "file": over, "backing": "base"}
            )
            top = "overlay"
        if plan.rate:
            limits = {"bps-total": plan.rate}
            group = {"qom-type": "throttle-group", "id": "rate", "limits": limits}
            await self.execute("object-add", group)
            node = {"driver": "throttle", "node-name": "slow", "throttle-group": "rate"}
            writable = plan.writes or bool(plan.once)
            await self._add({**node, "file": top, "read-only": not writable})
            top = "slow"
        export = {"type": "nbd", "id": "export", "node-name": top, "name": EXPORT}
        await self.execute(
            "block-export-add", {**export, "writable": plan.writes or bool(plan.once)}
        )

    async def _open(self, name: str, path: str, writes: bool, secret: str) -> str:
        """Open a file, by way of LUKS if it has a secret; return the name of the node."""
        # The locks are on the descriptor that it was given, so that it needs none of its own.
        node = {"driver": "file", "node-name": name, "filename": path, "locking": "off"}
        how = {"read-only": not writes, "discard": "unmap"}
        await self._add(node | how)
        if not secret:
            return name
        locked = f"{name}-locked"
        node = {"driver": "luks", "node-name": locked, "file": name, "key-secret": secret}
        await self._add(node | how)
        return locked

    async def _add(self, node: Mapping[str, object]) -> None:
        await self.execute("blockdev-add", node)

    async def _create(self, file: str, size: int) -> None:
        """Lay out an empty qcow2 image."""
        options = {"driver": "qcow2", "file": file, "size": size}
        await self.execute("blockdev-create", {"job-id": "make", "options": options})
        while True:
            untrusted = await self.execute("query-jobs")
            jobs = untrusted if isinstance(untrusted, list) else []
            job = jobs[0] if jobs and isinstance(jobs[0], dict) else {}
            if job.get("error"):
                raise DiskFailed(f"the disk could not be made: {_words(job['error'])}")
            if job.get("status") == "concluded":
                break
            await asyncio.sleep(_JOB_S)
        await self.execute("job-dismiss", {"id": "make"})

    async def _size(self, name: str) -> int:
        untrusted = await self.execute("query-named-block-nodes", {"flat": True})
        for node in untrusted if isinstance(untrusted, list) else []:
            if isinstance(node, dict) and node.get("node-name") == name:
                image = node.get("image")
                size = image.get("virtual-size") if isinstance(image, dict) else None
                if isinstance(size, int) and size > 0:
                    return size
        raise DiskFailed("the storage daemon does not say how large the disk is")

    async def execute(self, name: str, arguments: Mapping[str, object] | None = None) -> object:
        """Run a command and return its result. Raises `DiskFailed`."""
        message = {"execute": name, "arguments": dict(arguments or {})}
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self._sock, json.dumps(message).encode() + b"\n")
        except OSError:
            raise DiskFailed("the storage daemon has ended") from None
        while True:
            untrusted = await self._line()
            if "return" in untrusted:
                return untrusted["return"]
            if "error" in untrusted:
                error = untrusted["error"]
                said = error.get("desc") if isinstance(error, dict) else error
                raise DiskFailed(f"the storage daemon refused the disk: {_words(said)}")

    async def _line(self) -> dict[str, object]:
        loop = asyncio.get_running_loop()
        while b"\n" not in self._rest:
            try:
                got = await loop.sock_recv(self._sock, 64 << 10)
            except OSError:
                got = b""
            self._rest += got
            if not got or len(self._rest) > MAX_LINE:
                raise DiskFailed("the storage daemon ended before it served")
        line, _, self._rest = self._rest.partition(b"\n")
        self._lines += 1
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or self._lines > MAX_LINES:
            raise DiskFailed("the storage daemon says what it should not")
        return message


def _words(untrusted: object) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(untrusted)[:300])
