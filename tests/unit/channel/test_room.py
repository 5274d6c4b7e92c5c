"""Whether there is room for a memory: what is read, and that a refusal takes no page."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from skerry.channel import room
from skerry.channel.memory import MemoryBridges
from skerry.channel.stream import StreamBridges
from skerry.errors import LimitReached, TransportError
from skerry.wire import memory

MIB = 1 << 20
HOST = 4096 * MIB
V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
V2 = "memory.max", "memory.current", "inactive_file"


def host(root: Path, groups: str = "", available: object = HOST >> 10) -> Path:
    """Make the files of a host."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal:       24684100 kB\nMemAvailable:   {available} kB\nCached:  1 kB\n"
    )
    (root / "proc/self/cgroup").write_text(groups)
    return root


def group(
    root: Path, path: str, files: tuple[str, str, str], limit: object, used: object, idle: int = 0
) -> None:
    """Make a control group with a limit."""
    directory = root / "sys/fs/cgroup" / path
    directory.mkdir(parents=True, exist_ok=True)
    (directory / files[0]).write_text(f"{limit}\n")
    (directory / files[1]).write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"cache 1\n{files[2]} {idle}\nunevictable 0\n")


def test_without_a_group_the_hosts_memory_counts(tmp_path: Path) -> None:
    """A memory may take all but the reserve, and not a byte more."""
    root = host(tmp_path, "0::/\n")
    assert room.available(root) == HOST
    room.require(HOST - room.RESERVE, root)
    with pytest.raises(LimitReached, match="4096 MiB are left, of which 256 MiB stay free"):
        room.require(HOST - room.RESERVE + 1, root)


@pytest.mark.parametrize(
    ("groups", "mount", "files"),
    [
        ("5:cpu:/\n4:memory:/one/two\n0::/\n", "memory/", V1),
        ("4:hugetlb,memory:/one/two\n", "memory/", V1),
        ("0::/one/two\n", "", V2),
    ],
)
def test_what_is_left_of_the_groups_limit_counts(
    tmp_path: Path, groups: str, mount: str, files: tuple[str, str, str]
) -> None:
    """Of the caller's own group, and of those above it; pages that are unused are left."""
    root = host(tmp_path, groups)
    group(root, f"{mount}one/two", files, 700 * MIB, 400 * MIB)
    assert room.available(root) == 300 * MIB
    group(root, f"{mount}one/two", files, 700 * MIB, 400 * MIB, idle=100 * MIB)
    assert room.available(root) == 400 * MIB
    group(root, f"{mount}one", files, 500 * MIB, 450 * MIB)
    assert room.available(root) == 50 * MIB
    group(root, f"{mount}one", files, 500 * MIB, 501 * MIB)
    assert room.available(root) == 0
    group(root, f"{mount}other", files, MIB, 0)
    group(root, f"{mount}one", files, HOST, 0)
    assert room.available(root) == 400 * MIB, "no other group counts"


def test_a_group_without_a_limit_bounds_nothing(tmp_path: Path) -> None:
    """`max` of version 2, the largest number of version 1, and files that are not there."""
    root = host(tmp_path, "4:memory:/one\n0::/two\n")
    assert room.available(root) == HOST
    group(root, "memory/one", V1, 9223372036854771712, 5)
    group(root, "two", V2, "max", 5)
    assert room.available(root) == HOST
    group(root, "two", V2, HOST // 2, 0)
    assert room.available(root) == HOST // 2, "the control: with a limit it counts"


def test_what_is_not_understood_is_refused(tmp_path: Path) -> None:
    """Nothing is taken for room that may be none."""
    root = host(tmp_path / "a", "0::/\n", "many")
    with pytest.raises(TransportError, match="no line MemAvailable; without that"):
        room.require(4096, root)
    for number, groups in enumerate(("memory\n", "x::/\n", "4:memory:one\n")):
        with pytest.raises(TransportError, match="proc/self/cgroup has the line"):
            room.require(4096, host(tmp_path / str(number), groups))
    with pytest.raises(TransportError, match="No such file"):
        room.require(4096, tmp_path / "nothing")
    root = host(tmp_path / "b", "0::/one\n")
    for limit, used in (("1k", 0), (-1, 0), ("", 0), (1 << 40, "max"), (1 << 40, "")):
        group(root, "one", V2, limit, used)
        with pytest.raises(TransportError, match="not understood"):
            room.require(4096, root)
    group(root, "one", V2, 1 << 40, 0)
    room.require(4096, root)


def test_of_this_host_something_is_left() -> None:
    """The real files are understood."""
    assert 0 < room.available() < 1 << 50


def test_a_memory_without_room_is_refused_before_it_has_a_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reading is that of a host that is nearly full. The control: with room it is filled."""

    async def main() -> None:
        streams = StreamBridges()
        makers = MemoryBridges(streams)
        size = 1 << 20
        filled: list[int] = []
        monkeypatch.setattr(memory, "fill", filled.append)
        for left in (room.RESERVE + size - 1, room.RESERVE + size):
            monkeypatch.setattr(room, "available", lambda root, left=left: left)
            bridge = makers.mint(False, size=size)
            if left < room.RESERVE + size:
                with pytest.raises(LimitReached, match="no room for a memory of 1 MiB") as refused:
                    await bridge.open(1)
                assert refused.value.fix.startswith("make it smaller")
                assert refused.value.code == "LIMIT-REACHED"
                assert not filled
            else:
                await bridge.open(1)
                assert len(filled) == 1
            bridge.cut()
        streams.close()

    asyncio.run(main())


def test_memories_are_filled_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that are asked for at once don't both take the room that one of them has."""

    async def main() -> None:
        streams = StreamBridges()
        makers = MemoryBridges(streams)
        size = 1 << 20
        taken = 0

        def left(root: Path) -> int:
            return room.RESERVE + size - taken

        def take(descriptor: int) -> None:
            nonlocal taken
            time.sleep(0.05)
            taken += size

        monkeypatch.setattr(room, "available", left)
        monkeypatch.setattr(memory, "fill", take)
        bridges = [makers.mint(False, size=size) for _ in range(4)]
        done = await asyncio.gather(*(b.open(1) for b in bridges), return_exceptions=True)
        assert [isinstance(error, LimitReached) for error in done] == [False, True, True, True]
        for bridge in bridges:
            bridge.cut()
        streams.close()

    asyncio.run(main())
