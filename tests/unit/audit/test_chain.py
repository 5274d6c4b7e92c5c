"""The hash chain finds every change, and names the first broken record."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.audit.chain import GENESIS, Proof, seal, verify
from skerry.audit.record import (
    MAX_FIELDS,
    RecordError,
    body_json,
    fields_json,
    parse_record,
    record_json,
    shortened_fields,
)


def trail(count: int) -> list[bytes]:
    """Return the lines of a good trail."""
    lines, prev = [], GENESIS
    for n in range(1, count + 1):
        fields = fields_json({"who": f"guest {n}\n\x1b", "deep": {"b": 1, "a": [1, "ü"]}})
        line, prev = seal(body_json(n, n * 10**15, n, prev, "allow", fields), prev)
        lines.append(line)
    return lines


GOOD = trail(6)
HEADS = [parse_record(line).hash for line in GOOD]


def test_a_good_trail_is_proven() -> None:
    """A trail as it was written is proven whole, with its count and head."""
    assert verify(GOOD) == Proof(6, HEADS[-1])
    assert verify(GOOD, HEADS[-1]) == Proof(6, HEADS[-1])
    assert verify([]) == Proof(0, GENESIS)
    assert verify([], GENESIS) == Proof(0, GENESIS)


@given(st.integers(0, 5), st.data())
def test_any_single_flipped_bit_is_found(which: int, data: st.DataObject) -> None:
    """Whatever bit of whatever record changes, the chain names that record."""
    line = bytearray(GOOD[which])
    bit = data.draw(st.integers(0, len(line) * 8 - 1))
    line[bit // 8] ^= 1 << bit % 8
    stream = b"".join([*GOOD[:which], bytes(line), *GOOD[which + 1 :]])
    proof = verify(io.BytesIO(stream))
    assert (proof.broken, proof.count) == (which + 1, which)
    assert proof.head == ([GENESIS, *HEADS])[which]


@given(st.integers(0, 4))
def test_a_dropped_record_is_found(which: int) -> None:
    """A record taken out of the middle is named as missing."""
    proof = verify(GOOD[:which] + GOOD[which + 1 :])
    assert (proof.broken, proof.count) == (which + 1, which)
    assert "missing" in proof.reason


@given(st.sets(st.integers(0, 5), min_size=2, max_size=2))
def test_two_swapped_records_are_found(which: set[int]) -> None:
    """Two records that changed places break the chain at the first of them."""
    low, high = sorted(which)
    lines = list(GOOD)
    lines[low], lines[high] = lines[high], lines[low]
    assert verify(lines).broken == low + 1


@given(st.integers(0, 5), st.integers(0, 6))
def test_a_repeated_record_is_found(which: int, where: int) -> None:
    """A record that stands there twice breaks the chain where it does not belong."""
    lines = [*GOOD[:where], GOOD[which], *GOOD[where:]]
    first = next(i for i, (a, b) in enumerate(zip(lines, [*GOOD, b""], strict=True)) if a != b)
    assert verify(lines).broken == first + 1


@given(st.integers(0, 5))
def test_a_truncated_tail_is_found_against_the_head(kept: int) -> None:
    """A chain can't show a missing end by itself; against its head it does."""
    assert verify(GOOD[:kept]).broken == 0
    proof = verify(GOOD[:kept], HEADS[-1])
    assert (proof.broken, proof.count) == (kept + 1, kept)
    assert "before the head" in proof.reason


def test_a_trail_that_grew_since_its_head_is_proven() -> None:
    """A head noted earlier proves the trail up to it, and what follows is counted."""
    assert verify(GOOD, HEADS[3]) == Proof(6, HEADS[-1], after=2)


def test_a_record_forged_with_a_good_hash_is_found() -> None:
    """Rewriting a record and its own hash still breaks the link to the next one."""
    fields = fields_json({"who": "nobody"})
    forged, _ = seal(body_json(3, 1, 1, HEADS[1], "allow", fields), HEADS[1])
    proof = verify([*GOOD[:2], forged, *GOOD[3:]])
    assert (proof.broken, proof.reason) == (4, "does not follow from the record before it")
    assert verify([*GOOD[:2], forged], HEADS[-1]).broken == 4


@given(st.binary(max_size=300), st.integers(0, 6))
def test_any_bytes_end_in_a_proof(junk: bytes, where: int) -> None:
    """No line makes verification raise; junk is a broken record."""
    assert verify([*GOOD[:where], junk, *GOOD[where:]]).broken == where + 1


@pytest.mark.parametrize(
    "line", [b"[" * 60_000, b'{"n":' + b"9" * 5000, b"9" * (1 << 17), b'{"n":1}\n', b"\xff\n", b""]
)
def test_hostile_lines_are_no_records(line: bytes) -> None:
    """Deep, long, incomplete and binary lines are refused by the same error."""
    with pytest.raises(RecordError):
        parse_record(line)
    assert verify([line]).broken == 1


FIELDS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ),
    max_size=4,
)


@given(FIELDS)
def test_a_record_round_trips_as_printable_ascii(fields: dict[str, object]) -> None:
    """What is written is read back; the line holds no control byte and one form only."""
    line, digest = seal(body_json(1, 0, 0, GENESIS, "x", fields_json(fields)), GENESIS)
    text = line.decode("ascii")
    assert text[:-1].isprintable()
    record = parse_record(line)
    assert record.fields == fields
    assert record.hash == digest
    assert record_json(record) + "\n" == text


def test_fields_that_cannot_be_recorded_are_refused_or_shortened() -> None:
    """An append with such fields fails; a note keeps what can be kept of them."""
    loop: dict[str, object] = {}
    loop["self"] = loop
    for bad in ({"x": object()}, {"x": float("nan")}, {"x": "y" * MAX_FIELDS}, loop):
        with pytest.raises(RecordError):
            fields_json(bad)
        assert len(shortened_fields(bad)) < MAX_FIELDS
