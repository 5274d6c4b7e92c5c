"""`skerry image`: build, sign, list, show, verify and compare guest images."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import msgspec

from skerry.cli.common import counted, emit, json_option, table
from skerry.cli.lazy import LazyGroup
from skerry.cli.progress import progress_bar
from skerry.errors import InputError, NotFound, PolicyError, SkerryError
from skerry.image import store
from skerry.node import paths
from skerry.system.model import System
from skerry.wire.escape import escape

cache_option = click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of the images.  [default: a place of the machine's]",
)


@click.group(
    cls=LazyGroup,
    places={
        "build": "skerry.cli.image:build",
        "list": "skerry.cli.image:list_images",
        "show": "skerry.cli.image:show",
        "diff": "skerry.cli.image:diff",
        "verify": "skerry.cli.image_sign:verify",
        "sign": "skerry.cli.image_sign:sign",
        "keygen": "skerry.cli.image_sign:keygen",
        "remove": "skerry.cli.image:remove",
        "template": "skerry.cli.template:template",
    },
    summaries={
        "build": "Build an image from a file, or a preset.",
        "list": "List the images.",
        "show": "Show an image, its packages and its sizes.",
        "diff": "Compare two images by package and file.",
        "verify": "Check an image's files and its signature.",
        "sign": "Sign an image.",
        "keygen": "Make a pair of keys to sign images with.",
        "remove": "Remove an image, and builds that no name has.",
        "template": "Templates of booted guests: list, remove.",
    },
)
def image() -> None:
    """Guest images: build, sign, list, show, verify, compare, remove."""


def cache_of(cache: Path | None) -> Path:
    """Return the directory of images that a command means."""
    return (cache or paths.image_cache()).absolute()


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--key", metavar="KEY", help="Build it anew, and sign it: PEM or OpenSSH.")
@cache_option
@json_option
def build(file: str, key: str | None, cache: Path | None, as_json: bool) -> None:
    """Build the image that FILE describes, or take it from the cache if nothing has changed.

    FILE may also be the name of a preset: minimal, python or selinux.
    """
    home, began = cache_of(cache), time.monotonic()
    one = build_with_progress(file, home, anew=key is not None)
    store.verify(one)
    if key is not None:
        from skerry.cli.image_sign import add_signature

        add_signature(home, one, key, add=True)
    _show(one, as_json)
    if not as_json:
        click.echo(f"took     {time.monotonic() - began:.1f} s")


def build_with_progress(name: str, cache: Path, *, anew: bool = False) -> store.Image:
    """Build a preset or the image of a file, with a progress bar on a terminal.

    `anew`: as `build.build` says; an image to be signed is built so.
    Raises `NotFound` for what is neither, `InputError` and `SkerryError` if it can't be built.
    """
    # The builder pulls in subprocess and the unpackers, which the other commands never need.
    from skerry.image.build import build as build_image
    from skerry.image.recipe import PRESETS, preset, read_recipe

    if name not in PRESETS and not name.endswith(".toml") and not Path(name).exists():
        raise NotFound(
            f"{escape(name)} is no preset and no file",
            fix=f"there is: {', '.join(PRESETS)}; or name a .toml file",
        )
    recipe = preset(name) if name in PRESETS else read_recipe(Path(name))
    with progress_bar("image") as progress:
        return build_image(cache, recipe, anew=anew, progress=progress)


def build_for(system: System) -> None:
    """Build the presets that a system's domains boot, with a progress bar on a terminal.

    Raises `NotFound` for another image that was not built.
    """
    from skerry.image.recipe import PRESETS

    for name in sorted(system.images):
        home = paths.make_shared(paths.image_cache())
        if name in PRESETS:
            build_with_progress(name, home)
        else:
            store.load(home, name)


@click.command("list")
@cache_option
@json_option
def list_images(cache: Path | None, as_json: bool) -> None:
    """List the images in the cache; a damaged one is named, and makes the exit code 1."""
    home, images, damaged = cache_of(cache), [], []
    for name in store.names(home):
        try:
            images.append(store.load(home, name))
        except SkerryError as error:
            damaged.append(error)
    _list(images, as_json)
    for found in damaged:
        click.echo(f"error: {found}", err=True)
    if damaged:
        sys.exit(1)


def _list(images: list[store.Image], as_json: bool) -> None:
    if as_json:
        emit_images(images)
        return
    headings = ("NAME", "KERNEL", "PACKAGES", "FILES", "INITRD", "GZIP", "DIGEST")
    rows = [
        (
            one.name,
            one.kernel_version,
            one.packages,
            one.files,
            _mb(one.sizes[store.INITRD]),
            _mb(one.compressed),
            one.digest[:16],
        )
        for one in images
    ]
    table(headings, rows)


@click.command()
@click.argument("name")
@cache_option
@json_option
def show(name: str, cache: Path | None, as_json: bool) -> None:
    """Show image NAME after comparing its files with their digests."""
    one = store.load(cache_of(cache), name)
    store.verify(one)
    _show(one, as_json)


@click.command()
@click.argument("name")
@cache_option
@json_option
def remove(name: str, cache: Path | None, as_json: bool) -> None:
    """Remove image NAME, and every build that no name points at.

    A system that runs and boots one of these can't start its domains again.
    """
    store.remove(cache_of(cache), name)
    if as_json:
        emit([{"image": name}])
    else:
        click.echo(f"removed: {name}")


@click.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@cache_option
@json_option
def diff(one: str, other: str, cache: Path | None, as_json: bool) -> None:
    """Say how image B differs from image A: packages, command line, files."""
    from skerry.image.compare import difference

    images = []
    for name in (one, other):
        images.append(store.load(cache_of(cache), name))
        store.verify(images[-1])
    changes = difference(*images)
    if as_json:
        emit([msgspec.to_builtins(change) for change in changes])
        return
    for change in changes:
        sign = "+" if not change.old else "-" if not change.new else "~"
        words = " -> ".join(filter(None, (change.old, change.new)))
        click.echo(f"{sign} {change.what:<8} {escape(change.name)}  {escape(words)}")
    if not changes:
        click.echo(f"{one} and {other} hold the same")


def read_input(file: str) -> bytes:
    """Return the bytes of a key's file. Raises `InputError`."""
    from skerry.policy.signature import read_key_file

    try:
        return read_key_file(file)
    except PolicyError as error:
        raise InputError(error.problems) from None


def _show(one: store.Image, as_json: bool) -> None:
    if as_json:
        emit_images([one])
        return
    click.echo(f"name     {one.name}\nkernel   {one.kernel_version}\ndigest   {one.digest}")
    paths_of = {
        "vmlinux": one.kernel,
        "bzImage": one.bzimage,
        "initrd": one.initrd,
        "sbom": one.sbom,
    }
    for part, path in paths_of.items():
        packed = f" ({_mb(one.compressed)} gzip)" if part == "initrd" else ""
        click.echo(f"{part:<8} {_mb(one.sizes[path.name])}{packed}  {path}")
    signed = "signed" if (one.kernel.parent / store.SIGNATURE).exists() else "not signed"
    click.echo(
        f"holds    {counted(one.packages, 'package')}, {counted(one.files, 'file')}; {signed}"
    )
    for source, digest in one.sources.items():
        click.echo(f"from     {escape(source)}  sha256:{digest[:16]}")


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def emit_images(images: list[store.Image]) -> None:
    """Print images as objects, one a line."""
    for one in images:
        click.echo(msgspec.json.encode(one, enc_hook=str).decode())
