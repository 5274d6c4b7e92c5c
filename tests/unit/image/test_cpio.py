"""The archive writer: what goes in comes out, and the same entries are the same bytes."""

import random
import subprocess
from pathlib import Path

import pytest

from skerry.image import cpio

ENTRIES = [
    cpio.file("bin/tool", b"#!/bin/sh\n", mode=0o755),
    cpio.file("etc/odd", b"12345"),
    cpio.link("bin/alias", "/bin/tool"),
    cpio.directory("tmp", mode=0o1777),
]


def test_another_reader_unpacks_what_was_packed(tmp_path: Path) -> None:
    """GNU cpio finds contents, modes, links and the parents that were not named."""
    subprocess.run(
        ["cpio", "-idm", "--quiet"], input=cpio.archive(ENTRIES), cwd=tmp_path, check=True
    )
    assert (tmp_path / "bin/tool").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "bin/tool").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "etc/odd").read_bytes() == b"12345"
    assert (tmp_path / "etc/odd").stat().st_mode & 0o7777 == 0o444
    assert str((tmp_path / "bin/alias").readlink()) == "/bin/tool"
    assert (tmp_path / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_the_order_of_entries_changes_nothing() -> None:
    """Two archives of the same entries are equal byte by byte."""
    shuffled = ENTRIES[:]
    random.Random(1).shuffle(shuffled)
    assert shuffled != ENTRIES
    assert cpio.archive(shuffled) == cpio.archive(ENTRIES)


@pytest.mark.parametrize("path", ["/etc/x", "a/../../x", "..", ".", "TRAILER!!!"])
def test_a_path_outside_the_image_is_refused(path: str) -> None:
    """Absolute and climbing paths, and the end mark, are no entries."""
    with pytest.raises(ValueError, match="not a path"):
        cpio.archive([cpio.file(path, b"")])


def test_two_entries_of_one_path_are_refused() -> None:
    """Which of the two would win is not left to the kernel."""
    with pytest.raises(ValueError, match="two entries"):
        cpio.archive([cpio.file("a", b"1"), cpio.link("a", "b")])


def test_an_archive_is_read_as_it_was_written() -> None:
    """Every kind of entry, with its mode and bytes; parents are there as directories."""
    written = [cpio.file("a/b", b"12345"), cpio.link("a/c", "b"), cpio.directory("d", mode=0o1777)]
    found = {entry.path: entry for entry in cpio.entries(cpio.archive(written))}
    assert found == {entry.path: entry for entry in [*written, cpio.directory("a")]}


def test_an_archive_that_is_cut_off_or_altered_is_refused() -> None:
    """At every length but the whole, and with any other mark."""
    whole = cpio.archive([cpio.file("a", b"12345")])
    assert cpio.entries(whole)
    for length in range(len(whole) - 12):
        with pytest.raises(ValueError):
            cpio.entries(whole[:length])
    with pytest.raises(ValueError, match="not a newc"):
        cpio.entries(b"070702" + whole[6:])
