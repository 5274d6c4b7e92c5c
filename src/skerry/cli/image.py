"""`skerry image`: build, list and show guest images."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from skerry.cli.common import json_option
from skerry.cli.progress import progress_bar
from skerry.errors import NotFound
from skerry.image import store
from skerry.node import paths
from skerry.system.model import System

_cache = click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of the images.  [default: a place of the machine's]",
)


@click.group()
def image() -> None:
    """Guest images: build, list, show."""


@image.command()
@click.argument("name")
@_cache
@json_option
def build(name: str, cache: Path | None, as_json: bool) -> None:
    """Build image NAME, or take it from the cache when nothing it is made of has changed."""
    _show(build_with_progress(name, (cache or paths.image_cache()).absolute()), as_json)


def build_with_progress(name: str, cache: Path) -> store.Image:
    """Build an image, or take it from the cache; with a progress bar on a terminal.

    Raises `NotFound` for a name that is no image's, `SkerryError` when it can't be built.
    """
    # The builder pulls in subprocess and the unpackers, which the other commands never need.
    from skerry.image import minimal

    if name != minimal.NAME:
        raise NotFound(f"no image is called {name!r}", fix=f"there is: {minimal.NAME}")
    with progress_bar("image") as progress:
        return minimal.build_minimal(cache, progress=progress)


def build_for(system: System) -> None:
    """Build what a system's domains boot from, with a progress bar on a terminal."""
    for name in sorted(system.images):
        build_with_progress(name, paths.make_shared(paths.image_cache()))


@image.command("list")
@_cache
@json_option
def list_images(cache: Path | None, as_json: bool) -> None:
    """List the images in the cache."""
    home = (cache or paths.image_cache()).absolute()
    images = [store.load(home, name) for name in store.names(home)]
    if not as_json:
        click.echo(f"{'NAME':<12} {'KERNEL':<28} {'SIZE':>9}  DIGEST")
    for one in images:
        if as_json:
            click.echo(_object(one))
        else:
            size = (one.sizes[store.KERNEL] + one.sizes[store.INITRD]) / 1e6
            click.echo(f"{one.name:<12} {one.kernel_version:<28} {size:6.1f} MB  {one.digest[:16]}")


@image.command()
@click.argument("name")
@_cache
@json_option
def show(name: str, cache: Path | None, as_json: bool) -> None:
    """Show image NAME after comparing its files with their digests."""
    one = store.load((cache or paths.image_cache()).absolute(), name)
    store.verify(one)
    _show(one, as_json)


def _show(one: store.Image, as_json: bool) -> None:
    if as_json:
        click.echo(_object(one))
        return
    click.echo(f"name     {one.name}\nkernel   {one.kernel_version}\ndigest   {one.digest}")
    for part, path in (("vmlinux", one.kernel), ("bzImage", one.bzimage), ("initrd", one.initrd)):
        click.echo(f"{part:<8} {one.sizes[path.name] / 1e6:.1f} MB  {path}")
    for source, digest in one.sources.items():
        click.echo(f"from     {source}  sha256:{digest[:16]}")


def _object(one: store.Image) -> str:
    return msgspec.json.encode(one, enc_hook=str).decode()
