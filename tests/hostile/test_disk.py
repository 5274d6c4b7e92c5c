"""A storage daemon in an attacker's hands, and a QEMU that is: what either can reach.

A stand-in for the daemon runs in the daemon's jail with the daemon's descriptors and tries what
would lead elsewhere. Each refusal has its control: the same attempt without that layer.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from skerry.device.disk.daemon import PROFILE
from skerry.jail.bpf import Call
from skerry.jail.confinement import Confinement
from skerry.jail.filter import ALWAYS
from skerry.jail.identity import IdentityPool
from skerry.jail.root import build
from skerry.machine.jailed import JailedLauncher
from tests.support.disks import Disks, client_of, daemon_of, disks, image_of, pid_of
from tests.support.machines import cache, descendants
from tests.support.stand_ins import PYTHON
from tests.support.supervisor import running_supervisor

STAND_IN = """
import ctypes, fcntl, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(*words):
    if libc.syscall(*words) < 0: raise OSError(ctypes.get_errno(), "call")
def lock():
    fcntl.fcntl(5, 37, struct.pack("=hh4xqqi4x", fcntl.F_RDLCK, 0, 7, 1, 0))
def rights():
    with socket.socket(fileno=os.dup(4)) as sock: sock.setsockopt(1, 83, 1)
ways = {
    "write-image": lambda: os.write(os.open("/image", os.O_RDWR), b"changed"),
    "other-image": lambda: os.open(sys.argv[1], os.O_RDONLY),
    "host-file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "processes": lambda: os.listdir("/proc/1"),
    "make-file": lambda: os.open("/image2", os.O_RDWR | os.O_CREAT),
    "socket": lambda: socket.socket(socket.AF_INET),
    "unix-socket": lambda: socket.socket(socket.AF_UNIX),
    "pair": socket.socketpair,
    "fork": os.fork,
    "lock": lock,
    "passrights": rights,
    "flock": lambda: fcntl.flock(5, fcntl.LOCK_EX | fcntl.LOCK_NB),
    "memfd": lambda: os.memfd_create("x"),
    "keyring": lambda: call(248, b"user", b"x", b"y", 1, -2),
    "io-uring": lambda: call(425, 1, ctypes.create_string_buffer(256)),
    "userns": lambda: call(272, 0x10000000),
}
worked = []
for name, way in ways.items():
    try:
        if way() == 0 and name == "fork": os._exit(0)
        worked.append(name)
    except OSError: pass
os.write(2, (" ".join(["done", *worked]) + "\\n").encode())
"""

_PYTHON_TOO = ("getcwd", "dup", "sigaltstack", "readlinkat", "prlimit64", "getppid")
LIKE_THE_DAEMON = (*PROFILE, *(Call(ALWAYS[name]) for name in _PYTHON_TOO if name in ALWAYS))
"""The daemon's filter, with what an interpreter needs to get as far as the attempts."""


