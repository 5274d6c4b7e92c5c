"""A real guest saved and restored: fresh randomness, refusals, boards, and a node that dies."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import mmap
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from skerry.errors import MachineError
from skerry.machine.qemu import cloned
from skerry.machine.qemu.cloned import Clone, Source
from skerry.machine.qemu.machine import QemuMachine
from skerry.machine.qemu.template import NAME, Template, TemplateUnusable, make_ram
from skerry.monitor.domain import State
from tests.support.machines import BOOT_S, Host, descendants, sh
from tests.support.monitor import World, label

DRAW = "read -r number </proc/sys/kernel/random/uuid; echo $number"
ANEW = "tr '\\0' '\\377' </dev/zero | head -c 72 | /lib/skerry/waker 3<>/dev/random; true"
"""Has the kernel begin anew, and fails then, as there is no such time."""

TRIES = 8
"""Pairs of clones that draw without fresh randomness: some seconds after a new beginning the kernel
makes up its own, which a busy host may not be quick enough for."""

_numbers = itertools.count(1)


def _same(clone: Clone) -> Clone:
    return clone


class Kit:
    """A template of one board, and clones of it."""

    def __init__(self, host: Host, board: str) -> None:
        self.host = host
        self.spec = host.spec("first", board=board, memory=128 << 20)
        self.template: Template = host.run(self._save())
        self.refused: list[str] = []

    async def _save(self) -> Template:
        source = Source(self.spec, self.host.clones(self.spec))
        self.host.watch(source)
        return await source.template()

    def make(self, template: Template | None = None, incarnation: str = "") -> Clone:
        """Return a clone that is not prepared yet."""
        name = f"clone{next(_numbers)}"
        spec = self.host.spec(name, board=self.spec.board, memory=self.spec.memory)

        async def find() -> Template:
            return template or self.template

        clone = Clone(spec, self.host.clones(spec), incarnation, find, self.refused.append)
        self.host.watch(clone)
        return clone

    async def start(self, *, awake: bool = True) -> Clone:
        """Return a clone that answers; one that is not told who it is where asked for."""
        clone = self.make()
        clone._asleep = awake
        await clone.prepare()
        await clone.resume()
        await clone.agent.ready(BOOT_S)
        return clone

    async def draw(self, *, awake: bool) -> str:
        """Return the first random number that a fresh clone draws."""
        clone = await self.start(awake=awake)
        code, number = await sh(clone, DRAW)
        clone.kill()
        await asyncio.shield(clone.exited)
        assert (code, len(number)) == (0, 37)
        return number


@pytest.fixture(scope="module")
def kit(host: Host) -> Iterator[Kit]:
    """A template of a microvm."""
    yield Kit(host, "microvm")


def test_clones_draw_random_numbers_of_their_own(host: Host, kit: Kit) -> None:
    """No two draw the same; without what the host gives them (the control) two do."""
    with pytest.MonkeyPatch.context() as patch:
        # The kernel begins anew just before it is saved: by itself it does so after a while only.
        patch.setattr(cloned, "WAITS", ("sh", "-c", ANEW))
        patch.setattr(cloned, "REST_S", 0.0)
        control = Kit(host, "microvm")

    async def scene() -> None:
        drawn = [await kit.draw(awake=True) for _ in range(4)]
        assert len(set(drawn)) == 4
        for _ in range(TRIES):
            if await control.draw(awake=False) == await control.draw(awake=False):
                break
        else:
            pytest.fail("the control: no two clones that were given nothing drew the same")

    host.run(scene())


def test_a_guest_that_can_not_have_fresh_randomness_does_not_go_on(host: Host, kit: Kit) -> None:
    """It switches itself off, and its console says why; the control is every other clone."""

    async def scene() -> None:
        clone = await kit.start(awake=False)
        waits = "cd /run/skerry; [ -e asleep ] && [ ! -s name ] && [ ! -s policy ]"
        assert (await sh(clone, waits))[0] == 0, "it still waits"
        assert (await sh(clone, "kill -KILL $(pidof waker)"))[0] == 0
        clone.agent.wake("other", "other")
        end = await asyncio.wait_for(asyncio.shield(clone.exited), BOOT_S)
        assert end.reason == "the guest switched itself off"
        assert b"no fresh random numbers" in clone.console.untrusted_text

    host.run(scene())


def test_who_is_awake_passes_another_wake_over(host: Host, kit: Kit) -> None:
    """Nothing changes, and commands go on; neither does a line that is torn or too short."""

    async def scene() -> None:
        clone = await kit.start()
        before = await sh(clone, "cat /run/skerry/name")
        clone.agent.wake("other", "other")
        clone.agent._unsent += b"wake 00000000 \\001 .x\nwake 00000000"
        clone.agent.wake("other", "other")
        assert await sh(clone, "cat /run/skerry/name") == before
        assert int((await sh(clone, "date +%s"))[1]) > 1_000_000_000
        clone.kill()

    host.run(scene())


def test_a_state_that_is_none_is_refused_and_the_machine_has_ended(host: Host, kit: Kit) -> None:
    """QEMU's refusal is told to who keeps templates; the true state (the control) is taken."""

    async def scene() -> None:
        for state in (b"", b"\0" * 4096, kit.template.state[:2000]):
            world, clone = World(), kit.make(Template(os.dup(kit.template.ram), state))
            with pytest.raises(TemplateUnusable):
                await world.monitor.start(world.operator, "a", label("a"), partial(_same, clone))
            await world.monitor.domain("a").gone.wait()
            assert world.monitor.domain("a").state is State.ENDED
        assert len(kit.refused) == 3
        clone = await kit.start()
        clone.kill()

    host.run(scene())


