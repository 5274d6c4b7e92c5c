"""The protocol between guest and node: exact calls or a malformed line, whatever a guest sends."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from skerry.wire import hypercall as wire
from skerry.wire.hypercall import Answer, Call, Malformed, Parser

IDS = st.from_regex(r"[0-9a-z]{1,16}", fullmatch=True)
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,19}", fullmatch=True)
NUMBERS = st.integers(1, 10**18 - 1).map(str)
CALLS = st.one_of(
    st.builds(Call, IDS, st.just("label")),
    st.builds(Call, IDS, st.sampled_from(["offer", "connect"]), NAMES),
    st.builds(Call, IDS, st.just("close"), NAMES | NUMBERS),
    st.builds(Call, IDS, st.just("why"), NUMBERS),
)
PIECES = st.binary(max_size=300) | st.sampled_from(
    [b"\n", b" ", b"1 a label", b"1 a connect x\n", b"1 ", b"x" * wire.CALL_MAX, b"\0", b"\xff"]
)


def written(call: Call) -> bytes:
    """Return a call as a guest writes it."""
    return wire.call(call.id, call.verb, call.argument)


@given(st.lists(CALLS, max_size=20), st.data())
def test_any_split_gives_the_same_calls(calls: list[Call], data: st.DataObject) -> None:
    """What was written is what is read, wherever the stream happens to be cut."""
    stream = b"".join(map(written, calls))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parser = Parser()
    found: list[Call | Malformed] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += parser.feed(stream[start:end])
    assert found == calls


@given(st.lists(PIECES, max_size=30), CALLS)
def test_garbage_is_bounded_and_the_next_call_is_read(pieces: list[bytes], call: Call) -> None:
    """No bytes raise, each line is one thing at most, and a newline ends whatever was before."""
    parser, seen = Parser(), 0
    for piece in pieces:
        found = parser.feed(piece)
        seen += len(piece)
        assert len(found) <= piece.count(b"\n") + 1
        assert len(parser._untrusted_rest) < wire.CALL_MAX
        for item in found:
            assert isinstance(item, Call) or item.code in ("MALFORMED", "VERSION", "TOO-LONG")
            assert re.fullmatch(r"[0-9a-z]{1,16}|\?", item.id)
    assert parser.feed(b"\n" + written(call))[-1] == call


def test_each_wrong_line_is_named() -> None:
    """Another version, an unknown verb, a wrong argument, a long line: each by its code."""
    lines = {
        b"2 a label": Malformed("a", "VERSION"),
        b"1 a shutdown": Malformed("a", "MALFORMED"),
        b"1 a label x": Malformed("a", "MALFORMED"),
        b"1 a connect Ledger": Malformed("a", "MALFORMED"),
        b"1 a connect x y": Malformed("a", "MALFORMED"),
        b"1 a why x": Malformed("a", "MALFORMED"),
        b"1 a why 0": Malformed("a", "MALFORMED"),
        b"1 A label": Malformed("?", "MALFORMED"),
        b"1 -label ok": Malformed("?", "MALFORMED"),
        b"1  a label": Malformed("?", "MALFORMED"),
        b"1 a " + b"x" * wire.CALL_MAX: Malformed("a", "TOO-LONG"),
    }
    for line, said in lines.items():
        assert Parser().feed(line + b"\n") == [said], line


def test_a_long_line_is_one_answer_and_its_rest_is_no_call() -> None:
    """What stands in the rest of a line that is too long is never taken for a call."""
    parser = Parser()
    assert parser.feed(b"1 a offer " + b"x" * wire.CALL_MAX) == [Malformed("a", "TOO-LONG")]
    assert parser.feed(b"y" * 10_000) == []
    assert parser.feed(b" 1 b label\n1 c label\n") == [Call("c", "label")]


@given(IDS, st.lists(st.text(max_size=6000), max_size=4))
def test_no_text_makes_a_line_of_its_own(identity: str, texts: list[str]) -> None:
    """Whatever a text holds, it is the rest of one line, bounded and printable.

    A printable one is not changed.
    """
    answer = Answer("denied", "CODE", tuple(("key", text) for text in texts))
    lines = wire.encode(identity, answer).decode().split("\n")
    assert len(lines) == len(texts) + 2
    assert lines[-2:] == [f"1 {identity} denied CODE", ""]
    for line in lines[:-2]:
        assert line.startswith(f"1 {identity} is key ")
        assert line.isprintable()
        assert len(line) <= wire.TEXT_MAX + 40
    for line, text in zip(lines, texts, strict=False):
        if text.isprintable() and len(text) <= wire.TEXT_MAX:
            assert line == f"1 {identity} is key {text}"
