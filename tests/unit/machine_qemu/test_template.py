"""How a QEMU is given a template's memory, and what a clone is before it has one."""

from __future__ import annotations

import asyncio
import mmap
import os

import msgspec
import pytest

from skerry.errors import MachineError, StateError
from skerry.jail.bpf import ALLOW
from skerry.jail.filter import ALWAYS, PROFILES, program
from skerry.machine.qemu import cloned
from skerry.machine.qemu.cloned import OWN_INIT, Clone, Source
from skerry.machine.qemu.command import command
from skerry.machine.qemu.template import (
    Template,
    TemplateUnusable,
    clone_profile,
    make_ram,
    seal_now,
)
from skerry.monitor.domain import State
from tests.support.monitor import World, label
from tests.unit.jail.test_filter import EPERM, run
from tests.unit.machine_qemu.test_prepare import SPEC, Launcher

SIZE = 1 << 20


def template() -> Template:
    """Return one whose memory holds a word."""
    ram = make_ram(SIZE)
    os.pwrite(ram, b"booted", 0)
    seal_now(ram)
    return Template(ram, b"state")


def test_two_clones_share_no_place_in_the_memorys_file() -> None:
    """Where one has read to is nothing that another sees; a duplicate (the control) shows it."""
    one = template()
    first, second = one.own_open(), one.own_open()
    os.lseek(first, 4711, os.SEEK_SET)
    assert os.lseek(second, 0, os.SEEK_CUR) == 0
    duplicate = os.dup(first)
    assert os.lseek(duplicate, 0, os.SEEK_CUR) == 4711
    assert os.fstat(first).st_ino == os.fstat(second).st_ino
    for descriptor in (first, second, duplicate):
        os.close(descriptor)


def test_a_clones_descriptor_changes_nothing() -> None:
    """It can't be written, nor opened again so that it could, whoever owns it."""
    one = template()
    own = one.own_open()
    again = os.open(f"/proc/self/fd/{own}", os.O_RDWR)
    for descriptor in (own, again):
        with pytest.raises(OSError, match=r"Bad file descriptor|not permitted"):
            os.pwrite(descriptor, b"x", 0)
        with pytest.raises(OSError, match=r"Invalid argument|not permitted"):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)
    assert os.pread(one.ram, 6, 0) == b"booted"


def test_a_template_does_not_tell_when_it_was_read() -> None:
    """The time of access of its memory stays as it was when it was made."""
    one = template()
    before = os.fstat(one.ram).st_atime_ns
    own = one.own_open()
    os.pread(own, 4096, 0)
    assert os.fstat(one.ram).st_atime_ns == before
    os.close(own)


def test_what_clones_touched_of_its_holes_is_told() -> None:
    """A private mapping leaves a page for each hole that it wrote; where there was one (the
    control), none."""
    one = template()
    own = one.own_open()
    with mmap.mmap(own, SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as clone:
        clone[0] = 1
        assert one.grown() == 0
        for place in range(1, 9):
            clone[place * mmap.PAGESIZE] = 1
        assert one.grown() == 8 * mmap.PAGESIZE
    os.close(own)
    assert one.grown() == 8 * mmap.PAGESIZE, "it outlives the clone"
    assert os.pread(one.ram, SIZE, 0) == b"booted" + bytes(SIZE - 6)


def test_a_clones_qemu_may_not_fill_its_templates_holes_at_one_stroke() -> None:
    """Nor have huge pages; another's (the control) may both, and either may ask for small ones."""
    usual = PROFILES["qemu"]
    huge, small = (0, 0, 14), (0, 0, 15)
    for profile, answer in ((clone_profile(usual), EPERM), (usual, ALLOW)):
        code = program(profile)
        assert run(code, ALWAYS["fallocate"]) == run(code, ALWAYS["madvise"], *huge) == answer
        assert run(code, ALWAYS["madvise"], *small) == ALLOW


def test_a_memory_that_can_be_written_is_no_template() -> None:
    """Not even by mistake."""
    ram = make_ram(SIZE)
    with pytest.raises(MachineError, match="not sealed"):
        Template(ram, b"")


def test_a_machine_without_a_label_is_told_nothing_of_itself() -> None:
    """What is saved of it belongs to nobody; with a label (the control) it is told both."""
    nobody = msgspec.structs.replace(SPEC, label="")
    assert not [word for word in command(nobody, str) if "opt/skerry" in word]
    assert len([word for word in command(SPEC, str) if "opt/skerry" in word]) == 2


@pytest.mark.parametrize("why", ["init of its own", "no memory", "not started"])
def test_a_source_that_never_starts_has_ended(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made for it can go: before it is launched, or (the control) when that fails."""
    words = "console=ttyS0" if why == "init of its own" else OWN_INIT[0]
    spec = msgspec.structs.replace(SPEC, cmdline=words, memory=SIZE)

    def full(_size: int) -> int:
        raise OSError(12, os.strerror(12))

    async def scene() -> None:
        source = Source(spec, Launcher())
        if why == "no memory":
            monkeypatch.setattr(cloned, "make_ram", full)
        with pytest.raises(MachineError, match=why):
            await source.template()
        assert source.exited.done()

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_a_domain_that_is_killed_while_its_template_is_made_has_ended_at_once() -> None:
    """Nothing is launched, the making is ended, and it does not count as running."""

    async def scene() -> None:
        world, launcher = World(), Launcher()
        made = asyncio.Event()
        ended = asyncio.Event()

        async def find() -> Template:
            made.set()
            try:
                await asyncio.sleep(3600)
            finally:
                ended.set()
            return template()

        def make() -> Clone:
            return Clone(SPEC, launcher, "", find, lambda _why: None)

        start = world.monitor.start(world.operator, "a", label("a"), make)
        starting = asyncio.ensure_future(start)
        await made.wait()
        assert world.monitor.running() == (label("a"),), "the control: a wall counts it by now"
        world.monitor.kill("a")
        with pytest.raises(StateError, match="ended"):
            await starting
        await world.monitor.domain("a").gone.wait()
        assert ended.is_set()
        assert launcher.asked == 0
        assert world.monitor.domain("a").state is State.ENDED
        assert world.monitor.running() == ()

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_a_domain_without_a_template_says_so() -> None:
    """Whoever starts it can tell that from other errors, and start it without."""

    async def scene() -> None:
        world, launcher = World(), Launcher()

        async def find() -> Template:
            raise TemplateUnusable("none")

        def make() -> Clone:
            return Clone(SPEC, launcher, "", find, lambda _why: None)

        with pytest.raises(TemplateUnusable):
            await world.monitor.start(world.operator, "a", label("a"), make)
        await world.monitor.domain("a").gone.wait()
        assert launcher.asked == 0

    asyncio.run(asyncio.wait_for(scene(), 10))
