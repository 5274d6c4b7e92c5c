"""Images of files without packages: what goes where, and what is refused."""

import stat
from pathlib import Path

import msgspec
import pytest

from skerry.errors import InputError, SkerryError
from skerry.image import compare, cpio, minimal, store
from skerry.image.build import build
from skerry.image.minimal import build_minimal
from skerry.image.recipe import parse_recipe
from tests.support.kernel_package import Debian

FILES = """\
name = "app"
start = ["/srv/app", "it's", "a b"]
[[files]]
from = "app"
to = "/srv/app"
mode = "0755"
"""


def built(folder: Path, cache: Path, text: str = FILES) -> store.Image:
    """Build an image of this text beside the file `app`."""
    if not (folder / "app").exists():
        (folder / "app").write_text("#!/bin/sh\n")
    return build(cache, parse_recipe(text, folder / "image.toml"))


def entries(image: store.Image) -> dict[str, cpio.Entry]:
    """Return what an image's archive holds."""
    return {entry.path: entry for entry in cpio.entries(image.initrd.read_bytes())}


def test_a_file_is_copied_with_its_mode_and_started(debian: Debian, tmp_path: Path) -> None:
    """The command's words arrive as they were written."""
    found = entries(built(tmp_path, tmp_path / "a"))
    assert found["srv/app"].data == b"#!/bin/sh\n"
    assert stat.S_IMODE(found["srv/app"].mode) == 0o755
    assert found["etc/inittab"].data.endswith(b"::respawn:/lib/skerry/start\n")
    assert b"exec '/srv/app' 'it'\\''s' 'a b'\n" in found["lib/skerry/start"].data
    assert "lib/skerry/start" not in entries(build_minimal(tmp_path / "a"))


def test_a_file_that_became_a_link_is_not_followed(debian: Debian, tmp_path: Path) -> None:
    """After the recipe was read; the same recipe can be built while it is a file."""
    (tmp_path / "app").write_text("#!/bin/sh\n")
    (tmp_path / "secret").write_text("#!/bin/secret\n")
    recipe = parse_recipe(FILES, tmp_path / "image.toml")
    assert build(tmp_path / "a", recipe)
    (tmp_path / "app").unlink()
    (tmp_path / "app").symlink_to("secret")
    with pytest.raises(InputError, match="app: cannot be read"):
        build(tmp_path / "a", recipe)


def test_the_same_recipe_gives_the_same_bytes_and_another_file_others(
    debian: Debian, tmp_path: Path
) -> None:
    """In two caches, all four files; a changed byte or mode is another image."""
    one, other = built(tmp_path, tmp_path / "a"), built(tmp_path, tmp_path / "b")
    assert one.digest == other.digest
    for part in (store.KERNEL, store.BZIMAGE, store.INITRD, store.SBOM, store.MANIFEST):
        left, right = one.kernel.parent / part, other.kernel.parent / part
        assert left.read_bytes() == right.read_bytes()
    (tmp_path / "app").write_text("#!/bin/sh\n#\n")
    assert built(tmp_path, tmp_path / "a").digest != one.digest
    (tmp_path / "app").write_text("#!/bin/sh\n")
    assert built(tmp_path, tmp_path / "a").digest == one.digest
    text = FILES.replace('"0755"', '"0555"')
    assert built(tmp_path, tmp_path / "a", text).digest != one.digest


def test_an_init_takes_the_kernels_first_step(debian: Debian, tmp_path: Path) -> None:
    """It is on the command line, once."""
    text = FILES.replace('start = ["/srv/app", "it\'s", "a b"]', 'init = "/srv/app"')
    words = built(tmp_path, tmp_path / "a", text).cmdline.split()
    assert [word for word in words if word.startswith("rdinit=")] == ["rdinit=/srv/app"]


def test_another_command_line_is_another_image(
    debian: Debian, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all that goes into it is the same: the cache does not answer for it."""
    one = build_minimal(tmp_path / "a")
    monkeypatch.setattr(minimal, "CMDLINE", f"{minimal.CMDLINE} quiet")
    other = build_minimal(tmp_path / "a")
    assert other.cmdline == f"{one.cmdline} quiet"
    assert other.digest != one.digest


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('"0755"', '"0644"', 2, "no program"),
        ('["/srv/app"', '["/srv/none"', 2, "does not hold"),
        ('to = "/srv/app"', 'to = "/init"', 5, "Skerry's own"),
        ('to = "/srv/app"', 'to = "/root"', 5, "a directory"),
    ],
)
def test_what_the_image_cannot_hold_is_named_at_its_line(
    old: str, new: str, line: int, words: str, debian: Debian, tmp_path: Path
) -> None:
    """Nothing is left of the attempt; the recipe as it was can be built."""
    with pytest.raises(InputError, match=words) as caught:
        built(tmp_path, tmp_path / "a", FILES.replace(old, new))
    assert [problem.line for problem in caught.value.problems] == [line]
    assert store.names(tmp_path / "a") == []
    assert built(tmp_path, tmp_path / "a")


def test_an_image_over_its_limit_is_refused(debian: Debian, tmp_path: Path) -> None:
    """By a file that alone is too long, by the files together before the last is read, and by the
    sum with Skerry's own; below it can be built."""
    text = FILES + '[limits]\nsize = "{}M"\n'
    (tmp_path / "app").write_bytes(bytes(3 << 20))
    with pytest.raises(InputError, match="longer than"):
        built(tmp_path, tmp_path / "a", text.format(2))
    twice = '[[files]]\nfrom = "app"\nto = "/srv/more"\n'
    with pytest.raises(InputError, match="less the files before it") as caught:
        built(tmp_path, tmp_path / "a", FILES + twice + '[limits]\nsize = "5M"\n')
    assert [problem.line for problem in caught.value.problems] == [9]
    with pytest.raises(SkerryError, match="over its limit of 3 MiB with /srv/app"):
        built(tmp_path, tmp_path / "a", text.format(3))
    assert built(tmp_path, tmp_path / "a", text.format(8))


def test_what_differs_is_named_by_package_command_line_and_file(
    debian: Debian, tmp_path: Path
) -> None:
    """Both ways round; an image differs in nothing from itself."""
    one, other = build_minimal(tmp_path / "a"), built(tmp_path, tmp_path / "a")
    assert compare.difference(one, one) == []
    there = compare.difference(one, other)
    assert [(c.what, c.name) for c in there if not c.old] == [
        ("file", "srv/app"),
        ("file", "usr/lib/skerry/start"),
    ]
    assert [(c.what, c.name) for c in there if c.old] == [("file", "etc/inittab")]
    back = [msgspec.structs.replace(c, old=c.new, new=c.old) for c in there]
    assert compare.difference(other, one) == back
    (debian.tree / "kernel/virtio/virtio.ko").write_bytes(
        (debian.tree / "kernel/virtio/virtio.ko").read_bytes() + b"x"
    )
    debian.publish()
    newer = build_minimal(tmp_path / "b")
    assert [(c.what, c.name) for c in compare.difference(one, newer)] == [
        ("package", "kernel"),
        ("file", "usr/lib/modules/virtio.ko"),
    ]
