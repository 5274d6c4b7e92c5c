"""Templates on the disk: whole or not at all, compared before each use, and bounded in number."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from skerry.errors import NotFound
from skerry.machine.qemu.template import Template, make_ram, seal_now
from skerry.node import template_store as store
from skerry.node.template_store import Kind, TemplateAltered, TemplateDamaged

SIZE = 1 << 20
STATE = b"the state of devices"
KIND = Kind("minimal", "d1", "vmlinux", SIZE, 1, "microvm", "tcg", "qemu-1", "p", 46, "red")


def memory(*places: int) -> int:
    """Return a guest's memory with some bytes at these places."""
    ram = make_ram(SIZE)
    for place in places:
        os.pwrite(ram, b"guest", place)
    return ram


def template(ram: int) -> Template:
    """Return a template with that memory, which is sealed from then on."""
    assert seal_now(ram)
    return Template(ram, STATE)


def put(folder: Path, kind: Kind = KIND) -> store.Manifest:
    """Write a template of that kind."""
    return store.write(folder, kind, template(memory(0, 300_000, SIZE - 5)))


def test_what_is_read_is_what_was_written_and_can_not_be_changed(tmp_path: Path) -> None:
    """Memory and state come back; the memory is sealed, where a fresh one (the control) is not."""
    manifest = put(tmp_path)
    assert store.manifest_of(tmp_path, KIND) == manifest
    found = store.read(tmp_path, manifest)
    whole = os.pread(found.ram, SIZE, 0)
    assert found.state == STATE
    assert [whole.find(b"guest"), whole.rfind(b"guest"), len(whole)] == [0, SIZE - 5, SIZE]
    assert whole.count(0) == SIZE - 15
    with pytest.raises(PermissionError):
        os.pwrite(found.ram, b"x", 0)
    fresh = memory()
    assert os.pwrite(fresh, b"x", 0) == 1
    os.close(fresh)


def test_holes_stay_holes(tmp_path: Path) -> None:
    """A mostly empty memory takes little room, and its zeros make no difference to its digest."""
    manifest = put(tmp_path)
    [one] = store.stored(tmp_path)
    assert one.bytes <= 5 * store.BLOCK
    dense = memory()
    os.pwrite(dense, bytes(SIZE), 0)
    for place in (0, 300_000, SIZE - 5):
        os.pwrite(dense, b"guest", place)
    again = store.write(tmp_path, KIND, template(dense))
    assert again.ram == manifest.ram


def test_a_memory_that_can_not_be_read_is_no_empty_one(tmp_path: Path) -> None:
    """No descriptor, or one that is no file's, is an error; a hole up to the end (the control) is
    nothing to copy."""
    empty = memory()
    assert list(store.blocks(empty, SIZE)) == []
    os.close(empty)
    pipe = os.pipe()
    for wrong in (-1, *pipe):
        with pytest.raises(OSError, match=r"Bad file descriptor|Illegal seek"):
            list(store.blocks(wrong, SIZE))
    for end in pipe:
        os.close(end)


def _change(name: str, place: int) -> Callable[[Path], object]:
    def change(home: Path) -> None:
        (home / name).chmod(0o600)
        with (home / name).open("r+b") as file:
            file.seek(place)
            file.write(b"!")

    return change


@pytest.mark.parametrize(
    "alter",
    [_change("ram", 1), _change("ram", 500_000), _change("state", 3)],
    ids=["ram", "hole", "state"],
)
def test_one_that_was_altered_is_a_denial(tmp_path: Path, alter: Callable[[Path], object]) -> None:
    """Whether in its memory, where there was nothing, or in its state; unaltered it is read."""
    manifest = put(tmp_path)
    store.read(tmp_path, manifest)
    alter(tmp_path / KIND.key)
    with pytest.raises(TemplateAltered, match="was altered"):
        store.read(tmp_path, manifest)


@pytest.mark.parametrize("part", ["ram", "state"])
def test_one_that_is_not_whole_is_damaged(tmp_path: Path, part: str) -> None:
    """A missing part, or a memory of another length: to be made again."""
    manifest = put(tmp_path)
    file = tmp_path / KIND.key / part
    if part == "ram":
        file.chmod(0o600)
        os.truncate(file, SIZE - 1)
        with pytest.raises(TemplateDamaged, match="not as long"):
            store.read(tmp_path, manifest)
    file.unlink()
    with pytest.raises(TemplateDamaged, match="can't be read"):
        store.read(tmp_path, manifest)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[" * 60_000, b" " * (store.MANIFEST_MAX + 1), b"\xff"]
)
def test_a_description_that_is_none_is_damaged(tmp_path: Path, content: bytes) -> None:
    """Empty, of another shape, deeply nested, too long, or no text."""
    put(tmp_path)
    file = tmp_path / KIND.key / store.MANIFEST
    file.chmod(0o600)
    file.write_bytes(content)
    with pytest.raises(TemplateDamaged):
        store.manifest_of(tmp_path, KIND)
    assert [one.manifest for one in store.stored(tmp_path)] == [None]


