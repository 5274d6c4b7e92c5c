"""Law 1 for TPMs: what a machine and its swtpm in an attacker's hands get at, and what not.

A stand-in for a compromised QEMU, in QEMU's jail, holds the machine's end of a TPM; another program
stands in swtpm's own jail, in the place of a compromised swtpm.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skerry.channel.transport import passes_descriptor
from skerry.device.tpm import commands
from skerry.device.tpm.program import PROFILE
from skerry.device.tpm.state import STATE_FILE
from skerry.jail.bpf import Call
from skerry.jail.confinement import Confinement
from skerry.jail.filter import ALWAYS
from skerry.jail.identity import Identity, IdentityPool
from skerry.jail.root import build
from skerry.machine.jailed import JailedLauncher
from skerry.node.tpms import StreamPairs
from tests.support.machines import cache
from tests.support.stand_ins import ACCEPTED, PYTHON, StandIn
from tests.support.swtpms import Chips, chips, ended, talk
from tests.support.tpm import RANDOM

MACHINE = """
import os, socket, struct
end = socket.socket(fileno=os.dup(3)); end.settimeout(5)
def ask(command):
    end.sendall(command)
    try: return end.recv(4096)
    except OSError: return b""
startup, random = bytes.fromhex("%s"), bytes.fromhex("%s")
ask(startup)
worked = []
if len(ask(random)) == 20: worked.append("random")
for path in ("/state", "/proc/1/root", "/var/tmp", "%s"):
    try: os.listdir(path); worked.append(path)
    except OSError: pass
try:
    socket.send_fds(end, [random], [os.memfd_create("given")]); worked.append("given")
    end.recv(4096)
except OSError: pass
# What swtpm's control channel would take: initialise again, give the state, set it, shut down.
for number in (2, 3, 12, 13, 16):
    body = struct.pack(">IIII", number, 1, 1, 0)
    for command in (body, struct.pack(">HII", 0x8001, 10 + len(body), number) + body):
        said = ask(command)
        if len(said) >= 10 and said[6:10] == bytes(4): worked.append(f"control {number}")
if len(ask(random)) == 20: worked.append("random")
print(*worked, flush=True)
import time; time.sleep(60)
"""


def play(scene: Callable[[Chips], object]) -> None:
    """Run a scene over a folder of its own."""

    async def run() -> None:
        async with chips() as found:
            await scene(found)  # type: ignore[misc]

    asyncio.run(run())


@contextlib.contextmanager
def swtpm_of(folder: str) -> Iterator[int]:
    """Find the swtpm, within its jail, of the TPM in a folder."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            if b"bwrap" in words and folder.encode() in words:
                (inside,) = (entry / "task" / entry.name / "children").read_text().split()
                yield int(inside)
                return
    raise AssertionError(f"no swtpm over {folder}")


def test_a_machine_gets_nothing_of_its_tpm_but_answers(pool: IdentityPool) -> None:
    """No file, no descriptor given or taken, no command of swtpm's control channel, and no state of
    another's. The control: the TPM's own commands work, before and after."""

    async def scene(found: Chips) -> None:
        use = await found.use("chip")
        other = await found.use("other", "two", 2)
        folder = str(found.folder / "states/chip")
        with swtpm_of(folder) as pid:
            before = _descriptors(pid)
            words = commands.STARTUP.hex(), RANDOM.hex(), str(found.folder / "states")
            machine = StandIn(found.client, pool, frozenset())
            await machine.start(MACHINE % words, use.ends["source"])
            worked = (await machine.line()).split()
            assert sorted(set(worked) - {"given"}) == ["random"]
            assert worked.count("random") == 2, "the control"
            assert _descriptors(pid) == before
        await machine.close()
        await ended(use)
        await ended(other)

    play(scene)


def test_no_descriptor_passes_between_a_machine_and_its_swtpm() -> None:
    """In neither direction. The control: over a plain pair one passes in both."""
    pairs = StreamPairs()
    pair = pairs.mint()
    plain = socket.socketpair()
    with (
        socket.socket(fileno=os.dup(pair.ends["source"])) as near,
        socket.socket(fileno=os.dup(pair.ends["sink"])) as far,
    ):
        for one, other, passes in ((near, far, False), (*plain, True)):
            assert passes_descriptor(one, other) is passes
            assert passes_descriptor(other, one) is passes
    pair.cut()
    pairs.close()
    for end in plain:
        end.close()


def test_a_swtpm_holds_its_socket_its_state_and_nothing_else() -> None:
    """Seen from outside: its descriptors, its root, its mounts, its uid, its namespaces."""

    async def scene(found: Chips) -> None:
        use, other = await found.use("chip"), await found.use("other", "two", 2)
        commands.answer(talk(use, commands.STARTUP))
        folders = [str(found.folder / "states" / name) for name in ("chip", "other")]
        with swtpm_of(folders[0]) as pid, swtpm_of(folders[1]) as beside:
            _holds_nothing_else(pid, beside, use.uid)
            assert use.uid != other.uid
            keys = [path.read_bytes() for path in (found.folder / "keys").iterdir()]
            seen = _process(pid, "cmdline") + _process(pid, "environ")
            assert "--key" in seen, "the control"
            assert not any(key.decode() in seen for key in keys)
        await ended(use)
        await ended(other)

    play(scene)


