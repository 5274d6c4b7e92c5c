"""What is put together in memory: no path leads out, none is two things, and all is bounded."""

from collections.abc import Sequence

import pytest

from skerry.errors import SkerryError
from skerry.image import cpio
from skerry.image.tree import APPLETS, SKERRY, Tree


def tree(limit: int = 1 << 20, drop: Sequence[str] = ()) -> Tree:
    """Return an empty tree with a merged `/usr`."""
    return Tree(limit, merged=True, drop=drop)


@pytest.mark.parametrize(
    "path", ["../etc/x", "a/../../x", "a/../b", "nul\0", "x" * 1100, "TRAILER!!!"]
)
def test_a_path_that_leads_out_is_refused(path: str) -> None:
    """In whatever form; a plain one is the control."""
    assert tree().path("./etc/x") == "etc/x"
    with pytest.raises(SkerryError, match="no path inside an image"):
        tree().add(cpio.file(path, b""), "evil")


@pytest.mark.parametrize("path", ["a\x1b[2J", "a\nb", "a\u202eb", "a\udcff"])
def test_a_path_that_a_terminal_would_obey_is_refused(path: str) -> None:
    """The error shows it escaped; letters of any language are well."""
    assert tree().path("usr/share/Főtanúsítvány.crt") == "usr/share/Főtanúsítvány.crt"
    with pytest.raises(SkerryError, match="no path inside an image") as caught:
        tree().path(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("behind", ["var/x", "var/x/y"])
def test_a_file_behind_a_link_or_a_file_is_refused(behind: str) -> None:
    """Whichever comes first; behind a directory it may lie."""
    for above in (cpio.link("var", "/etc"), cpio.file("var", b"")):
        for order in (1, -1):
            one = tree()
            for entry in (above, cpio.file(behind, b"data"))[::order]:
                one.add(entry, "evil")
            with pytest.raises(SkerryError, match=f"evil has /{behind}, which lies behind"):
                list(one.entries())
    control = tree()
    control.add(cpio.directory("var"), "good")
    control.add(cpio.file(behind, b"data"), "good")
    assert len(list(control.entries())) == 2


def test_two_sources_of_one_path_are_refused_unless_they_agree() -> None:
    """The same bytes and directories are no conflict."""
    one = tree()
    one.add(cpio.file("etc/x", b"1"), "a")
    one.add(cpio.file("etc/x", b"1"), "b")
    one.add(cpio.directory("etc", mode=0o755), "a")
    one.add(cpio.directory("etc", mode=0o700), "b")
    with pytest.raises(SkerryError, match="/etc/x comes from both a and c"):
        one.add(cpio.file("etc/x", b"2"), "c")


def test_a_package_replaces_an_applet_and_nothing_of_skerrys() -> None:
    """Its `ls` takes busybox's place; its `init` is refused."""
    one = tree()
    one.add(cpio.link("bin/ls", "/bin/busybox"), APPLETS)
    one.add(cpio.link("sbin/init", "/bin/busybox"), SKERRY)
    one.add(cpio.file("bin/ls", b"coreutils"), "coreutils", over=APPLETS)
    assert one.placed["usr/bin/ls"].origin == "coreutils"
    with pytest.raises(SkerryError, match="/usr/sbin/init comes from both skerry and systemd"):
        one.add(cpio.link("sbin/init", "/lib/systemd/systemd"), "systemd", over=APPLETS)


def test_the_old_directories_are_links_into_usr() -> None:
    """What a package has in `/lib` stands in `/usr/lib`; its own link of that name adds nothing."""
    one = tree()
    one.add(cpio.directory("lib"), "libc6")
    one.add(cpio.file("lib/libc.so", b"c"), "libc6")
    one.add(cpio.link("lib64", "usr/lib64"), "base-files")
    found = {entry.path: entry.data for entry in one.entries()}
    assert found == {"usr/lib": b"", "usr/lib/libc.so": b"c", "lib": b"usr/lib"}


def test_bytes_are_counted_before_they_are_kept() -> None:
    """The limit is named with what broke it; up to it all is well."""
    one = tree(10 << 20)
    one.reserve(10 << 20, "the first")
    with pytest.raises(SkerryError, match="over its limit of 10 MiB with /big of x"):
        one.reserve(1, "/big of x")


def test_what_is_dropped_stays_out_and_copyright_stays_in() -> None:
    """A star takes slashes too."""
    one = tree(drop=["usr/share/doc/*", "*.pyc"])
    assert not one.wants("usr/share/doc/x/README")
    assert not one.wants("usr/lib/a/b.pyc")
    assert one.wants("usr/share/doc/x/copyright")
    assert one.wants("usr/share/other")


def test_what_is_kept_counts_before_what_is_dropped() -> None:
    """And only that: what else is dropped stays out."""
    one = Tree(1 << 20, drop=["usr/lib/*/gconv/*", "*.pyc"], keep=["*/gconv/A*"])
    assert one.wants("usr/lib/x/gconv/ANSI.so")
    assert not one.wants("usr/lib/x/gconv/BIG5.so")
    assert not one.wants("usr/lib/a/b.pyc")
