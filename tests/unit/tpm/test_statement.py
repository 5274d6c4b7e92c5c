"""Statements and quotes: what verifies, and that nothing else does. The quote is a real swtpm's."""

from __future__ import annotations

import asyncio
import json
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from skerry.cli.main import cli
from skerry.device.tpm import commands
from skerry.device.tpm.statement import (
    MAX_STATEMENT,
    Statement,
    key_name,
    quoted,
    sign,
    signed_text,
    verified,
)
from skerry.errors import SkerryError
from tests.support.swtpms import chips, ended, talk

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NONCE = bytes(range(20))
REGISTERS = (0, 7, 16, 23)


class Real(NamedTuple):
    """A quote of a real TPM, one of another TPM, one over another nonce, a certificate over the
    nonce, the key's point and what the TPM says of it."""

    quote: bytes
    others: bytes
    older: bytes
    certified: bytes
    point: bytes
    name: bytes


@pytest.fixture(scope="module")
def real() -> Real:
    """Two TPMs, and what they quoted."""

    async def run() -> Real:
        async with chips() as found:
            use, other = await found.use("chip"), await found.use("other", "two", 2)
            for each in (use, other):
                commands.answer(talk(each, commands.STARTUP))
            command = commands.quote(NONCE, REGISTERS)
            made = Real(
                _retried(lambda: talk(use, command)),
                _retried(lambda: talk(other, command)),
                _retried(lambda: talk(use, commands.quote(NONCE[::-1], REGISTERS))),
                _retried(lambda: talk(use, _certify())),
                use.point,
                commands.answer(talk(use, commands.read_key())),
            )
            await ended(use)
            await ended(other)
            return made

    return asyncio.run(run())


def _retried(ask: Callable[[], bytes]) -> bytes:
    """Ask again while the TPM says TPM_RC_RETRY, as a guest's kernel does."""
    while (said := ask())[6:10] == bytes.fromhex("00000922"):
        pass
    return said


def _certify() -> bytes:
    """Return the command that has the key certify itself over the nonce."""
    password = struct.pack(">IHBH", 0x40000009, 0, 0, 0)
    body = struct.pack(">II", commands.KEY_HANDLE, commands.KEY_HANDLE)
    body += struct.pack(">I", 18) + 2 * password
    body += struct.pack(">H", len(NONCE)) + NONCE + struct.pack(">H", commands.NULL)
    return commands.command(0x148, body, commands.SESSIONS)


def statement(point: bytes = b"\x04" + bytes(64), **changes: object) -> Statement:
    """Return one with these changes."""
    made = Statement(
        nonce=NONCE.hex(),
        domain="one",
        label="red",
        tpm="chip",
        point=point.hex(),
        policy="abcd",
        generation=3,
        channel=7,
        record=12,
        time=1_700_000_000,
    )
    return msgspec.structs.replace(made, **changes)


def written(made: Statement) -> bytes:
    """Return the file of a statement that was signed."""
    return msgspec.json.encode(sign(KEY, made))


def test_what_was_signed_verifies_in_any_layout() -> None:
    """Order and space of the JSON do not matter; the text that is signed has its heading."""
    made = statement()
    assert verified(written(made), KEY.public_key()) == made
    loose = json.dumps(json.loads(written(made)), indent=3, sort_keys=True).encode()
    assert verified(loose, KEY.public_key()) == made
    assert signed_text(made).startswith(b"skerry tpm statement 1\n")


@pytest.mark.parametrize("field", Statement.__struct_fields__)
def test_any_changed_field_is_found(field: str) -> None:
    """Each field is covered by the signature."""
    found = json.loads(written(statement()))
    value = found["statement"][field]
    found["statement"][field] = value + 1 if isinstance(value, int) else value[:-1] + "7"
    with pytest.raises(SkerryError, match="does not hold"):
        verified(json.dumps(found).encode(), KEY.public_key())


def test_another_nodes_key_does_not_verify() -> None:
    """And the refusal names the key that the statement says it is signed with."""
    other = Ed25519PrivateKey.generate().public_key()
    with pytest.raises(SkerryError, match="does not hold under the key"):
        verified(written(statement()), other)


@given(st.binary(max_size=400))
def test_no_bytes_are_a_statement(untrusted: bytes) -> None:
    """Whatever they are, they are refused with one line."""
    with pytest.raises(SkerryError) as refused:
        verified(untrusted, KEY.public_key())
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": "00" * 7},
        {"nonce": "00" * 65},
        {"nonce": "xy" * 8},
        {"point": "04" + "00" * 63},
        {"generation": -1},
        {"domain": ""},
        {"more": 1},
    ],
)
def test_a_statement_of_another_shape_is_none(change: dict[str, object]) -> None:
    """Though it be signed: nothing is read of it."""
    found = json.loads(written(statement()))
    found["statement"].update(change)
    with pytest.raises(SkerryError, match="no statement"):
        verified(json.dumps(found).encode(), KEY.public_key())