def _process(pid: int, file: str) -> str:
    return Path(f"/proc/{pid}/{file}").read_text()


def _descriptors(pid: int) -> dict[str, str]:
    return {fd.name: str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}


def _holds_nothing_else(pid: int, beside: int, uid: int) -> None:
    held = _descriptors(pid)
    assert {held[fd] for fd in ("0", "1")} == {"/dev/null"}
    assert "words" in held["2"]
    assert [fd for fd, what in held.items() if what.startswith("socket:")] == ["3"]
    assert [what for what in held.values() if what.startswith("/state")] == ["/state/.lock"]
    pipes = [what for what in held.values() if what.startswith("pipe:")]
    assert len(pipes) == 2, "one that it has made for itself; that of the key is closed"
    assert len(set(pipes)) == 1
    assert len(held) == 7
    status = _process(pid, "status")
    for line in ("Seccomp:\t2\n", "NoNewPrivs:\t1\n", "CapEff:\t0000000000000000\n"):
        assert f"\n{line}" in status
    assert f"\nUid:\t{uid}\t" in status
    mounts = [line.split() for line in _process(pid, "mountinfo").splitlines()]
    assert {words[4]: words[5][:2] for words in mounts} == {"/": "ro", "/state": "rw"}
    for space in ("net", "ipc", "pid", "user", "mnt"):
        spaces = {str(Path(f"/proc/{p}/ns/{space}").readlink()) for p in (pid, beside, "self")}
        assert len(spaces) == 3


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two other users")
def test_a_state_is_its_own_jails_uids_alone() -> None:
    """Another swtpm's uid can't read it. The control: its own can."""

    async def scene(found: Chips) -> None:
        use, other = await found.use("chip"), await found.use("other", "two", 2)
        folder = found.folder / "states/chip"

        def reads(uid: int) -> bool:
            pid = os.fork()
            if not pid:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
                os._exit(0 if os.access(folder / STATE_FILE, os.R_OK) else 1)
            return os.waitpid(pid, 0)[1] == 0

        assert reads(use.uid)
        assert not reads(other.uid)
        await ended(use)
        await ended(other)

    play(scene)


_NAMES = ("readlink", "getdents64", "getcwd", "sigaltstack", "dup", "getppid")
_PYTHON = tuple(Call(ALWAYS[name]) for name in _NAMES)
"""What an interpreter needs beyond what swtpm may call; none of it is tried by the program."""

SWTPM = """
import fcntl, os, signal, socket, sys
worked = []
def attempt(name, work):
    try: work(); worked.append(name)
    except OSError: pass
def lock(operation):
    fd = os.open("/usr/bin/env", os.O_RDONLY)
    operation(fd); os.close(fd)
attempt("state", lambda: os.close(os.open("/state/x", os.O_WRONLY | os.O_CREAT, 0o600)))
attempt("socket", lambda: socket.socket(socket.AF_UNIX).close())
attempt("inet", lambda: socket.socket(socket.AF_INET).close())
attempt("fork", lambda: os.fork() or os._exit(0))
attempt("memfd", lambda: os.memfd_create("x"))
attempt("flock", lambda: lock(lambda fd: fcntl.flock(fd, fcntl.LOCK_SH)))
attempt("ask-lock", lambda: lock(lambda fd: fcntl.fcntl(fd, fcntl.F_GETLK, bytes(32))))
attempt("lease", lambda: lock(lambda fd: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)))
attempt("kill", lambda: os.kill(1, 0))
attempt("send", lambda: socket.socket(fileno=3).send(b"x"))
sys.stderr.write(" ".join(worked) + "\\n")
"""


@pytest.mark.parametrize("off", [False, True], ids=["filtered", "control"])
def test_what_swtpms_filter_refuses(pool: IdentityPool, off: bool) -> None:
    """No socket, process, memory file, lock that another jail sees, signal or message; its state it
    may write. The control: without the filter each of these works."""

    async def scene(found: Chips) -> None:
        root = build(
            cache() / "roots",
            "stand-in-tpm",
            (),
            (),
            ("/usr/", "/state/"),
            (("lib", "usr/lib"), ("lib64", "usr/lib64"), ("bin", "usr/bin")),
        )
        identity: Identity = pool.take("swtpm")
        folder = found.folder / "mine"
        folder.mkdir()
        folder.chmod(0o777)
        jail = Confinement(
            str(root),
            identity,
            profile=(*PROFILE, *_PYTHON),
            binds=(("/usr", "/usr"),),
            writable=((str(folder), "/state"),),
            accepted=ACCEPTED | {"seccomp"},
            without=frozenset({"seccomp"} if off else ()),
        )
        near, far = socket.socketpair()
        with near, far:
            launcher = JailedLauncher(found.client, jail)
            fds = {2: far.fileno(), 3: far.fileno()}
            argv = [PYTHON, "-I", "-S", "-c", SWTPM]
            process = await launcher.launch("swtpm", argv, fds)
            await process.exited
            near.settimeout(5)
            said = near.recv(1000).decode().removeprefix("x").split()
        if off:
            control = ["socket", "fork", "memfd", "flock", "ask-lock", "kill", "send"]
            assert {"state", *control} <= set(said)
        else:
            assert said == ["state"]

    play(scene)
