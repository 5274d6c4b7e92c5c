"""Which template a domain gets: made once, shared by its own label, never doubtful."""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import threading
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from skerry.errors import LayerMissing, MachineError
from skerry.image.store import Image
from skerry.machine.qemu.cloned import Source
from skerry.machine.qemu.command import QemuSpec
from skerry.machine.qemu.template import Template, TemplateUnusable, make_ram, seal_now
from skerry.node import template_store as store
from skerry.node import templates as module
from skerry.node.template_store import TemplateAltered
from skerry.node.templates import Templates
from tests.unit.node.test_template_store import KIND, SIZE, STATE, put

BLUE = msgspec.structs.replace(KIND, label="blue")


class Boots:
    """Stands in for the source of a template: counts its boots, and fails when told to."""

    def __init__(self) -> None:
        self.count = 0
        self.word = b"booted"
        self.failure: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()

    def __call__(self) -> Source:
        """Be the machine."""
        return cast(Source, self)

    async def template(self) -> Template:
        """Boot."""
        self.count += 1
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        ram = make_ram(SIZE)
        os.pwrite(ram, self.word, 4096)
        seal_now(ram)
        return Template(ram, b"state")


class Shelf:
    """The templates of a node in a folder, and what they told the trail."""

    def __init__(self, folder: Path) -> None:
        self.boots = Boots()
        self.told: list[tuple[str, Mapping[str, object]]] = []
        self.templates = Templates(folder)
        self.templates.note = lambda event, fields: self.told.append((event, fields))

    async def find(self, kind: store.Kind = KIND) -> Template:
        """Want one, for a domain."""
        return await self.templates.find("d", kind, self.boots)

    def events(self) -> list[str]:
        """Return what was told, without what it was about."""
        return [event for event, _ in self.told]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Let go of every template at once: other tests count descriptors."""
    yield
    gc.collect()


class Slow:
    """Holds up a function of the store until it may go on, with what it was given."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str) -> None:
        self._real = getattr(store, name)
        self.begun, self.go = threading.Event(), threading.Event()
        patch.setattr(store, name, self)

    def __call__(self, *args: object) -> object:
        """Wait, then do it."""
        self.begun.set()
        assert self.go.wait(10)
        return self._real(*args)

    async def reached(self) -> None:
        """Return when somebody waits in it."""
        assert await asyncio.to_thread(self.begun.wait, 10)


def memories() -> int:
    """Return how many memories of templates this process has open."""
    gc.collect()
    opened = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return sum("skerry-template" in str(fd.readlink()) for fd in opened)


def play(work: Coroutine[Any, Any, None]) -> None:
    """Run a scene to its end."""
    asyncio.run(asyncio.wait_for(work, 10))


def test_it_is_made_once_for_all_who_want_it_and_kept_for_the_next_node(tmp_path: Path) -> None:
    """Several starts at once boot one; the next node reads it from the disk."""

    async def scene() -> None:
        shelf = Shelf(tmp_path)
        first, *others = await asyncio.gather(*(shelf.find() for _ in range(4)))
        assert all(other is first for other in others)
        assert shelf.boots.count == 1
        assert shelf.events() == ["template-made", *["cloned"] * 4]
        later = Shelf(tmp_path)
        again = await later.find()
        assert later.boots.count == 0
        assert os.pread(again.ram, 6, 4096) == b"booted"
        assert again.state == first.state
        assert later.told[-1][1]["ram"] == shelf.told[0][1]["ram"]

    play(scene())


def test_another_label_does_not_get_it(tmp_path: Path) -> None:
    """Its domains boot one of their own, in memory of its own."""

    async def scene() -> None:
        shelf = Shelf(tmp_path)
        red, blue = await shelf.find(KIND), await shelf.find(BLUE)
        assert shelf.boots.count == 2
        assert os.fstat(red.ram).st_ino != os.fstat(blue.ram).st_ino
        assert (await shelf.find(KIND)) is red, "the control: the same label does"

    play(scene())


def test_labels_share_one_only_where_the_system_says_so() -> None:
    """By default another label is another kind; told to share, whose it is makes no difference."""
    place = Path("/i/vmlinux")
    image = Image("minimal", place, place, place, place, "d", "6.1", "", {}, 2, 9, 9, {})
    red = QemuSpec("a", "red", kernel=place, initrd=place)
    blue = msgspec.structs.replace(red, name="b", label="blue")
    own = [module.kind_of(spec, image, "qemu-1", False) for spec in (red, blue)]
    shared = [module.kind_of(spec, image, "qemu-1", True) for spec in (red, blue)]
    assert own[0] != own[1]
    assert shared[0] == shared[1]
    other = msgspec.structs.replace(blue, memory=red.memory * 2)
    assert module.kind_of(other, image, "qemu-1", True) != shared[0]