def test_a_long_file_is_refused_unread() -> None:
    """At the limit it is read, one byte more is not."""
    content = written(statement())
    assert verified(content.ljust(MAX_STATEMENT), KEY.public_key())
    with pytest.raises(SkerryError, match="longer than"):
        verified(content.ljust(MAX_STATEMENT + 1), KEY.public_key())


def test_a_quote_says_its_registers_and_their_digest(real: Real) -> None:
    """Over the statement's nonce and key; registers that nobody extended are zeroes, or ones."""
    found = quoted(real.quote, statement(real.point))
    assert found.registers == REGISTERS
    assert len(found.digest) == 64
    assert found.resets > 0


def test_the_name_is_what_the_tpm_calls_its_key(real: Real) -> None:
    """As the TPM's own answer has it, so that other tools can compare."""
    assert bytes.fromhex(key_name(statement(real.point))) in real.name


def test_a_quote_of_another_tpm_or_nonce_is_refused(real: Real) -> None:
    """And one with a key that is no point."""
    mine = statement(real.point)
    with pytest.raises(SkerryError, match="does not hold under the TPM's key"):
        quoted(real.others, mine)
    with pytest.raises(SkerryError, match="over another nonce"):
        quoted(real.older, mine)
    with pytest.raises(SkerryError, match="no point"):
        quoted(real.quote, statement())


def test_any_flipped_bit_of_what_a_quote_attests_is_found(real: Real) -> None:
    """From the attestation's first byte to the signature's last; and any cut."""
    mine = statement(real.point)
    begin = commands.HEADER + 4
    end = begin + int.from_bytes(real.quote[commands.HEADER : begin])
    for place in range(begin, end):
        for bit in range(8):
            changed = bytearray(real.quote)
            changed[place] ^= 1 << bit
            with pytest.raises(SkerryError):
                quoted(bytes(changed), mine)
    for length in range(end):
        with pytest.raises(SkerryError):
            quoted(real.quote[:length], mine)


@given(st.binary(max_size=300))
def test_no_bytes_are_a_quote(untrusted: bytes) -> None:
    """Whatever they are, also behind a header that says success."""
    for content in (untrusted, b"\x80\x02" + (len(untrusted) + 10).to_bytes(4) + bytes(4)):
        with pytest.raises(SkerryError):
            quoted(content + untrusted, statement())


def test_something_signed_that_is_no_quote_is_refused(real: Real) -> None:
    """The key certifies other keys too, over any nonce: that says nothing about registers."""
    with pytest.raises(SkerryError, match="it is no quote"):
        quoted(real.certified, statement(real.point))


def test_the_command_line_verifies_without_a_node(
    real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From three files; a wrong nonce, a missing file and a wrong key are one line and code 1."""
    monkeypatch.setenv("SKERRY_HOME", str(tmp_path / "none"))
    files = {name: tmp_path / name for name in ("statement", "quote", "key.pub")}
    files["statement"].write_bytes(written(statement(real.point)))
    files["quote"].write_bytes(real.quote)
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    files["key.pub"].write_bytes(public)

    def verify(*more: str) -> tuple[int, str]:
        words = ["tpm", "verify", str(files["statement"]), "--key", str(files["key.pub"]), *more]
        done = CliRunner().invoke(cli, words)
        return done.exit_code, done.output + str(done.exception or "")

    code, said = verify("--quote", str(files["quote"]), "--nonce", NONCE.hex())
    assert code == 0, said
    assert "quote registers: 0 7 16 23" in said
    assert "was not compared" not in said
    code, said = verify("--json", "--nonce", NONCE.hex())
    assert json.loads(said)["domain"] == "one"
    assert "was not compared" in verify()[1]
    assert "over another nonce" in verify("--nonce", NONCE[::-1].hex())[1]
    assert "No such file" in verify("--quote", str(tmp_path / "absent"))[1]
    files["quote"].write_bytes(real.others)
    code, said = verify("--quote", str(files["quote"]))
    assert code == 1
    assert "does not hold" in said


def test_the_command_in_the_documentation_is_a_quote() -> None:
    """What a shell's `printf` makes of it is what the TPM takes."""
    page = (Path(__file__).parents[3] / "docs/devices/tpm.md").read_text("utf-8")
    (shown,) = re.findall(r"^(printf '.*') > q$", page, re.MULTILINE)
    made = subprocess.run(["sh", "-c", shown], capture_output=True, check=True).stdout
    assert made == commands.quote(bytes.fromhex("0011223344556677"), (0, 7))
