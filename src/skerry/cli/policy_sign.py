"""`skerry policy keygen` and `sign`: what a system with a policy-key requires of a policy."""

from __future__ import annotations

import os
from pathlib import Path

import click

from skerry.cli.common import emit, json_option
from skerry.errors import InputError, PolicyError, Problem


@click.command()
@click.argument("key")
@json_option
def keygen(key: str, as_json: bool) -> None:
    """Make a pair of Ed25519 keys: KEY, which only you may read, and KEY.pub."""
    write_pair(key, "policy-key", as_json)


def write_pair(key: str, purpose: str, as_json: bool) -> None:
    """Make a pair of keys for what a system file calls `purpose`. Raises `InputError`."""
    from skerry.policy.signature import new_key

    named = f"{key}.pub"
    taken = [Problem(path, 0, "exists already") for path in (key, named) if Path(path).exists()]
    if taken:
        raise InputError(taken)
    private, public = new_key()
    _write_new(Path(key), private, 0o600)
    _write_new(Path(named), public, 0o644)
    if as_json:
        emit([{"key": key, "public": named}])
    else:
        click.echo(f'keep {key} apart from the node; a system file says {purpose} = "{named}"')


@click.command()
@click.argument("file")
@click.option("--key", required=True, metavar="KEY", help="The private key: PEM or OpenSSH.")
@click.option("--add", is_flag=True, help="Keep the signatures that FILE.sig has.")
@json_option
def sign(file: str, key: str, add: bool, as_json: bool) -> None:
    """Sign the policy FILE, or a public key that shall follow the one in force, as FILE.sig.

    Of a FLASK policy as text it is the compiled form that is signed, as it is what comes into
    force: sign it anew when the compiler is another one.
    """
    from skerry.policy import signature
    from skerry.policy.load import policy_bytes

    try:
        content, private = policy_bytes(file), signature.read_key_file(key)
        old = signature.read_signature(file) if add else b""
    except PolicyError as error:
        raise InputError(error.problems) from None
    made = signature.added(old, signature.sign(private, content, key), file)
    path = Path(f"{file}{signature.SUFFIX}")
    path.write_bytes(made)
    if as_json:
        emit([{"file": file, "signature": str(path)}])
    else:
        click.echo(f"signed: {path}")


def _write_new(path: Path, content: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