def test_a_host_whose_counter_has_another_rate_has_templates_of_its_own() -> None:
    """Its clones would keep the clock of the old one; what two measurements differ by (the control)
    makes no other kind."""
    place = Path("/i/vmlinux")
    image = Image("minimal", place, place, place, place, "d", "6.1", "", {}, 2, 9, 9, {})
    kinds = [
        module.kind_of(QemuSpec("a", "red", kernel=place, tsc_khz=khz), image, "qemu-1", False)
        for khz in (2_299_996, 2_300_151, 2_400_004)
    ]
    assert kinds[0] == kinds[1] != kinds[2]
    assert kinds[2].supersedes(kinds[0])


def test_an_altered_one_is_refused_and_stays_for_who_looks_into_it(tmp_path: Path) -> None:
    """Nothing boots in its place until it was removed; then one is made."""

    async def scene() -> None:
        await Shelf(tmp_path).find()
        state = tmp_path / KIND.key / "state"
        state.chmod(0o600)
        state.write_bytes(b"other")
        shelf = Shelf(tmp_path)
        for _ in range(2):
            with pytest.raises(TemplateAltered):
                await shelf.find()
        assert shelf.boots.count == 0
        assert state.read_bytes() == b"other"
        store.remove(tmp_path, KIND.key)
        await shelf.find()
        assert shelf.boots.count == 1

    play(scene())


@pytest.mark.parametrize("part", ["ram", "state", "template.json"])
def test_a_damaged_one_is_made_anew(tmp_path: Path, part: str) -> None:
    """A part that is missing: the trail says that it was dropped and made."""

    async def scene() -> None:
        await Shelf(tmp_path).find()
        (tmp_path / KIND.key / part).unlink()
        shelf = Shelf(tmp_path)
        await shelf.find()
        assert shelf.events() == ["template-dropped", "template-made", "cloned"]

    play(scene())


def test_one_that_was_removed_is_not_used_from_memory(tmp_path: Path) -> None:
    """Who removes a template means it: the next start makes another."""

    async def scene() -> None:
        shelf = Shelf(tmp_path)
        old = await shelf.find()
        store.remove(tmp_path, KIND.key)
        assert (await shelf.find()) is not old
        assert shelf.boots.count == 2

    play(scene())


def test_a_boot_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    """The starts go on without a template at once; a denial (the control) is one each time."""

    async def scene() -> None:
        shelf = Shelf(tmp_path)
        shelf.boots.failure = LayerMissing("no jail")
        for _ in range(2):
            with pytest.raises(LayerMissing):
                await shelf.find()
        shelf.boots.failure = MachineError("it does not boot")
        for _ in range(2):
            with pytest.raises(TemplateUnusable, match="does not boot"):
                await shelf.find()
        assert shelf.boots.count == 3
        assert shelf.events() == ["template-given-up"]

    play(scene())


def test_who_waits_makes_it_when_the_maker_is_ended(tmp_path: Path) -> None:
    """A domain that is killed while it makes a template takes the making with it, no more."""

    async def scene() -> None:
        shelf = Shelf(tmp_path)
        shelf.boots.go.clear()
        maker = asyncio.ensure_future(shelf.find())
        waiter = asyncio.ensure_future(shelf.find())
        while not shelf.boots.count:  # noqa: ASYNC110  -- it begins in a thread
            await asyncio.sleep(0.001)
        maker.cancel()
        await asyncio.wait({maker})
        shelf.boots.go.set()
        await waiter
        assert maker.cancelled()
        assert shelf.boots.count == 2

    play(scene())


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "control"])
def test_a_start_that_is_killed_stores_no_other_memory_as_its_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Red ends while its memory is copied, and blue's comes up: red's key never has blue's bytes.

    It has nothing then, and red's own where red was not ended (the control).
    """
    slow = Slow(monkeypatch, "_copy")

    async def scene() -> None:
        shelf = Shelf(tmp_path)
        red = asyncio.ensure_future(shelf.find(KIND))
        await slow.reached()
        if killed:
            red.cancel()
            await asyncio.wait({red}, timeout=1)
            assert red.cancelled(), "it does not wait for the disk"
        gc.collect()
        shelf.boots.word = b"blue's"
        other = make_ram(SIZE)  # would have the number of red's
        os.pwrite(other, b"others", 4096)
        blue = asyncio.ensure_future(shelf.find(BLUE))
        slow.go.set()
        await blue
        os.close(other)
        if killed:
            await shelf.templates.close()
            assert store.manifest_of(tmp_path, KIND) is None
            assert shelf.events() == ["template-made", "cloned"], "blue's"
        else:
            await red
        manifest = store.manifest_of(tmp_path, KIND if not killed else BLUE)
        assert manifest is not None
        found = store.read(tmp_path, manifest)
        assert os.pread(found.ram, 6, 4096) == (b"blue's" if killed else b"booted")

    play(scene())


def test_who_waits_makes_it_when_the_piece_of_the_one_who_was_killed_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kind stays locked until the thread that writes has ended: no two write one template."""
    slow = Slow(monkeypatch, "_copy")

    async def scene() -> None:
        shelf = Shelf(tmp_path)
        first = asyncio.ensure_future(shelf.find())
        await slow.reached()
        first.cancel()
        second = asyncio.ensure_future(shelf.find())
        await asyncio.wait({second}, timeout=0.1)
        assert shelf.boots.count == 1
        slow.go.set()
        await second
        assert shelf.boots.count == 2
        assert shelf.events() == ["template-made", "cloned"]

    play(scene())


