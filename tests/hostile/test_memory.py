"""Law 5: who may only read a memory can't write it, whatever holds the descriptor; four reasons.

A stand-in for the sink's QEMU, in QEMU's jail with that descriptor, tries every way to write; then
each reason is left out in turn, and what it alone kept out succeeds. Another stands in for the
source's, and tries to see where the sink looks.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import subprocess
import sys
from typing import NamedTuple

import pytest

from skerry.jail.identity import IdentityPool
from skerry.wire import memory
from tests.support.stand_ins import StandIn
from tests.support.supervisor import running_supervisor

SIZE = 1 << 16

SINK = """
import ctypes, fcntl, mmap, os, time
libc = ctypes.CDLL(None, use_errno=True)
PATH = "/proc/self/fd/3"
def check(result):
    if result < 0: raise OSError(ctypes.get_errno(), "failed")
def poke(fd):
    with mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as shared:
        shared[0] = 1
def protect():
    libc.mmap.restype = ctypes.c_void_p
    where = libc.mmap(None, 4096, 1, 1, 3, 0)
    check(libc.mprotect(ctypes.c_void_p(where), 4096, 3))
    ctypes.memset(where, 1, 1)
def private():
    libc.mmap.restype = ctypes.c_void_p
    where = libc.mmap(None, 4096, 1, 1, 3, 0)
    fd = os.open("/proc/self/mem", os.O_RDWR)
    os.pwrite(fd, b"1", where)
def reopen():
    os.pwrite(os.open(PATH, os.O_RDWR), b"1", 0)
def chmod():
    os.fchmod(3, 0o777)
    reopen()
def chmod_by_name():
    os.chmod(PATH, 0o777)
    reopen()
def spliced():
    r, w = os.pipe(); os.write(w, b"1")
    os.splice(r, 3, 1, offset_dst=0)
def punch(fd):
    check(libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096)))
ways = {
    "mmap": lambda: poke(3), "protect": protect, "mem": private,
    "pwrite": lambda: os.pwrite(3, b"1", 0), "splice": spliced, "punch": lambda: punch(3),
    "reopen": reopen, "reopen-mmap": lambda: poke(os.open(PATH, os.O_RDWR)),
    "reopen-punch": lambda: punch(os.open(PATH, os.O_RDWR)),
    "chmod": chmod, "chmod-by-name": chmod_by_name,
    "truncate": lambda: os.ftruncate(3, 0), "truncate-by-name": lambda: os.truncate(PATH, 0),
    "seal": lambda: fcntl.fcntl(3, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW),
}
got = os.pread(3, 5, 0).decode()
worked = []
for name, way in ways.items():
    try: way(); worked.append(name)
    except (OSError, ValueError): pass
print(got, *worked, flush=True)
time.sleep(60)
"""


class Reasons(NamedTuple):
    """Why the sink can't write; each can be left out."""

    descriptor: bool = True
    mode: bool = True
    uid: bool = True
    seal: bool = True
    filter: bool = True
    length: bool = True


ALL = Reasons()


def made(why: Reasons) -> tuple[int, int]:
    """Return a memory with these reasons, and the sink's descriptor of it."""
    if why.length:
        held = memory.make(SIZE, True)
    else:
        held = os.memfd_create(memory.NAME, os.MFD_ALLOW_SEALING)
        os.ftruncate(held, SIZE)
    os.pwrite(held, b"forth", 0)
    os.fchmod(held, memory.CLOSED_MODE if why.mode else 0o777)
    if why.seal and why.mode:
        memory.close_to_reader(held)
    elif why.seal:
        seals = memory.F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(held, fcntl.F_ADD_SEALS, seals)
    return held, memory.reader(held) if why.descriptor else os.dup(held)


def attack(why: Reasons, pool: IdentityPool) -> tuple[set[str], bool]:
    """Return what worked for the sink, and whether the memory is as it was."""

    async def run() -> list[str]:
        off = {layer for layer, on in (("uid", why.uid), ("seccomp", why.filter)) if not on}
        async with running_supervisor() as client:
            taken = pool if why.uid else None
            sink = StandIn(client, taken, frozenset(off), descriptors=True)
            await sink.start(SINK, end)
            try:
                return (await sink.line()).split()
            finally:
                await sink.close()

    held, end = made(why)
    try:
        got, *worked = asyncio.run(run())
        assert got == "forth", "the sink can read"
        return set(worked), os.pread(held, SIZE, 0) == b"forth".ljust(SIZE, b"\0")
    finally:
        os.close(held)
        os.close(end)


def test_a_reader_has_no_way_to_write(pool: IdentityPool) -> None:
    """With all reasons nothing works, and the memory is as the source left it."""
    assert attack(ALL, pool) == (set(), True)


@pytest.mark.parametrize(
    "why",
    [
        ALL._replace(seal=False),
        ALL._replace(mode=False, uid=False, filter=False),
        ALL._replace(descriptor=False, mode=False, uid=False, filter=False),
    ],
    ids=["without the seal", "without mode, uid and filter", "the seal alone"],
)
def test_the_reasons_hold_without_each_other(why: Reasons, pool: IdentityPool) -> None:
    """No byte changes by mode and uid alone, nor by the seal alone, even with a writer's end."""
    worked, same = attack(why, pool)
    assert worked <= set() and same


