"""The resolver's messages: what is understood, and that nothing else hurts."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.device.uplink import dns

LABEL = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=63)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join).filter(lambda name: len(name) < 254)


@settings(deadline=None)
@given(NAME, st.integers(0, 65535))
def test_a_question_is_read_as_it_was_written(name: str, number: int) -> None:
    """Name, number and type come through."""
    asked = dns.read_question(dns.write_question(number, name))
    assert (asked.number, asked.name, asked.kind) == (number, name, dns.A)


@settings(deadline=None)
@given(NAME, st.lists(st.ip_addresses(v=4).map(str), max_size=8), st.integers(0, 3600))
def test_an_answer_is_read_as_it_was_written(name: str, addresses: list[str], ttl: int) -> None:
    """Addresses in their order, and for how long."""
    asked = dns.read_question(dns.write_question(7, name))
    answer = dns.read_answer(dns.write_answer(asked, addresses, ttl, 0), 7, name)
    assert answer == (tuple(addresses), ttl if addresses else 0, 0)


@settings(deadline=None)
@given(st.binary(max_size=600))
def test_bytes_of_any_kind_are_a_message_or_malformed(untrusted: bytes) -> None:
    """Nothing else is ever raised, and it ends."""
    with contextlib.suppress(dns.Malformed):
        dns.read_question(untrusted)
    with contextlib.suppress(dns.Malformed):
        dns.read_answer(untrusted, 0, "x")
    assert len(dns.write_failure(untrusted, dns.FORMERR)) in (0, 12)


@settings(deadline=None)
@given(st.data())
def test_a_message_that_is_changed_in_places_is_a_message_or_malformed(data: st.DataObject) -> None:
    """A true answer with some bytes changed raises nothing else."""
    asked = dns.read_question(dns.write_question(7, "a.test"))
    message = bytearray(dns.write_answer(asked, ["1.2.3.4", "5.6.7.8"], 9, 0))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(dns.Malformed):
        dns.read_answer(bytes(message), 7, "a.test")


def test_an_alias_is_followed_and_a_stranger_is_not() -> None:
    """CNAME to another name, whose address is taken; a record of a third name is not."""
    record = struct.Struct(">HHIH")
    head = dns.write_question(7, "a.test")
    alias, third = b"\x01b\x04test\x00", b"\x01c\x04test\x00"
    records = b"\xc0\x0c" + record.pack(dns.CNAME, 1, 50, len(alias)) + alias
    records += alias + record.pack(dns.A, 1, 40, 4) + bytes((1, 2, 3, 4))
    records += third + record.pack(dns.A, 1, 30, 4) + bytes((9, 9, 9, 9))
    message = struct.pack(">HHHHHH", 7, 0x8180, 1, 3, 0, 0) + head[12:] + records
    assert dns.read_answer(message, 7, "a.test") == (("1.2.3.4",), 40, 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: b"\0\1" + m[2:],
        lambda m: m.replace(b"\x01a\x04test", b"\x01b\x04test"),
        lambda m: m[:2] + b"\x01\x00" + m[4:],
        lambda m: m[:-1],
    ],
    ids=["another number", "another name", "a question", "too short"],
)
def test_an_answer_to_something_else_is_refused(change: object) -> None:
    """Whoever guesses must guess number and name. The control: unchanged it is taken."""
    asked = dns.read_question(dns.write_question(7, "a.test"))
    message = dns.write_answer(asked, ["1.2.3.4"], 9, 0)
    assert dns.read_answer(message, 7, "a.test").addresses == ("1.2.3.4",)
    assert callable(change)
    with pytest.raises(dns.Malformed):
        dns.read_answer(change(message), 7, "a.test")


def test_a_name_that_points_at_itself_ends() -> None:
    """Compression is followed backwards only."""
    head = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0)
    for name in (
        b"\xc0\x0c",
        b"\x01a\xc0\x0c",
        b"\xc0\x0e\xc0\x0c",
        b"\x3f" + b"a" * 63 + b"\xc0\x0c",
    ):
        with pytest.raises(dns.Malformed):
            dns.read_question(head + name + struct.pack(">HH", 1, 1))
