"""The image `minimal`: how long its build takes, and how large it is."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.measure import Row, say, single
from skerry.image.build import build
from skerry.image.cache import PACKAGES
from skerry.image.recipe import preset
from skerry.image.store import Image
from tests.support.machines import cache

NAME = "minimal"
BUILDS = 5


def seconds() -> Row:
    """Build from packages that are here already, each time into a cache without an image."""
    _image()
    return single("image-minimal-s", "s", [_built() for _ in range(BUILDS)], "< 30")


def megabytes() -> Row:
    """Size of the initramfs, as gzip has it; the kernel is Debian's, and not in it."""
    image = _image()
    sizes = {name: size / 1e6 for name, size in image.sizes.items()}
    kernel = f"its kernel {sizes['bzImage']:.1f} MB as bzImage, {sizes['vmlinux']:.1f} MB unpacked"
    say(f"image-minimal-mb: the initramfs has {sizes['initrd']:.1f} MB unpacked; {kernel}")
    return single("image-minimal-mb", "MB", [image.compressed / 1e6], "< 8")


def _image() -> Image:
    """Return the image of the tests' cache, whose packages are fetched if they are not there."""
    return build(cache(), preset(NAME))


def _built() -> float:
    with tempfile.TemporaryDirectory(prefix="images-", dir=cache()) as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / PACKAGES).symlink_to(cache() / PACKAGES)
        begin = time.perf_counter()
        build(Path(folder), preset(NAME))
        return time.perf_counter() - begin