def test_a_start_that_is_killed_while_it_reads_keeps_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the thread has read is nobody's and goes; who is not killed (the control) has it."""

    async def scene() -> None:
        put(tmp_path)
        slow = Slow(monkeypatch, "read")
        shelf = Shelf(tmp_path)
        before = memories()
        reader = asyncio.ensure_future(shelf.find())
        await slow.reached()
        reader.cancel()
        await asyncio.wait({reader})
        slow.go.set()
        await shelf.templates.close()
        assert memories() == before
        kept = await shelf.find()
        assert (memories(), shelf.boots.count) == (before + 1, 0)
        assert kept.state == STATE

    play(scene())


def test_without_room_on_the_disk_it_lives_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made, used for this life of the node, and the trail says that it is not kept."""

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    async def scene() -> None:
        monkeypatch.setattr(store, "write", full)
        shelf = Shelf(tmp_path)
        assert (await shelf.find()) is (await shelf.find())
        assert shelf.boots.count == 1
        assert "template-not-kept" in shelf.events()

    play(scene())


def test_one_that_qemu_refuses_is_dropped_and_not_made_for_ever(tmp_path: Path) -> None:
    """One from the disk is made anew once; one that was just made is given up."""

    async def scene() -> None:
        await Shelf(tmp_path).find()
        shelf = Shelf(tmp_path)
        await shelf.find()
        shelf.templates.refused(KIND, "not this one")
        assert not (tmp_path / KIND.key).exists()
        await shelf.find()
        assert shelf.boots.count == 1
        shelf.templates.refused(KIND, "nor this")
        with pytest.raises(TemplateUnusable, match="nor this"):
            await shelf.find()

    play(scene())


def test_no_more_are_in_memory_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one used longest ago is let go, and read again; who has it still has it."""

    async def scene() -> None:
        monkeypatch.setattr(module, "MAX_LOADED", 1)
        shelf = Shelf(tmp_path)
        red = await shelf.find()
        await shelf.find(BLUE)
        assert os.pread(red.ram, 6, 4096) == b"booted"
        again = await shelf.find()
        assert again is not red
        assert shelf.boots.count == 2
        descriptor = red.ram
        del red
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)

    play(scene())


def test_one_that_its_clones_have_made_grow_is_let_go_when_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the limit (the control) it stays; beyond it the next start reads a fresh one."""
    monkeypatch.setattr(module, "GROWN_MAX", 4 * mmap.PAGESIZE)

    async def scene() -> None:
        shelf = Shelf(tmp_path)
        first = await shelf.find()
        own = first.own_open()
        with mmap.mmap(own, SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ) as clone:
            for count, same in ((4, True), (5, False)):
                for place in range(8, 8 + count):
                    _ = clone[place * mmap.PAGESIZE]
                shelf.templates.ended(KIND)
                shelf.templates.ended(BLUE)
                assert ((await shelf.find()) is first) == same
        os.close(own)
        assert (await shelf.find()).grown() == 0
        assert shelf.boots.count == 1

    play(scene())


def test_one_that_is_used_from_memory_is_used(tmp_path: Path) -> None:
    """On the disk it counts as used last, whether it was read (the control) or was there."""

    async def scene() -> None:
        shelf = Shelf(tmp_path)
        await shelf.find(KIND)
        await shelf.find(BLUE)
        for node, kind in ((shelf, KIND), (shelf, BLUE), (Shelf(tmp_path), KIND)):
            for one in (KIND, BLUE):
                age = 1000 if one == kind else 2000
                os.utime(tmp_path / one.key, (age, age))
            await node.find(kind)
            assert store.stored(tmp_path)[-1].key == kind.key

    play(scene())


def test_the_beginning_of_a_node_sweeps_what_a_killed_one_left(tmp_path: Path) -> None:
    """A piece of a template is in nobody's way."""

    async def scene() -> None:
        (tmp_path / ".work-1").mkdir()
        shelf = Shelf(tmp_path)
        await shelf.find()

    play(scene())
    assert [path.name for path in tmp_path.iterdir()] == [KIND.key]
