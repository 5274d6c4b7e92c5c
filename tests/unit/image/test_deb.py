"""Packages as they could be made by an enemy: read as streams, bounded, and never unpacked."""

import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry.errors import SkerryError
from skerry.image import deb
from skerry.image.package import Package
from skerry.image.tree import Tree

CONTROL = b"Package: p\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **more: object) -> Member:
    """Describe one member of a package."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(data), 0o755
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def packed(members: list[Member]) -> bytes:
    """Return a packed tar archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def package(folder: Path, members: list[Member]) -> Path:
    """Write a package as `ar` holds it: by hand, as dpkg-deb would refuse to make some of these."""
    path = folder / "p_1.deb"
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": packed([member("./control", CONTROL)]),
        "data.tar.gz": packed(members),
    }
    whole = b"!<arch>\n"
    for name, data in parts.items():
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n"
        whole += head.encode() + data + b"\n" * (len(data) % 2)
    path.write_bytes(whole)
    return path


def facts(installed: int = 1 << 20) -> Package:
    """Return what the lists say of it."""
    return Package("p", "1", 0, "", installed)


def read(folder: Path, *members: Member, limit: int = 64 << 20) -> Tree:
    """Put such a package into a tree."""
    tree = Tree(limit, merged=True, drop=["usr/share/doc/*"])
    deb.add_to(tree, package(folder, list(members)), facts())
    return tree


def test_files_links_and_modes_come_as_they_are(tmp_path: Path) -> None:
    """A second name of a file is a copy of it; what is dropped is not there."""
    tree = read(
        tmp_path,
        member("./", kind=tarfile.DIRTYPE),
        member("./bin/tool", b"code"),
        member("./usr/bin/again", kind=tarfile.LNKTYPE, linkname="./bin/tool"),
        member("./usr/bin/link", kind=tarfile.SYMTYPE, linkname="tool"),
        member("./usr/share/doc/p/README", b"text"),
    )
    found = {path: (p.entry.data, p.entry.mode) for path, p in tree.placed.items()}
    assert found == {
        "usr/bin/tool": (b"code", 0o100755),
        "usr/bin/again": (b"code", 0o100755),
        "usr/bin/link": (b"tool", 0o120777),
    }


@pytest.mark.parametrize(
    ("owner", "mode"),
    [
        ({}, 0o6755),
        ({"uname": "root", "gname": "root"}, 0o6755),
        ({"uid": 10}, 0o2755),
        ({"uname": "daemon"}, 0o2755),
        ({"gid": 42}, 0o4755),
        ({"gname": "shadow"}, 0o4755),
        ({"uid": 10, "gid": 42}, 0o755),
    ],
)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_set_id_bits_of_other_owners_do_not_become_roots(
    kind: bytes, owner: dict[str, object], mode: int, tmp_path: Path
) -> None:
    """By number or by name; those that were root's stay, also under a second name."""
    one = member("./usr/bin/x", kind=kind)
    one[0].mode = 0o6755
    for key, value in owner.items():
        setattr(one[0], key, value)
    again = member("./usr/bin/y", kind=tarfile.LNKTYPE, linkname="./usr/bin/x")
    tree = read(tmp_path, one, *([again] if kind == tarfile.REGTYPE else []))
    assert {p.entry.mode & 0o7777 for p in tree.placed.values()} == {mode}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (member("../../etc/evil", b"x"), "no path inside an image"),
        (member("./dev/null", kind=tarfile.CHRTYPE), "device or a pipe"),
        (member("./fifo", kind=tarfile.FIFOTYPE), "device or a pipe"),
        (member("./x", kind=tarfile.LNKTYPE, linkname="../etc/shadow"), "no path inside"),
        (member("./x", kind=tarfile.LNKTYPE, linkname="./nowhere"), "not there"),
    ],
    ids=["climbs", "device", "pipe", "hard link out", "hard link to nothing"],
)
def test_a_member_that_no_image_can_have_is_refused(
    bad: Member, words: str, tmp_path: Path
) -> None:
    """Beside a good one, which alone is taken."""
    good = member("./etc/good", b"x")
    assert read(tmp_path, good).placed.keys() == {"etc/good"}
    with pytest.raises(SkerryError, match=words):
        read(tmp_path, good, bad)


def test_a_link_leads_no_file_out_of_the_image(tmp_path: Path) -> None:
    """The classical trick: a link to a directory of the host, and a file through it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    link = member("./var", kind=tarfile.SYMTYPE, linkname=str(outside))
    tree = read(tmp_path, link, member("./var/evil", b"x"))
    with pytest.raises(SkerryError, match="lies behind the link /var"):
        list(tree.entries())
    assert list(outside.iterdir()) == []
    # The control: what a careless unpacker does with it.
    careless = tmp_path / "careless"
    careless.mkdir()
    tar = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", tmp_path / "p_1.deb"], capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        vars(archive)["extraction_filter"] = lambda info, _path: info  # Python 3.12 would help
        archive.extractall(careless)
    assert (outside / "evil").read_bytes() == b"x"


def test_a_member_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """The limit is the image's."""
    big = member("./big", bytes(3 << 20))
    assert read(tmp_path, big).size == 3 << 20
    with pytest.raises(SkerryError, match="over its limit of 2 MiB with /big of p"):
        read(tmp_path, big, limit=2 << 20)


def test_a_package_that_unpacks_to_more_than_the_lists_say_is_refused(tmp_path: Path) -> None:
    """A bomb of some kilobytes, also where all of it would be dropped."""
    path = package(tmp_path, [member("./usr/share/doc/bomb", bytes(20 << 20))])
    assert path.stat().st_size < 100_000
    deb.add_to(Tree(1 << 20, drop=["usr/share/doc/*"]), path, facts(20 << 20))
    with pytest.raises(SkerryError, match="p holds more than apt's lists say"):
        deb.add_to(Tree(1 << 20, drop=["usr/share/doc/*"]), path, facts(1 << 20))


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-200], lambda raw: raw[:70], lambda raw: b"x" + raw[1:]]
)
def test_a_damaged_package_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """Cut off or of another form; whole it is read."""
    path = package(tmp_path, [member("./x", bytes(range(256)) * 50)])
    deb.add_to(Tree(1 << 20), path, facts())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SkerryError, match=r"p_1\.deb is damaged; remove"):
        deb.add_to(Tree(1 << 20), path, facts())


@pytest.mark.parametrize("headers", [{"GNU.sparse.map": "x,1"}, {"size": "-9"}])
def test_a_member_with_a_broken_head_is_damage(headers: dict[str, str], tmp_path: Path) -> None:
    """Whatever the reader of archives makes of it; a head that is right is none."""
    good = member("./x", b"data", pax_headers={"comment": "x"})
    assert read(tmp_path, good).placed.keys() == {"x"}
    with pytest.raises(SkerryError, match=r"p_1\.deb is damaged"):
        read(tmp_path, good, member("./y", b"data", pax_headers=headers))
