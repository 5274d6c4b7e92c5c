"""What an image is called: its own word for it counts, and no name leads to another image."""

from pathlib import Path

import msgspec
import pytest

from skerry.cli.image_sign import add_signature
from skerry.errors import NotFound, SkerryError
from skerry.image import store
from skerry.image.build import build
from skerry.image.minimal import build_minimal
from skerry.image.recipe import parse_recipe, preset
from skerry.node.images import require_image
from skerry.policy.signature import new_key, public_key
from tests.support.kernel_package import Debian

PRIVATE, PUBLIC = new_key()
RAW = public_key(PUBLIC, "")


def built(cache: Path, name: str) -> store.Image:
    """Build an image of this name that no preset is like."""
    (cache.parent / "evil").write_text("evil\n")
    text = f'name = "{name}"\n[[files]]\nfrom = "evil"\nto = "/srv/evil"\n'
    return build(cache, parse_recipe(text, cache.parent / "image.toml"))


def test_no_recipe_becomes_a_preset(debian: Debian, tmp_path: Path) -> None:
    """The key of a preset can be computed by anybody; a name made of it is a name like another."""
    key = build_minimal(tmp_path / "other").kernel.parent.name.rpartition("-")[2]
    evil = built(tmp_path / "a", f"minimal-{key[:16]}")
    real = build_minimal(tmp_path / "a")
    assert (real.name, evil.name) == ("minimal", f"minimal-{key[:16]}")
    assert real.digest == build_minimal(tmp_path / "other").digest != evil.digest
    assert store.load(tmp_path / "a", evil.name) == evil


@pytest.mark.parametrize("name", ["lock", "packages", "built", "names"])
def test_no_name_stands_in_the_caches_way(name: str, debian: Debian, tmp_path: Path) -> None:
    """What the cache itself needs stands elsewhere: such an image is built, twice, and others."""
    image = built(tmp_path / "a", name)
    assert built(tmp_path / "a", name) == store.load(tmp_path / "a", name) == image
    assert build_minimal(tmp_path / "a").name == "minimal"
    assert store.names(tmp_path / "a") == sorted([name, "minimal"])


def test_a_signature_binds_an_image_to_its_name(debian: Debian, tmp_path: Path) -> None:
    """Of two signed images one is not taken for the other, where the name was bent to it."""
    cache, key = tmp_path / "a", tmp_path / "key"
    key.write_bytes(PRIVATE)
    for name in ("good", "debug"):
        add_signature(cache, built(cache, name), str(key), add=False)
    assert require_image(cache, "good", RAW).name == "good"
    link = cache / "names/good"
    link.unlink()
    link.symlink_to((cache / "names/debug").readlink())
    for raw in (RAW, b""):
        with pytest.raises(SkerryError, match="is of another image, debug"):
            require_image(cache, "good", raw)
    assert require_image(cache, "debug", RAW).name == "debug"


def test_a_name_leads_into_its_own_cache_only(debian: Debian, tmp_path: Path) -> None:
    """Not to the same image of another cache, nor to one that a link stands for."""
    one, other = built(tmp_path / "a", "good"), built(tmp_path / "b", "good")
    link = tmp_path / "a/names/good"
    link.unlink()
    link.symlink_to(other.kernel.parent)
    with pytest.raises(SkerryError, match="leads to no image"):
        store.load(tmp_path / "a", "good")
    link.unlink()
    assert built(tmp_path / "a", "good") == one
    home = one.kernel.parent
    home.rename(tmp_path / "aside")
    home.symlink_to(tmp_path / "aside")
    with pytest.raises(SkerryError, match="is a link"):
        store.load(tmp_path / "a", "good")
    with pytest.raises(SkerryError, match="is a link"):
        built(tmp_path / "a", "good")


@pytest.mark.parametrize("change", [{"name": "other"}, {"key": "0" * 64}, {"sources": {}}])
def test_what_says_that_it_was_made_otherwise_is_not_returned(
    change: dict[str, object], debian: Debian, tmp_path: Path
) -> None:
    """By its name, its key or its inputs; unaltered it is."""
    image = built(tmp_path / "a", "good")
    assert built(tmp_path / "a", "good") == image
    path = image.kernel.parent / store.MANIFEST
    held = msgspec.json.decode(path.read_bytes())
    path.chmod(0o644)
    path.write_bytes(msgspec.json.encode(held | change))
    with pytest.raises(SkerryError, match=r"is of another image|was made from other inputs"):
        built(tmp_path / "a", "good")


def test_a_name_is_removed_with_what_no_name_points_at(debian: Debian, tmp_path: Path) -> None:
    """The other names keep their images; a name that is not there is an error, also a path."""
    cache = tmp_path / "a"
    first, kept = built(cache, "good"), built(cache, "kept")
    (tmp_path / "evil").write_text("older\n")
    text = 'name = "good"\n[[files]]\nfrom = "evil"\nto = "/srv/evil"\n'
    newer = build(cache, parse_recipe(text, tmp_path / "image.toml"))
    assert first.kernel.exists()
    store.remove(cache, "good")
    assert store.names(cache) == ["kept"]
    assert [home.name for home in (cache / "built").iterdir()] == [kept.kernel.parent.name]
    for name in ("good", "../names/kept", "none"):
        with pytest.raises(NotFound, match="is not in"):
            store.remove(cache, name)
    assert not newer.kernel.exists()
    assert require_image(cache, "kept", b"") == kept


def test_what_is_built_anew_believes_nothing_of_the_cache(debian: Debian, tmp_path: Path) -> None:
    """Not an image that fits its description, and not what apt is said to have answered; where all
    is as it was made, the image that is there stays, with its signatures."""
    cache = tmp_path / "a"
    image = build_minimal(cache)
    (tmp_path / "key").write_bytes(PRIVATE)
    add_signature(cache, image, str(tmp_path / "key"), add=False)
    note = cache / "packages/behind-linux-image-cloud-amd64.json"
    note.write_bytes(note.read_bytes().replace(b'"version":"1"', b'"version":"2"'))
    assert (
        build(cache, preset("minimal"), anew=True) == image == require_image(cache, "minimal", RAW)
    )
    manifest, was = image.kernel.parent / store.MANIFEST, store.sha256(image.initrd).encode()
    for path in (image.initrd, manifest):
        path.chmod(0o644)
    image.initrd.write_bytes(image.initrd.read_bytes().replace(b"skerry", b"evilry"))
    now = store.sha256(image.initrd).encode()
    manifest.write_bytes(manifest.read_bytes().replace(was, now))
    altered = build_minimal(cache)  # the control: by itself it is a whole image
    store.verify(altered)
    assert altered.digest != image.digest
    with pytest.raises(SkerryError, match="its inputs make another image"):
        build(cache, preset("minimal"), anew=True)
    store.remove(cache, "minimal")
    assert build(cache, preset("minimal"), anew=True) == image


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"6.1.0-1-test"', '"6.1\\u001b[2J"'),
        ('"good"', '"go\\u001bod"'),
        ('"cmdline"', '"x\\u001b[2J"'),
        ('"bytes"', '"\\u001b"'),
    ],
)
def test_what_an_altered_description_says_reaches_no_terminal(
    old: str, new: str, debian: Debian, tmp_path: Path
) -> None:
    """It is refused, in words that can be printed; unaltered it is shown."""
    image = built(tmp_path / "a", "good")
    path = image.kernel.parent / store.MANIFEST
    text = path.read_text()
    assert old in text
    path.chmod(0o644)
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(SkerryError, match="is damaged") as caught:
        store.load(tmp_path / "a", "good")
    assert str(caught.value).isprintable()
