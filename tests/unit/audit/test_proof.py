"""Whatever is done to a trail of several segments is found, and the first broken record named."""

from hypothesis import given
from hypothesis import strategies as st

from skerry.audit.chain import Link, Proof, verify
from skerry.audit.record import parse_record
from tests.unit.audit.trails import lines_of, made_segments

SEGMENTS = [b"".join(lines) for lines in made_segments([4, 3, 1, 5])]
LINES = lines_of(SEGMENTS)
COUNT = len(LINES)
HEAD = Link(COUNT, parse_record(LINES[-1]).hash)


def prove(lines: list[bytes]) -> Proof:
    """Verify against the head that the node noted."""
    return verify(lines, at_least=HEAD)


def test_the_trail_as_it_was_is_proven() -> None:
    """The control of all below."""
    assert prove(LINES) == Proof(COUNT, HEAD.hash)


@given(st.data())
def test_any_flipped_bit_in_any_segment_is_found_and_named(data: st.DataObject) -> None:
    """One bit of any byte of any file."""
    whole = bytearray(b"".join(SEGMENTS))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    ends = [sum(map(len, LINES[: n + 1])) for n in range(COUNT)]
    hit = next(n for n, end in enumerate(ends, 1) if bit // 8 < end)
    proof = prove(bytes(whole).splitlines(keepends=True) if hit else [])
    assert (proof.broken, proof.count) == (hit, hit - 1)


@given(st.data())
def test_any_dropped_run_of_records_is_found_and_named(data: st.DataObject) -> None:
    """One record or many, in the middle, at the beginning or at the end; whole segments too."""
    start = data.draw(st.integers(0, COUNT - 1))
    end = data.draw(st.integers(start + 1, COUNT))
    proof = prove(LINES[:start] + LINES[end:])
    assert (proof.broken, proof.count) == (start + 1, start)


@given(st.sets(st.integers(0, COUNT - 1), min_size=2, max_size=2))
def test_any_two_swapped_records_are_found_and_named(which: set[int]) -> None:
    """Within a segment or across two."""
    low, high = sorted(which)
    lines = list(LINES)
    lines[low], lines[high] = lines[high], lines[low]
    assert prove(lines).broken == low + 1


@given(st.integers(0, COUNT - 1), st.integers(0, COUNT))
def test_any_repeated_record_is_found_and_named(which: int, where: int) -> None:
    """A record that stands there twice, wherever."""
    lines = [*LINES[:where], LINES[which], *LINES[where:]]
    first = next(i for i, (a, b) in enumerate(zip(lines, [*LINES, b""], strict=True)) if a != b)
    assert prove(lines).broken == first + 1


@given(st.integers(0, sum(map(len, SEGMENTS)) - 1))
def test_a_trail_cut_anywhere_is_found_and_named(size: int) -> None:
    """At any byte, against the head; the chain alone can't see a cut between two records."""
    lines = b"".join(SEGMENTS)[:size].splitlines(keepends=True)
    whole = sum(line.endswith(b"\n") for line in lines)
    assert prove(lines).broken == whole + 1
    assert verify(lines).broken == (0 if whole == len(lines) else whole + 1)


@given(st.permutations(range(4)))
def test_segments_in_another_order_are_found_and_named(order: list[int]) -> None:
    """Files that changed their names."""
    lines = lines_of(SEGMENTS[index] for index in order)
    same = next((i for i, index in enumerate(order) if i != index), 4)
    before = sum(len(SEGMENTS[i].splitlines()) for i in range(same))
    assert prove(lines).broken == (0 if same == 4 else before + 1)


@given(st.integers(1, 3))
def test_missing_oldest_segments_are_found_and_named(missing: int) -> None:
    """No record says that they were removed, so they are missing."""
    lines = lines_of(SEGMENTS[missing:])
    proof = verify(lines, first=parse_record(lines[0]).n, at_least=HEAD)
    assert (proof.broken, proof.count) == (1, 0)
    assert "is missing" in proof.reason