def test_control_by_mode_0777_a_reader_opens_it_anew(pool: IdentityPool) -> None:
    """The trap: without mode and seal another uid opens its own descriptor again, and writes."""
    worked, same = attack(ALL._replace(mode=False, seal=False), pool)
    assert {"reopen", "reopen-mmap"} <= worked and not same
    assert not worked & {"mmap", "protect", "pwrite", "splice", "chmod-by-name"}


def test_control_its_owner_changes_the_mode(pool: IdentityPool) -> None:
    """The other trap: without uid, filter and seal the mode is changed, and the file opened."""
    worked, same = attack(ALL._replace(uid=False, seal=False, filter=False), pool)
    assert {"chmod", "chmod-by-name"} <= worked and not same


def test_control_a_writers_descriptor_writes_every_way(pool: IdentityPool) -> None:
    """With no reason at all, each way but that over the process's own memory works."""
    worked, same = attack(Reasons(*[False] * len(ALL)), pool)
    assert not same
    assert worked >= {
        *("mmap", "protect", "pwrite", "splice", "punch", "reopen", "reopen-mmap"),
        *("reopen-punch", "chmod", "chmod-by-name", "truncate", "truncate-by-name", "seal"),
    }


def test_control_a_process_writes_over_its_own_read_only_memory() -> None:
    """What `mem` tries is real outside of a jail: for a mapping that is the process's alone."""
    program = SINK.replace("1, 1, 3, 0)\n    fd", "1, 34, -1, 0)\n    fd")
    program = program.replace("time.sleep(60)", "")
    held = memory.make(SIZE, True)
    try:
        words = [sys.executable, "-I", "-S", "-c", f"import os; os.dup2({held}, 3)\n{program}"]
        said = subprocess.run(words, pass_fds=[held], capture_output=True, check=True).stdout
    finally:
        os.close(held)
    assert "mem" in said.decode().split()


SOURCE = """
import ctypes, fcntl, mmap, os, time
libc = ctypes.CDLL(None, use_errno=True)
SIZE = os.fstat(3).st_size
shared = mmap.mmap(3, SIZE)
def holes():
    done = []
    if libc.fallocate(3, 3, ctypes.c_long(0), ctypes.c_long(SIZE)) == 0: done.append("punch")
    try:
        shared.madvise(mmap.MADV_REMOVE)
        done.append("madvise")
    except OSError: pass
    return done
def wait(ready):
    while not ready(): time.sleep(0.01)
def pages():
    at, found = 0, []
    while True:
        try: at = os.lseek(3, at, os.SEEK_DATA)
        except OSError: return [os.fstat(3).st_blocks, *found]
        found.append(at // 4096); at += 4096
print(*holes(), flush=True)
wait(lambda: fcntl.fcntl(3, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL)
print(*holes(), flush=True)
print(*pages(), flush=True)
wait(lambda: shared[0])
print(*pages(), flush=True)
time.sleep(60)
"""


def seen_by_the_source(pool: IdentityPool, how: str) -> tuple[list[str], ...]:
    """Return what a source could punch before and after the memory was closed to its reader, and
    which pages it sees before and after the reader looked at some of them."""

    async def run() -> tuple[list[str], ...]:
        async with running_supervisor() as client:
            source = StandIn(client, pool, frozenset({"seccomp"}), descriptors=True)
            await source.start(SOURCE, made)
            try:
                before = (await source.line()).split()
                if how == "closed":
                    memory.close_to_reader(made)
                else:
                    fcntl.fcntl(made, fcntl.F_ADD_SEALS, memory.F_SEAL_FUTURE_WRITE)
                    if how == "filled":
                        memory.fill(made)
                    os.fchmod(made, memory.CLOSED_MODE)
                    fcntl.fcntl(made, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
                after, first = [(await source.line()).split() for _ in range(2)]
                assert memory.is_closed(reader) is (how == "closed")
                with mmap.mmap(reader, SIZE, prot=mmap.PROT_READ) as looked:
                    assert not any(looked[page * 4096] for page in (3, 5, 9))
                ours[0] = 1
                return before, after, first, (await source.line()).split()
            finally:
                await source.close()

    made = memory.make(SIZE, True)
    reader = memory.reader(made)
    try:
        with mmap.mmap(made, SIZE) as ours:
            memory.fill(made)
            return asyncio.run(run())
    finally:
        os.close(made)
        os.close(reader)


def test_a_source_that_punches_holes_does_not_see_where_the_sink_looks(pool: IdentityPool) -> None:
    """The reader has the memory with all of its pages, whatever its writer did before the seal."""
    before, after, first, then = seen_by_the_source(pool, "closed")
    assert before == ["punch", "madvise"], "it had a way"
    assert after == []
    assert first == then and len(first) == 1 + SIZE // 4096


def test_control_a_memory_that_is_filled_before_the_seal_alone_tells(pool: IdentityPool) -> None:
    """Without the second filling the source sees each page at which the sink has looked."""
    before, after, first, then = seen_by_the_source(pool, "sealed")
    assert before == ["punch", "madvise"] and after == []
    assert first == ["0"] and then == ["32", "0", "3", "5", "9"]


def test_control_a_memory_that_is_filled_and_not_cleared_tells_as_well(pool: IdentityPool) -> None:
    """Pages that the kernel has only promised become data one by one, as the sink looks."""
    _, _, first, then = seen_by_the_source(pool, "filled")
    blocks = str(SIZE // 512)
    assert first == [blocks] and then == [blocks, "0", "3", "5", "9"]