def test_another_kinds_template_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    """A directory that was renamed to another label's is damaged, not that label's template."""
    put(tmp_path)
    blue = msgspec.structs.replace(KIND, label="blue")
    assert store.manifest_of(tmp_path, blue) is None
    (tmp_path / KIND.key).rename(tmp_path / blue.key)
    with pytest.raises(TemplateDamaged, match="another"):
        store.manifest_of(tmp_path, blue)


@pytest.mark.parametrize("name", Kind.__struct_fields__)
def test_everything_that_it_depends_on_makes_another_one(name: str) -> None:
    """Another image, QEMU, processor, label or size has another key."""
    old = getattr(KIND, name)
    other = msgspec.structs.replace(KIND, **{name: old + 1 if isinstance(old, int) else "x"})
    assert other.key != KIND.key


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle: no template and no piece of one; what was there stays."""
    manifest = put(tmp_path)

    def full(_path: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(store, "sync", full)
    with pytest.raises(OSError, match="No space"):
        put(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [KIND.key]
    assert store.manifest_of(tmp_path, KIND) == manifest


def test_what_a_killed_node_left_is_swept(tmp_path: Path) -> None:
    """A piece of a template is no template, and goes at the next beginning; whole ones stay."""
    put(tmp_path)
    work = tmp_path / ".work-abc"
    work.mkdir()
    (work / "ram").write_bytes(b"half")
    assert [one.key for one in store.stored(tmp_path)] == [KIND.key]
    store.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [KIND.key]


def test_a_new_one_takes_the_place_of_what_it_supersedes(tmp_path: Path) -> None:
    """Another image or QEMU of the same name makes the old one go; another label's stays."""
    other = msgspec.structs.replace(KIND, label="blue")
    for kind in (KIND, other):
        put(tmp_path, kind)
    new = msgspec.structs.replace(KIND, digest="d2", root="qemu-2")
    put(tmp_path, new)
    assert store.prune(tmp_path, new) == [KIND.key]
    assert {one.key for one in store.stored(tmp_path)} == {other.key, new.key}


def test_the_one_used_longest_ago_goes_at_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By number and by bytes; within the limits (the control) nothing goes."""
    kinds = [msgspec.structs.replace(KIND, label=f"l{n}") for n in range(4)]
    for age, kind in enumerate(kinds):
        put(tmp_path, kind)
        os.utime(tmp_path / kind.key, (1000 + age, 1000 + age))
    assert store.prune(tmp_path, kinds[3]) == []
    monkeypatch.setattr(store, "MAX_TEMPLATES", 3)
    assert store.prune(tmp_path, kinds[3]) == [kinds[0].key]
    monkeypatch.setattr(store, "MAX_BYTES", 1)
    assert store.prune(tmp_path, kinds[1]) == [kinds[2].key, kinds[3].key]


def test_one_is_removed_by_the_beginning_of_its_key(tmp_path: Path) -> None:
    """An unknown one, none at all and an ambiguous one are said, and nothing goes."""
    put(tmp_path)
    put(tmp_path, msgspec.structs.replace(KIND, label="blue"))
    for word in ("", "nothing"):
        with pytest.raises(NotFound):
            store.remove(tmp_path, word)
    assert len(store.stored(tmp_path)) == 2
    store.remove(tmp_path, KIND.key[:12])
    assert KIND.key not in {one.key for one in store.stored(tmp_path)}


def test_a_memory_is_sealed_only_when_nobody_can_write_it() -> None:
    """While a mapping is there the seal is refused; once it is gone it holds for good."""
    import mmap

    ram = memory()
    view = mmap.mmap(ram, SIZE)
    assert not seal_now(ram)
    view.close()
    assert seal_now(ram)
    assert fcntl.fcntl(ram, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
    with pytest.raises(PermissionError):
        mmap.mmap(ram, SIZE)
    mmap.mmap(ram, SIZE, flags=mmap.MAP_PRIVATE).close()
    os.close(ram)
