"""What a TPM answers is checked before it is used."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.device.tpm.commands import (
    MAX_RESPONSE,
    Reader,
    TpmError,
    answer,
    command,
    handle_of,
    is_answer,
    point_of,
)


def test_a_command_says_its_own_length() -> None:
    """Tag, length, code, body."""
    assert command(0x144, b"ab").hex() == "80010000000c000001446162"


@pytest.mark.parametrize(
    ("untrusted", "words"),
    [
        (b"", "has 0 bytes"),
        (bytes(9), "has 9 bytes"),
        (bytes(MAX_RESPONSE + 1), f"has {MAX_RESPONSE + 1} bytes"),
        (struct.pack(">HII", 0x8001, 11, 0), "and says 11"),
        (struct.pack(">HII", 0x8001, 10, 0x922), "with 0x922"),
    ],
)
def test_what_is_no_success_is_an_error(untrusted: bytes, words: str) -> None:
    """Too short, too long, of another length than it says, or a refusal."""
    with pytest.raises(TpmError, match=words):
        answer(untrusted)


def test_a_success_is_whole_when_its_length_is_there() -> None:
    """Not before, and with nothing after."""
    whole = struct.pack(">HII", 0x8001, 12, 0) + b"ab"
    assert [is_answer(whole[:n]) for n in range(13)] == [False] * 12 + [True]
    assert answer(whole) == b"ab"
    with pytest.raises(TpmError, match="no handle"):
        handle_of(whole)


@given(st.binary(max_size=200))
def test_no_bytes_are_a_key_of_ours(untrusted: bytes) -> None:
    """A key of another kind would sign what the TPM has not made; junk is no key at all."""
    whole = struct.pack(">HII", 0x8001, 10 + len(untrusted), 0) + untrusted
    with pytest.raises(TpmError):
        point_of(whole)


def test_a_reader_gives_no_more_than_there_is_or_may_be() -> None:
    """Lengths are looked at before what they count."""
    with pytest.raises(TpmError, match="where 2 are the most"):
        Reader(b"\0\3abc").sized(2)
    with pytest.raises(TpmError, match="cut short"):
        Reader(b"\0\3ab").sized(9)
    reader = Reader(b"\0\2abc")
    assert (reader.sized(2), reader.left, reader.number(1), reader.left) == (b"ab", 1, 99, 0)
