"""`skerry tpm`: a node's statement about a domain's TPM, and its verification anywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from skerry.cli.common import ask, domain_argument, json_option
from skerry.errors import SkerryError
from skerry.wire.control import MAX_NONCE, MIN_NONCE, TpmStatement
from skerry.wire.escape import escape


class Nonce(click.ParamType[bytes]):
    """A nonce in hexadecimal."""

    name = "hex"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        """Return its bytes."""
        text = str(value)
        if not re.fullmatch(r"([0-9A-Fa-f]{2})+", text) or not (
            MIN_NONCE <= len(text) // 2 <= MAX_NONCE
        ):
            self.fail(f"a nonce is {MIN_NONCE} to {MAX_NONCE} bytes in hexadecimal.", param, ctx)
        return bytes.fromhex(text)


@click.group()
def tpm() -> None:
    """State and verify what runs over a domain's TPM."""


@tpm.command()
@domain_argument()
@click.option("--nonce", required=True, type=Nonce(), help="What the verifier chose at random.")
@click.option("--out", type=click.Path(path_type=Path), help="A file in the place of the output.")
def statement(domain: str, nonce: bytes, out: Path | None) -> None:
    """Have the node sign which domain, label and policy a TPM's key stands for now."""
    text = json.dumps(ask(TpmStatement(domain, nonce)), indent=1) + "\n"
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="ascii")
    except OSError as error:
        raise SkerryError(f"{out}: {error.strerror}") from None


@tpm.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--key",
    required=True,
    type=click.Path(path_type=Path),
    help="The node's public key: statement.pub of its state, had from its owner.",
)
@click.option("--nonce", type=Nonce(), help="The nonce that you chose.")
@click.option(
    "--quote",
    "quote",
    type=click.Path(path_type=Path),
    help="The TPM's answer to TPM2_Quote over the same nonce.",
)
@json_option
def verify(file: Path, key: Path, nonce: bytes | None, quote: Path | None, as_json: bool) -> None:
    """Prove a statement, and a quote of its TPM; needs neither node nor TPM."""
    from skerry.audit.checkpoint import read_public
    from skerry.device.tpm.statement import MAX_QUOTE, MAX_STATEMENT, key_name, quoted, verified

    found = verified(_read(file, MAX_STATEMENT), read_public(key))
    if nonce is not None and found.nonce != nonce.hex():
        raise SkerryError(
            "the statement is over another nonce: it may be an old one", fix="ask for another"
        )
    said = {name: getattr(found, name) for name in found.__struct_fields__}
    said["name"] = key_name(found)
    if quote is not None:
        about = quoted(_read(quote, MAX_QUOTE), found)
        said["quote"] = {name: getattr(about, name) for name in about.__struct_fields__}
    if as_json:
        click.echo(json.dumps(said))
        return
    click.echo("the statement is the node's" + (", the quote its TPM's" if quote else ""))
    for name, value in said.items():
        if isinstance(value, dict):
            for part, each in value.items():
                click.echo(f"quote {part}: {_text(each)}")
        else:
            click.echo(f"{name}: {_text(value)}")
    if nonce is None:
        click.echo("the nonce was not compared: give yours with --nonce", err=True)


def _text(value: object) -> str:
    words = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return escape(words)


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            untrusted = file.read(most + 1)
    except OSError as error:
        raise SkerryError(f"{path}: {error.strerror}") from None
    if len(untrusted) > most:
        raise SkerryError(f"{path} is longer than {most} bytes")
    return untrusted