@pytest.fixture
def images(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two images, which the mode lets anybody at: only the jail is in the way."""
    folder = cache() / f"hostile-{os.getpid()}"
    folder.mkdir(mode=0o755, parents=True)
    made = folder / "mine.img", folder / "other.img"
    for image in made:
        image.write_bytes(bytes(512))
        image.chmod(0o666)
    yield made
    for image in made:
        image.unlink()
    folder.rmdir()


async def attempt(
    pool: IdentityPool, images: tuple[Path, Path], *, writes: bool, off: Collection[str] = ()
) -> set[str]:
    """Run the stand-in with one image; return which attempts worked."""
    root = build(
        cache() / "roots",
        "storage-stand-in",
        (),
        (),
        ("/usr/", "/image"),
        (("lib", "usr/lib"), ("lib64", "usr/lib64"), ("bin", "usr/bin")),
    )
    mine = ((str(images[0]), "/image"),)
    jail = Confinement(
        str(root),
        pool.take("stand-in"),
        LIKE_THE_DAEMON,
        binds=(("/usr", "/usr"), *(() if writes else mine)),
        writable=mine if writes else (),
        accepted=frozenset({"cgroup", "landlock"}) | frozenset(off),
        without=frozenset(off),
    )
    read, write = os.pipe()
    one, other = socket.socketpair()
    image = os.open(images[0], os.O_RDWR if writes else os.O_RDONLY)
    try:
        async with running_supervisor() as client:
            argv = [PYTHON, "-I", "-S", "-c", STAND_IN, str(images[1])]
            fds = {2: write, 4: one.fileno(), 5: image}
            process = await JailedLauncher(client, jail).launch("stand-in", argv, fds)
            await asyncio.wait_for(process.exited, 20)
        words = os.read(read, 4096).decode().split()
        assert words[:1] == ["done"], words
        return set(words[1:])
    finally:
        for fd in (read, write, image):
            os.close(fd)
        one.close()
        other.close()


@pytest.mark.parametrize("writes", [False, True])
def test_a_daemon_reaches_its_image_and_nothing_else(
    pool: IdentityPool, images: tuple[Path, Path], writes: bool
) -> None:
    """No other file, socket, process, lock, key or descriptor; its image only as the use is."""
    worked = asyncio.run(attempt(pool, images, writes=writes))
    assert worked == ({"write-image"} if writes else set())
    assert images[0].read_bytes()[:7] == (b"changed" if writes else bytes(7))


def test_control_without_the_filter_it_has_what_only_calls_give(
    pool: IdentityPool, images: tuple[Path, Path]
) -> None:
    """The same program under no filter: sockets, locks and descriptors are there for the asking."""
    worked = asyncio.run(attempt(pool, images, writes=False, off={"seccomp"}))
    assert worked >= {"socket", "unix-socket", "pair", "fork", "lock", "flock", "memfd"}
    assert not worked & {"other-image", "write-image", "make-file"}


def test_control_without_the_root_it_opens_the_other_image(
    pool: IdentityPool, images: tuple[Path, Path]
) -> None:
    """The same program with the host's files: the other image and the host's own."""
    worked = asyncio.run(attempt(pool, images, writes=False, off={"filesystem"}))
    assert worked >= {"other-image", "host-file"}


def held(pid: int) -> set[tuple[str, int]]:
    """Return what a process holds: its kind, and its number where it is a file."""
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        mode, name = each.stat().st_mode, str(each.readlink())
        kinds = {stat.S_IFREG: "file", stat.S_IFSOCK: "sock", stat.S_IFIFO: "fifo"}
        kind = kinds.get(stat.S_IFMT(mode), "null" if name == "/dev/null" else name)
        kind = "anon" if name.startswith("anon_inode:") else kind
        found.add((kind, each.stat().st_ino if kind == "file" else 0))
    return found


def test_the_daemons_of_two_uses_hold_nothing_of_each_other() -> None:
    """Each has one image, its own sockets and pipe, and a uid of its own; the machine has none."""

    async def run(made: Disks) -> None:
        uses = [await made.use(made.maker(name), name) for name in ("one", "two")]
        for use, mine in zip(uses, ("one.img", "two.img"), strict=True):
            inode = (made.folder / mine).stat().st_ino
            found = held(descendants(pid_of(daemon_of(use)))[-1])
            assert {number for kind, number in found if kind == "file"} == {inode}
            assert {kind for kind, _ in found} <= {"file", "sock", "fifo", "null", "anon"}
        assert len({use.uid for use in uses}) == 2

    async def both() -> None:
        async with disks() as made:
            await run(made)

    asyncio.run(both())


def test_a_qemu_that_lies_cannot_write_what_it_may_only_read() -> None:
    """Every request that changes something is refused on a use that only reads, whatever is sent
    after it; the same on one that writes is done."""

    async def run() -> None:
        async with disks() as made:
            maker = made.maker()
            for writes in (True, False):
                use = await made.use(maker, read_only=not writes)
                client = client_of(use)
                done = []
                for kind, data in ((1, b"x" * 512), (4, b""), (6, b"")):
                    client.send(kind, 0, 512, data)
                    done.append(client.answer()[0] == 0)
                assert done == [writes] * 3
                if writes:
                    assert client.write(0, b"y" * 512) == 0
                use.cut()
            assert image_of(maker)[:512] == b"y" * 512

    asyncio.run(run())
