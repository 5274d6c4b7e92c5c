"""Images that are cut off, at whatever length, are refused; whole ones of every kind are not."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.device.disk import luks
from skerry.device.disk.clusters import MAX_TABLES, check_clusters
from skerry.device.disk.header import HEADER_BYTES, BadImage, check_qcow2
from skerry.device.disk.image import DiskInUse, open_image
from skerry.system.model import Format, ResourceSpec

MIB = 1 << 20
KINDS = (
    "compat=0.10",
    "compat=1.1",
    "cluster_size=512",
    "cluster_size=4096",
    "cluster_size=2M",
    "extended_l2=on,cluster_size=16k",
    "lazy_refcounts=on",
    "refcount_bits=1",
    "refcount_bits=64,cluster_size=512",
)
WRITES = ("write -P 7 100k 700k", "write -P 8 9M 100k", "write -z 200k 64k", "write -P 9 10M 3M")


def spec(path: Path, format_: Format = "qcow2", size: int = 0) -> ResourceSpec:
    """Describe a disk."""
    return ResourceSpec("data", "disk", "disk", str(path), format_, size)


def qemu_io(path: Path, *commands: str) -> None:
    """Run commands on an image; one that ends it (`abort`) ends it."""
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qcow2", *words, str(path)], capture_output=True, check=False)


def create(path: Path, options: str, size: str = "16M") -> None:
    """Make an image."""
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(path), size]
    subprocess.run(words, check=True)


def is_taken(path: Path, size: int = 0) -> bool:
    """Say whether an image is used, in a way that changes it or not."""
    try:
        open_image(spec(path, size=size), writes=True).close()
    except BadImage as error:
        assert str(path) in error.message
        assert error.fix
        assert "\n" not in error.message
        return False
    return True


@pytest.mark.parametrize("options", KINDS)
def test_an_image_that_is_cut_anywhere_before_its_last_cluster_is_refused(
    tmp_path: Path, options: str
) -> None:
    """At every cluster's border and beside it; whole, and cut within its last, it is used."""
    path = tmp_path / "data.qcow2"
    create(path, options)
    qemu_io(path, *WRITES)
    whole = path.stat().st_size
    cluster = 1 << struct.unpack_from(">I", path.read_bytes(), 20)[0]
    assert is_taken(path)
    last = (whole - 1) // cluster * cluster
    step = max(cluster, whole // 200 // cluster * cluster)
    lengths = {at + by for at in range(0, last + 1, step) for by in (-1, 0, 1, 511)} | {last}
    for length in sorted((each for each in lengths if 0 <= each < whole), reverse=True):
        os.truncate(path, length)
        assert is_taken(path) is (length > last), length


@pytest.mark.parametrize("options", ["compression_type=zlib", "compression_type=zstd"])
def test_a_compressed_image_is_refused_without_its_last_sector(
    tmp_path: Path, options: str
) -> None:
    """What is compressed lies at any byte; the file ends in the sector of its last."""
    raw, path = tmp_path / "raw", tmp_path / "data.qcow2"
    raw.write_bytes(os.urandom(MIB) + bytes(MIB) + b"words " * 100_000 + bytes(MIB + 80))
    words = ["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options]
    subprocess.run([*words, str(raw), str(path)], check=True)
    whole = path.stat().st_size
    assert is_taken(path)
    for length in (whole - 1, whole - 511):
        os.truncate(path, length)
        assert is_taken(path), "its last sector is not filled"
    for length in (whole - 512, whole - 70_000, whole // 2, whole // 3):
        os.truncate(path, length)
        assert not is_taken(path), length


@pytest.mark.parametrize(
    "options",
    [
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "preallocation=metadata,extended_l2=on",
        "preallocation=metadata,cluster_size=512",
    ],
)
@pytest.mark.parametrize("size", ["8000k", "16M"])
def test_what_is_allocated_before_it_is_written_is_whole(
    tmp_path: Path, options: str, size: str
) -> None:
    """Also where the disk ends within a cluster, and has grown since; cut, it is refused."""
    path = tmp_path / "data.qcow2"
    create(path, options, size)
    assert is_taken(path)
    subprocess.run(["qemu-img", "resize", "-q", "-f", "qcow2", str(path), "24M"], check=True)
    assert is_taken(path)
    os.truncate(path, 5 * MIB)
    assert not is_taken(path)


def test_what_was_written_by_one_that_was_killed_is_whole(tmp_path: Path) -> None:
    """It did not close the image, whose counts may be behind; nor is it one with snapshots, or
    one that was trimmed, that is refused."""
    for number, options in enumerate(set(KINDS) - {"refcount_bits=1"}):
        path = tmp_path / f"{number}.qcow2"
        create(path, options)
        qemu_io(path, *WRITES, "discard 100k 600k", "write -P 3 5M 1M", "abort")
        assert is_taken(path), options
        for words in (["check", "-q", "-r", "all"], ["snapshot", "-c", "before"]):
            subprocess.run(["qemu-img", *words, str(path)], check=True, capture_output=True)
        qemu_io(path, "write -P 4 100k 1M", "discard 9M 5M", "write -z -u 5M 1M")
        assert is_taken(path), options


def test_an_image_that_is_written_meanwhile_is_in_use_and_not_broken(tmp_path: Path) -> None:
    """Who has it is found before it is looked at. The control: when that has ended."""
    path = tmp_path / "data.qcow2"
    create(path, "compat=1.1")
    words = ["qemu-io", "-f", "qcow2", str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdin.write(b"write 0 64k\n")
        other.stdin.flush()
        while b"wrote" not in other.stdout.readline():
            pass
        os.truncate(path, 70_000)
        with pytest.raises(DiskInUse):
            open_image(spec(path), writes=True)
        other.communicate(b"abort\n")
    assert not is_taken(path)


@pytest.mark.parametrize("format_", ["raw", "qcow2"])
def test_a_disk_that_is_smaller_than_the_system_file_says_is_refused(
    tmp_path: Path, format_: Format
) -> None:
    """The line says both sizes and what to do; one of that size or larger is used."""
    path = tmp_path / "data"
    subprocess.run(["qemu-img", "create", "-q", "-f", format_, str(path), "5M"], check=True)
    for size in (0, 4 * MIB, 5 * MIB):
        open_image(spec(path, format_, size), writes=True).close()
    for writes in (True, False):
        with pytest.raises(BadImage, match=f"is truncated: {5 * MIB} bytes .* {64 * MIB}") as bad:
            open_image(spec(path, format_, 64 * MIB), writes)
        assert bad.value.fix.startswith("restore the whole image; or")


@pytest.mark.parametrize("discard", [False, True])
def test_an_encrypted_disk_that_is_cut_off_is_refused(tmp_path: Path, discard: bool) -> None:
    """By its size, without the header's; one that is not, and a qcow2 one in there, is used."""
    path, size = tmp_path / "data", 8 * MIB
    disk = msgspec.structs.replace(spec(path, "raw", size), encrypted=True, discard=discard)
    with path.open("w+b") as file:
        luks.lay_out(file.fileno(), "key", size)
    open_image(disk, writes=True).close()
    os.truncate(path, luks.PAYLOAD + size - 512)
    with pytest.raises(BadImage, match=f"is truncated: {size - 512} bytes"):
        open_image(disk, writes=True)
    inner = msgspec.structs.replace(disk, format="qcow2")
    open_image(inner, writes=True).close()


class Made(NamedTuple):
    """An image in memory."""

    raw: bytes
    cluster: int


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    """Return images of several kinds."""
    found = []
    for options in ("cluster_size=512", "cluster_size=4096", "extended_l2=on,cluster_size=16k"):
        path = tmp_path_factory.mktemp("made") / "data.qcow2"
        create(path, options, "2M")
        qemu_io(path, "write -P 7 10k 70k", "write -P 1 1M 9k", "write -P 9 1500k 200k")
        raw = path.read_bytes()
        found.append(Made(raw, 1 << struct.unpack_from(">I", raw, 20)[0]))
    return found


def judge(raw: bytes) -> int:
    """Judge an image in memory; return how many bytes of tables were read."""
    read = 0

    def pread(long: int, at: int) -> bytes:
        nonlocal read
        assert 0 < long <= MIB
        read += long
        return raw[at : at + long]

    check_clusters(pread, len(raw), check_qcow2(len(raw), raw[:HEADER_BYTES]))
    return read


@given(st.integers(0, 2), st.floats(0, 1))
@settings(deadline=None, max_examples=300)
def test_no_length_is_taken_for_whole(made: list[Made], which: int, part: float) -> None:
    """Whatever is cut off by a cluster or more is refused; the whole is taken."""
    raw, cluster = made[which]
    judge(raw)
    length = int((len(raw) - cluster) * part)
    with pytest.raises(BadImage):
        judge(raw[:length])


@given(st.integers(0, 2), st.data())
@settings(deadline=None, max_examples=300)
def test_no_table_does_more_than_be_refused(
    made: list[Made], which: int, data: st.DataObject
) -> None:
    """Whatever words an image has, it is taken or a `BadImage`, and is read once at most."""
    raw = bytearray(made[which].raw)
    words = st.integers(0, 2**64 - 1) | st.sampled_from([2**62, 2**63, 2**64 - 1, 2**56 - 512, 1])
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(raw) // 8 - 1)) * 8
        struct.pack_into(">Q", raw, at, data.draw(words))
    with contextlib.suppress(BadImage):
        assert judge(bytes(raw)) <= 2 * len(raw)


def huge(path: Path, cluster_bits: int, entries: list[int], length: int) -> None:
    """Make an image, mostly holes, whose first table has these entries."""
    cluster = 1 << cluster_bits
    with path.open("wb") as file:
        fields = b"QFI\xfb", 2, 0, 0, cluster_bits, 1 << 40, 0, len(entries), 2 * cluster
        file.write(struct.pack(">4sIQIIQIIQQIIQ", *fields, cluster, 1, 0, 0))
        file.seek(2 * cluster)
        file.write(struct.pack(f">{len(entries)}Q", *entries))
        file.truncate(length)


def test_tables_that_have_no_end_are_refused_and_one_is_read_once(tmp_path: Path) -> None:
    """However many entries lead to a table; how much is read of others has a limit."""
    path = tmp_path / "data.qcow2"
    many, first = 1 << 22, 64 * MIB
    huge(path, 16, [first] * many, 65 * MIB)
    raw = 0

    def pread(descriptor: int, long: int, at: int) -> bytes:
        nonlocal raw
        raw += long
        return os.pread(descriptor, long, at)

    with path.open("rb") as file:
        layout = check_qcow2(65 * MIB, os.pread(file.fileno(), HEADER_BYTES, 0))
        check_clusters(partial(pread, file.fileno()), 65 * MIB, layout)
    assert raw <= 33 * MIB
    tables = MAX_TABLES >> 21
    apart = [(64 + 2 * number) * MIB for number in range(tables + 1)]
    huge(path, 21, apart, 1 << 40)
    with pytest.raises(BadImage, match="too many to look through") as bad:
        open_image(spec(path), writes=True)
    assert "cluster_size=2M" in bad.value.fix
    huge(path, 21, apart[:-1], 1 << 40)
    assert is_taken(path)
    huge(path, 16, [first] * (many + 1), 65 * MIB)
    with pytest.raises(BadImage, match="first table is over"):
        open_image(spec(path), writes=True)
