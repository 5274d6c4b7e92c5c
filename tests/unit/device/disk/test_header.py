"""Headers of images are judged without being believed."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.device.disk.header import HEADER_BYTES, BadImage, check_qcow2, check_raw


def made(folder: Path, *options: str, version: str = "1.1") -> bytes:
    """Return what qemu-img makes."""
    path = folder / "image.qcow2"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compat={version}", *options]
    subprocess.run([*words, str(path), "8M"], check=True)
    return path.read_bytes()


@pytest.mark.parametrize("version", ["0.10", "1.1"])
def test_what_qemu_img_makes_is_accepted(tmp_path: Path, version: str) -> None:
    """Both versions of the format, as the tool writes them."""
    raw = made(tmp_path, version=version)
    check_qcow2(len(raw), raw[:HEADER_BYTES])


def test_an_image_that_names_another_file_is_refused(tmp_path: Path) -> None:
    """A backing file, and data in a file of its own: both as the tool makes them."""
    base = tmp_path / "base.img"
    base.write_bytes(bytes(8 << 20))
    raw = made(tmp_path, "-b", str(base), "-F", "raw")
    with pytest.raises(BadImage, match="names a backing file"):
        check_qcow2(len(raw), raw[:HEADER_BYTES])
    raw = made(tmp_path, "-o", f"data_file={tmp_path / 'data.img'}")
    with pytest.raises(BadImage, match="keeps its data in another file"):
        check_qcow2(len(raw), raw[:HEADER_BYTES])


def test_an_image_that_hides_another_file_in_an_extension_is_refused(tmp_path: Path) -> None:
    """Without the bit, the name of a data file in the extensions is enough."""
    raw = bytearray(made(tmp_path))
    (at,) = struct.unpack_from(">I", raw, 100)
    name = struct.pack(">II", 0x44415441, 8) + b"/etc/key" + raw[at:]
    raw[at : at + len(name)] = name
    with pytest.raises(BadImage, match="names another file"):
        check_qcow2(len(raw), bytes(raw[:HEADER_BYTES]))


CHANGES = [
    (0, b"XXXX", "no qcow2 image"),
    (4, b"\0\0\0\x09", "version 9"),
    (20, b"\0\0\0\x08", "cluster size"),
    (20, b"\0\0\0\x40", "cluster size"),
    (24, b"\0" * 8, "a disk has"),
    (24, b"\xff" * 8, "a disk has"),
    (32, b"\0\0\0\x01", "encrypted"),
    (36, b"\xff\xff\xff\xff", "truncated"),
    (40, b"\x7f" * 8, "truncated"),
    (48, b"\0" * 7 + b"\x01", "truncated"),
    (56, b"\xff\xff\xff\xff", "truncated"),
    (72, b"\0" * 7 + b"\x02", "corrupt"),
    (72, b"\0" * 6 + b"\x01\0", "features"),
    (96, b"\0\0\0\x07", "a field"),
    (100, b"\0\0\0\x10", "a field"),
    (100, b"\xff\xff\xff\xff", "a field"),
]


@pytest.mark.parametrize(("at", "change", "words"), CHANGES)
def test_each_lie_is_named(tmp_path: Path, at: int, change: bytes, words: str) -> None:
    """One field of a good header is changed, and the refusal says which it is."""
    raw = bytearray(made(tmp_path))
    check_qcow2(len(raw), bytes(raw[:HEADER_BYTES]))
    raw[at : at + len(change)] = change
    with pytest.raises(BadImage, match=words):
        check_qcow2(len(raw), bytes(raw[:HEADER_BYTES]))


def test_an_image_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    """Its tables lie beyond its end."""
    raw = made(tmp_path)
    for length in (0, 71, 100, 104, 4096, 1 << 16, len(raw) - (1 << 16)):
        with pytest.raises(BadImage):
            check_qcow2(length, raw[: min(length, HEADER_BYTES)])


@given(st.binary(max_size=200), st.binary(max_size=400), st.integers(0, 1 << 40))
def test_no_header_does_more_than_be_refused(start: bytes, rest: bytes, length: int) -> None:
    """Whatever the bytes are, they are accepted or a `BadImage`."""
    for untrusted in (start, b"QFI\xfb\0\0\0\x03" + rest, b"LUKS\xba\xbe\0\x01" + rest * 2):
        for check in (check_qcow2, lambda n, u: check_raw(n, u, encrypted=True)):
            try:
                check(length, untrusted)
            except BadImage:
                continue


@given(st.data())
def test_a_changed_header_is_never_taken_for_one_with_another_file(data: st.DataObject) -> None:
    """What is accepted names no backing file, no data file and no unknown feature."""
    raw = bytearray(_GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(4, 159))] = data.draw(st.integers(0, 255))
    try:
        check_qcow2(5 << 16, bytes(raw))
    except BadImage:
        return
    assert raw[8:20] == bytes(12)
    if raw[7] == 3:
        assert not raw[79] & 0b110
        assert not any(raw[72:79])


_GOOD = (
    struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, 16, 8 << 20, 0, 1, 3 << 16, 1 << 16, 1, 0, 0
    )
    + struct.pack(">QQQII", 0, 0, 0, 4, 104)
).ljust(4096, b"\0")


def test_the_good_header_is_one() -> None:
    """The control of the test above."""
    check_qcow2(5 << 16, _GOOD)


@pytest.mark.parametrize("length", [0, 1, 511, 513, (1 << 47)])
def test_a_raw_image_that_is_no_disk_is_refused(length: int) -> None:
    """A raw image is a whole number of sectors, at least one, and bounded."""
    check_raw(512, b"", encrypted=False)
    with pytest.raises(BadImage):
        check_raw(length, b"", encrypted=False)


def test_a_raw_image_is_never_guessed_at() -> None:
    """What begins like qcow2 is raw where raw was said: the guest may have written it."""
    check_raw(512, b"QFI\xfb" + bytes(508), encrypted=False)
