"""What of an image was altered, cut off or put in its place is refused, in one line."""

import base64
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry.cli.image_sign import add_signature
from skerry.errors import InputError, NotFound, SkerryError
from skerry.image import store
from skerry.image.minimal import build_minimal
from skerry.node.images import ImageUnsigned, require_image
from skerry.policy.signature import new_key, public_key
from tests.support.kernel_package import Debian

KEYS = [new_key() for _ in range(2)]
RAW = [public_key(public, "") for _, public in KEYS]


@pytest.fixture
def signed(debian: Debian, tmp_path: Path) -> store.Image:
    """A small image, signed with the first key, in the cache `tmp_path / "a"`."""
    image = build_minimal(tmp_path / "a")
    (tmp_path / "key").write_bytes(KEYS[0][0])
    add_signature(tmp_path / "a", image, str(tmp_path / "key"), add=False)
    return image


def require(image: store.Image, key: bytes) -> store.Image:
    """Look for it as `up` does."""
    return require_image(image.kernel.parents[2], image.name, key)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Alter a file as its owner could."""
    path.chmod(0o644)
    path.write_bytes(change(path.read_bytes()))


def flip(raw: bytes) -> bytes:
    """Change one bit in the middle."""
    at = len(raw) // 2
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def half(raw: bytes) -> bytes:
    """Cut it off in the middle."""
    return raw[: len(raw) // 2]


@pytest.mark.parametrize("change", [flip, half, lambda raw: raw + b"\n"])
@pytest.mark.parametrize("part", [store.KERNEL, store.BZIMAGE, store.INITRD, store.SBOM])
def test_an_altered_file_is_refused_by_name(
    part: str, change: Callable[[bytes], bytes], signed: store.Image
) -> None:
    """Kernel, initramfs and bill of materials alike, with a key and without; whole it is taken."""
    assert require(signed, RAW[0]) == signed
    rewrite(signed.kernel.parent / part, change)
    for key in (RAW[0], b""):
        with pytest.raises(SkerryError, match=f"is damaged: .*{part} changed; remove") as caught:
            require(signed, key)
        assert "\n" not in str(caught.value)


def test_an_altered_description_is_refused_where_it_must_be_signed(signed: store.Image) -> None:
    """Also one that fits its files: another command line, and every digest right."""
    other = b"console=ttyS1"
    rewrite(signed.kernel.parent / store.MANIFEST, lambda r: r.replace(b"console=ttyS0", other))
    with pytest.raises(ImageUnsigned, match="its signature is not one of") as caught:
        require(signed, RAW[0])
    assert "\n" not in str(caught.value)
    assert other.decode() in require(signed, b"").cmdline  # the control: without a key it passes


@pytest.mark.parametrize("change", [half, lambda _: b"", lambda _: b"[" * 50_000])
def test_a_description_that_is_none_is_refused(
    change: Callable[[bytes], bytes], signed: store.Image
) -> None:
    """Cut off, empty, or nested without end."""
    rewrite(signed.kernel.parent / store.MANIFEST, change)
    with pytest.raises(SkerryError, match=r"image\.json is damaged.*build it again"):
        require(signed, b"")


def test_a_description_over_its_bound_is_refused_unread(signed: store.Image) -> None:
    """And one that claims a file of more bytes than a part may have."""
    path = signed.kernel.parent / store.MANIFEST
    kept = path.read_bytes()
    rewrite(path, lambda raw: raw + b" " * store.MANIFEST_MAX)
    with pytest.raises(SkerryError, match="longer than"):
        require(signed, b"")
    size = str(signed.sizes[store.KERNEL]).encode()
    rewrite(path, lambda _: kept.replace(size, str(store.PART_MAX + 1).encode()))
    with pytest.raises(SkerryError, match="size is out of bounds"):
        require(signed, b"")


@pytest.mark.parametrize("change", [half, lambda _: b"", lambda raw: b"A" + raw[1:]])
def test_an_altered_signature_is_refused(
    change: Callable[[bytes], bytes], signed: store.Image
) -> None:
    """It says what to do; a system without a key takes the image."""
    rewrite(signed.kernel.parent / store.SIGNATURE, change)
    with pytest.raises(ImageUnsigned, match="skerry image sign minimal --key KEY"):
        require(signed, RAW[0])
    assert require(signed, b"") == signed


def test_a_signature_over_its_bound_is_refused(signed: store.Image) -> None:
    """Unread; it is an error of its own."""
    rewrite(signed.kernel.parent / store.SIGNATURE, lambda raw: raw * 100)
    with pytest.raises(SkerryError, match=r"image\.json\.sig: longer than"):
        require(signed, RAW[0])
    assert require(signed, b"") == signed


def test_only_the_key_that_signed_is_enough(signed: store.Image, tmp_path: Path) -> None:
    """Another key refuses it until it has signed too; then either is enough."""
    with pytest.raises(ImageUnsigned):
        require(signed, RAW[1])
    (tmp_path / "other").write_bytes(KEYS[1][0])
    add_signature(tmp_path / "a", signed, str(tmp_path / "other"), add=True)
    assert require(signed, RAW[0]) == require(signed, RAW[1]) == signed


@pytest.mark.parametrize("change", [base64.b64decode, bytes.rstrip], ids=["raw", "unterminated"])
def test_a_signature_of_any_form_is_added_to(
    change: Callable[[bytes], bytes], signed: store.Image, tmp_path: Path
) -> None:
    """Either key is enough afterwards; the one that was there was enough before."""
    rewrite(signed.kernel.parent / store.SIGNATURE, change)
    assert require(signed, RAW[0]) == signed
    (tmp_path / "other").write_bytes(KEYS[1][0])
    add_signature(tmp_path / "a", signed, str(tmp_path / "other"), add=True)
    assert require(signed, RAW[0]) == require(signed, RAW[1]) == signed


def test_a_signature_of_another_image_does_not_count(
    signed: store.Image, debian: Debian, tmp_path: Path
) -> None:
    """What was signed is this image's description and no other's."""
    (debian.tree / "kernel/virtio/new.ko").write_bytes(b"x")
    (debian.home / "deb/boot/System.map").write_bytes(b"x")
    debian.publish()
    other = build_minimal(tmp_path / "b")
    assert other.sources != signed.sources
    shutil.copy(signed.kernel.parent / store.SIGNATURE, other.kernel.parent / store.SIGNATURE)
    with pytest.raises(ImageUnsigned):
        require(other, RAW[0])


def test_another_image_under_its_name_is_not_mistaken_for_it(
    signed: store.Image, tmp_path: Path
) -> None:
    """A part that is a link to something else of the same content is no file of the image."""
    shutil.copy(signed.initrd, tmp_path / "initrd")
    signed.initrd.parent.chmod(0o755)
    signed.initrd.unlink()
    signed.initrd.symlink_to(tmp_path / "initrd")
    with pytest.raises(SkerryError, match="initrd changed"):
        require(signed, b"")


def test_what_is_signed_is_the_description_that_was_loaded(signed: store.Image) -> None:
    """One that another took the place of meanwhile is not taken for it."""
    kept = store.load(signed.kernel.parents[2], signed.name)
    rewrite(signed.kernel.parent / store.MANIFEST, lambda r: r.replace(b"ttyS0", b"ttyS1"))
    for judge in (store.verify, store.signed_content):
        with pytest.raises(SkerryError, match="changed while it was read"):
            judge(kept)


def test_an_image_that_was_not_built_is_named(tmp_path: Path) -> None:
    """With what builds it."""
    with pytest.raises(NotFound, match="skerry image build app"):
        require_image(tmp_path, "app", b"")


def test_a_key_that_is_none_signs_nothing(signed: store.Image, tmp_path: Path) -> None:
    """The public half, or a file that is not there."""
    (tmp_path / "pub").write_bytes(KEYS[0][1])
    for name in ("pub", "none"):
        with pytest.raises(InputError, match=str(tmp_path / name)):
            add_signature(tmp_path / "a", signed, str(tmp_path / name), add=False)
    assert require(signed, RAW[0]) == signed
