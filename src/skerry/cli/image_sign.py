"""`skerry image keygen`, `sign` and `verify`: what a system with an image-key requires."""

from __future__ import annotations

from pathlib import Path

import click

from skerry.cli.common import emit, json_option
from skerry.cli.image import cache_of, cache_option, read_input
from skerry.cli.policy_sign import write_pair
from skerry.errors import InputError, PolicyError, SkerryError
from skerry.image import store
from skerry.image.cache import locked


@click.command()
@click.argument("key")
@json_option
def keygen(key: str, as_json: bool) -> None:
    """Make a pair of Ed25519 keys: KEY, which only you may read, and KEY.pub."""
    write_pair(key, "image-key", as_json)


@click.command()
@click.argument("name")
@click.option("--key", required=True, metavar="KEY", help="The private key: PEM or OpenSSH.")
@click.option("--add", is_flag=True, help="Keep the signatures that the image has.")
@cache_option
@json_option
def sign(name: str, key: str, add: bool, cache: Path | None, as_json: bool) -> None:
    """Sign image NAME after comparing its files with their digests."""
    home = cache_of(cache)
    one = store.load(home, name)
    store.verify(one)
    place = add_signature(home, one, key, add=add)
    if as_json:
        emit([{"image": name, "digest": one.digest, "signature": str(place)}])
    else:
        click.echo(f"signed: {place}")


def add_signature(home: Path, one: store.Image, key: str, *, add: bool) -> Path:
    """Sign an image's description and return the place of its signatures. Raises `InputError`."""
    from skerry.policy import signature

    private = read_input(key)
    with locked(home):
        content, old = store.signed_content(one)
        made = signature.sign(private, content, key)
        return store.put_signature(
            home, one, signature.added(old if add else b"", made, store.MANIFEST)
        )


@click.command()
@click.argument("name")
@click.option("--key", metavar="KEY", help="Demand a signature of this public key.")
@cache_option
@json_option
def verify(name: str, key: str | None, cache: Path | None, as_json: bool) -> None:
    """Compare the files of image NAME with their digests, and check its signature.

    Without --key only the files are compared.
    """
    from skerry.image.compare import packages_of
    from skerry.node.images import require_image
    from skerry.policy.signature import public_key

    try:
        raw = public_key(read_input(key), key) if key is not None else b""
    except PolicyError as error:
        raise InputError(error.problems) from None
    one = require_image(cache_of(cache), name, raw)
    if len(packages_of(one)) != one.packages:
        raise SkerryError(f"the bill of materials of {name} is not its own", fix="build it again")
    if as_json:
        emit([{"image": name, "digest": one.digest, "signed": bool(raw)}])
    else:
        signed = " and signed" if raw else ""
        click.echo(f"{name} is unaltered{signed}: {one.digest}")
