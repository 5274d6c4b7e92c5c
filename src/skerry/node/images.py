"""Which image a domain boots: found, unaltered, signed where the system demands it, and measured.

The rule: what is started is what was verified, and its digest is in the trail before it runs. What
is signed is an image's description (`image.json`), which holds its name and the digest of each of
its files: signed for one name, it is refused under another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from skerry.errors import Denied, PolicyError
from skerry.image import store
from skerry.image.store import Image
from skerry.policy.signature import require_signed


class ImageUnsigned(Denied):
    """An image that the system's `image-key` has not signed: no domain boots it."""

    code = "IMAGE-UNSIGNED"


def require_image(cache: Path, name: str, key: bytes) -> Image:
    """Return an image whose files are unaltered, and which `key` (32 bytes; none: any) has signed.

    Raises `NotFound` if it was not built, `SkerryError` if it is damaged, `ImageUnsigned`.
    """
    image = store.load(cache, name)
    store.verify(image)
    if key:
        require_image_signed(image, key)
    return image


def require_image_signed(image: Image, key: bytes) -> None:
    """Return if a signature of the image verifies under a raw public key.

    Raises `ImageUnsigned`, and `SkerryError` for a signature that can't be read.
    """
    content, signatures = store.signed_content(image)
    try:
        require_signed(key, content, signatures, image.name)
    except PolicyError:
        what = "its signature is not one of" if signatures else "it is not signed with"
        raise ImageUnsigned(
            f"the image {image.name} can't be used: {what} the system's image-key",
            fix=f"sign it: skerry image sign {image.name} --key KEY",
        ) from None


def measure(image: Image, key: bytes) -> Mapping[str, object]:
    """Return what the trail says of an image: its digest, and whether a key had to sign it."""
    return {"name": image.name, "digest": image.digest, "signed": bool(key)}
