"""A jail's root holds what it was made of, and is refused when somebody else made it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.jail import confinement, root
from skerry.jail.errors import JailError
from skerry.jail.identity import Identity

TRUE = Path("/usr/bin/true")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory whose roots can be removed afterwards."""
    place = tmp_path / "roots"
    yield place
    for folder, _, _ in os.walk(place):
        Path(folder).chmod(0o755)


def test_a_root_holds_the_program_its_libraries_and_mount_points(directory: Path) -> None:
    """Each file keeps its path; nothing can be written, and building again is the same root."""
    made = root.build(directory, "true", [TRUE], (), ["/k/kernel", "data/"], [("link", "usr/lib")])
    files = {"/" + str(p.relative_to(made)) for p in made.rglob("*") if p.is_file()}
    assert files >= {str(TRUE), str(root.LOADER), "/k/kernel"}
    assert any("libc.so" in name for name in files)
    assert (made / "data").is_dir()
    assert (made / "link").readlink() == Path("usr/lib")
    modes = {stat.S_IMODE(p.lstat().st_mode) for p in made.rglob("*") if not p.is_symlink()}
    assert modes <= {0o555, 0o444}
    again = root.build(directory, "true", [TRUE], (), ["/k/kernel", "data/"], [("link", "usr/lib")])
    assert again == made
    assert [p.name for p in directory.iterdir()] == [made.name]


def test_another_content_is_another_root(directory: Path, tmp_path: Path) -> None:
    """The name changes with a file's bytes and with the mount points."""
    file = tmp_path / "file"
    names = set()
    for content in ("a", "b"):
        file.write_text(content)
        names.add(root.build(directory, "x", (), [file]).name)
    names.add(root.build(directory, "x", (), [file], ["/k"]).name)
    assert len(names) == 3


def test_a_missing_file_or_library_is_named(directory: Path, tmp_path: Path) -> None:
    """The error says which file, and nothing is left behind."""
    with pytest.raises(JailError, match="needs /missing: No such file"):
        root.build(directory, "x", (), [Path("/missing")])
    assert not directory.exists()


def test_a_root_that_others_can_change_is_refused(directory: Path) -> None:
    """One that anybody may write, and one that belongs to somebody else, are no roots."""
    made = root.build(directory, "x", (), ())
    made.chmod(0o777)
    with pytest.raises(JailError, match="can be changed by others"):
        root.build(directory, "x", (), ())
    made.chmod(0o555)
    if os.getuid() == 0:
        os.chown(made, 12345, 12345)
        with pytest.raises(JailError, match="belongs to somebody else"):
            root.build(directory, "x", (), ())
        os.chown(made, 0, 0)
    assert root.build(directory, "x", (), ()) == made


def test_missing_bwrap_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error tells what to install."""
    monkeypatch.setattr(confinement, "BWRAP", "/usr/bin/missing")
    jail = confinement.Confinement("/", Identity(7, 7), accepted=frozenset({"cgroup"}))
    with pytest.raises(JailError, match="install the package bubblewrap"):
        confinement.command(jail, ["/x"], 3)