def test_a_board_with_slots_gets_its_card_after_the_restore(host: Host) -> None:
    """Plugged in while the clone stands still, it is there when the guest runs; so is a stream."""
    kit = Kit(host, "pc")

    async def scene() -> None:
        clone = kit.make()
        await clone.prepare()
        card, port = host.bridges.mint(), host.bridges.mint()
        await clone.attach(1, "link", "wire", card.ends["source"])
        await clone.attach(2, "stream", "talk", port.ends["source"])
        await clone.resume()
        await clone.agent.ready(BOOT_S)
        assert await sh(clone, "link-up wire") == (0, "wire\n")
        until = "until [ -e /dev/virtio-ports/talk ]; do sleep 0.1; done; echo there"
        assert await sh(clone, until) == (0, "there\n")
        await clone.detach(1)
        await clone.detach(2)
        clone.kill()
        card.cut()
        port.cut()

    host.run(scene())


@pytest.mark.parametrize("running", [False, True], ids=["paused", "running"])
def test_a_clone_that_its_node_did_not_wake_is_woken_by_the_next(
    host: Host, kit: Kit, running: bool
) -> None:
    """Killed before or just after it let the processors run: the guest learns who it is."""

    async def scene() -> None:
        incarnation = f"d/clone/{running}"
        clone = kit.make(incarnation=incarnation)
        await clone.prepare()
        clone._asleep = False
        if running:
            await clone.resume()
        name = clone._name
        await host.abandon(clone)
        heir: QemuMachine = await host.heir(name, incarnation)
        await heir.adopt()
        assert heir.running is running
        if not running:
            await heir.resume()
        await heir.agent.ready(BOOT_S)
        assert await sh(heir, "cat /run/skerry/name") == (0, name)
        heir.kill()
        await asyncio.shield(heir.exited)

    host.run(scene())


def held(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def memories(pid: int) -> tuple[list[Path], set[str]]:
    """Return how a process has templates open (its descriptors), and mapped (permissions)."""
    place = Path(f"/proc/{pid}")
    opened = [fd for fd in (place / "fd").iterdir() if f"memfd:{NAME}" in str(fd.readlink())]
    maps = [line.split() for line in (place / "maps").read_text().splitlines()]
    return opened, {words[1] for words in maps if f"memfd:{NAME}" in " ".join(words)}


def changes(file: Path) -> list[str]:
    """Return in which ways a memory can be changed by who opens it to write, as QEMU does."""
    descriptor = os.open(file, os.O_RDWR)
    punch = 0x03, ctypes.c_long(0), ctypes.c_long(mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    done = []
    with contextlib.suppress(OSError):
        os.pwrite(descriptor, b"x", 0)
        done.append("write")
    with contextlib.suppress(OSError):
        mmap.mmap(descriptor, mmap.PAGESIZE).close()
        done.append("map")
    if libc.fallocate(descriptor, *punch) == 0:
        done.append("punch")
    os.close(descriptor)
    return done


def test_what_a_clone_holds_of_its_template_is_sealed(host: Host, kit: Kit) -> None:
    """QEMU opens it to write, and nobody can: not by a descriptor, a mapping or a hole. A memory
    that is not sealed (the control) can be changed in all these ways.

    A clone has that beyond a cold machine, and a mapping that is its own.
    """
    fresh = make_ram(kit.spec.memory)
    assert changes(Path(f"/proc/self/fd/{fresh}")) == ["write", "map", "punch"]
    os.close(fresh)

    async def scene() -> None:
        cold, clone = await host.boot("cold"), await kit.start()
        pids = [descendants(machine.pid)[-1] for machine in (cold, clone)]
        assert memories(pids[0]) == ([], set())
        opened, mapped = memories(pids[1])
        assert mapped == {"rw-p"}
        assert len(opened) == 2, "the one that it was given, and the one that it opened by name"
        assert [changes(file) for file in opened] == [[], []]
        assert held(pids[1]) - held(pids[0]) <= 2
        cold.kill()
        clone.kill()

    host.run(scene())


def test_a_guest_that_does_not_wait_is_no_template(host: Host) -> None:
    """An image with an init of its own is not even booted, an older one of ours is not saved."""

    async def scene() -> None:
        spec = host.spec("first", cmdline="console=ttyS0 rdinit=/srv/init")
        own = Source(spec, host.clones(spec))
        with pytest.raises(MachineError, match="init of its own"):
            await own.template()
        assert own.pid == 0
        older = Source(host.spec("first", memory=128 << 20), host.clones(spec))
        host.watch(older)
        with pytest.raises(MachineError, match="older than templates"):
            await older.template()
        assert older.exited.done(), "and it has ended"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cloned, "WAITS", ("false",))
        host.run(scene())
